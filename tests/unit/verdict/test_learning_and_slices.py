from __future__ import annotations

import random
from dataclasses import replace

from tests.unit.verdict.made_arms import METRIC, arm

from luthier.core.types import ArmResult, TaskProfile
from luthier.verdict.learning import LearningPoint, read_curve
from luthier.verdict.slices import answer_slices, error_slices, slice_sentence

N = 1000


def _tuned(error: float, name: str = "tuned", seed: int = 0) -> ArmResult:
    wrong = round(error * N)
    return arm(name, [0.0] * wrong + [1.0] * (N - wrong), family="tuned", seed=seed)


def _curve(errors: list[float]) -> list[LearningPoint]:
    sizes = (50, 100, 200, 400)
    return [LearningPoint(num_rows=n, arm=_tuned(e)) for n, e in zip(sizes, errors, strict=True)]


LAW = [0.05 + 3 * n**-0.5 for n in (50, 100, 200, 400)]


def test_the_sentence_users_ask_for() -> None:
    prompt = _tuned(0.05 + 3 * 150**-0.5, "few-shot")
    found = read_curve(_curve(LAW), prompt, (), METRIC, seed=0)
    assert (
        found.sentences[0].startswith("400 more examples like these, twice as many, would bring +4.") and "n = 1,000" in found.sentences[0]
    )
    assert found.sentences[1].startswith("Your best prompt, few-shot, is worth about 1") and "90 % interval" in found.sentences[1]
    assert "was not measured" in found.noise
    seeds = [_tuned(LAW[-1] + shift, f"tuned, seed {seed}", seed) for seed, shift in ((1, 0.02), (2, -0.02))]
    assert "over 3 seeds: 2.0 points" in read_curve(_curve(LAW), prompt, seeds, METRIC, seed=0).noise


def test_it_cannot_tell_where_the_curve_is_flat_or_follows_no_law() -> None:
    flat = read_curve(_curve([0.5, 0.4, 0.3, 0.3]), None, (), METRIC, seed=0)
    assert flat.sentences[0].startswith("Would more examples help? Cannot tell") and len(flat.sentences) == 1
    late = read_curve(_curve([0.97, 0.80, 0.28, 0.12]), _tuned(0.35, "few-shot"), (), METRIC, seed=0)
    assert "by how much cannot be told" in late.sentences[0] and "no power law" in late.sentences[0]
    assert late.sentences[1] == "Your best prompt, few-shot, is worth more than 100 and at most 200 training examples."
    assert late.fit is not None and not late.fit.follows_law


def test_bounds_of_what_a_prompt_is_worth() -> None:
    low = read_curve(_curve(LAW), _tuned(0.9, "zero-shot"), (), METRIC, seed=0).sentences[1]
    high = read_curve(_curve(LAW), _tuned(0.0, "zero-shot"), (), METRIC, seed=0).sentences[1]
    assert low == "Your best prompt, zero-shot, is worth fewer than 50 training examples."
    assert high == "Your best prompt, zero-shot, is worth more than 1,600 training examples."


def test_a_curve_that_learns_nothing_does_not_say_what_a_prompt_is_worth() -> None:
    """A best guess whose interval reaches from below the first point to beyond all that is said would be read as a number."""
    found = read_curve(_curve([0.99, 0.985, 0.985, 0.99]), _tuned(0.985, "few-shot"), (), METRIC, seed=0).sentences[1]
    assert found == (
        "How many training examples your best prompt, few-shot, is worth cannot be told: fewer than 50 to more than 1,600 (90 % interval)."
    )


def test_failed_points_leave_too_few() -> None:
    points = _curve(LAW)
    failed = [replace(p, arm=replace(p.arm, failed="no room", items=())) for p in points[:2]]
    assert read_curve([*failed, *points[2:]], None, (), METRIC, seed=0).fit is None


# ---------------------------------------------------------------- slices

LABELS = ("card", "money", "close")
PROFILE = TaskProfile(kind="label", evidence="", labels=LABELS)


def _arm(wrong_label: str | None, *, n: int = 240, seed: int = 0, copies: int = 1) -> tuple[ArmResult, dict[str, str]]:
    """Wrong on one item in ten, and on six in ten of one label."""
    rng = random.Random(f"test/slices/{seed}")
    labels = [rng.choice(LABELS) for _ in range(n // copies) for _ in range(1)]
    labels = [label for label in labels for _ in range(copies)]
    draws = [d for d in [rng.random() for _ in range(n // copies)] for _ in range(copies)]
    scores = [float(d > (0.6 if label == wrong_label else 0.1)) for d, label in zip(draws, labels, strict=True)]
    made = arm("tuned", scores, family="tuned", clusters=[f"c{i // copies}" for i in range(len(labels))])
    items = tuple(replace(item, gold=label) for item, label in zip(made.items, labels, strict=True))
    texts = {i.item_id: f"about my {i.gold} {' '.join(rng.choices('abcdefgh', k=rng.randrange(3, 12)))}" for i in items}
    return replace(made, items=items), texts


def _slices(made: tuple[ArmResult, dict[str, str]]):
    return error_slices(made[0], made[1], METRIC, profile=PROFILE, rows_of_answer={"answer money": 7}, seed=0)


def test_a_planted_weak_label_is_found_and_named_with_its_rows() -> None:
    found = _slices(_arm("money"))
    worst = next(one for one in found if one.name == "answer money")
    assert worst.is_worse and worst.num_train == 7
    assert worst.score.value is not None and worst.score.value < 0.55 < worst.rest
    said = slice_sentence(found, "tuned")
    assert said.startswith("Rows to add first") and "answer money" in said and "7 training rows" in said
    names = {one.name for one in found}
    assert {"answer card", "answer close"} <= names and any("words" in n for n in names) and any(n.startswith("topic ") for n in names)


def test_slices_of_an_even_arm_stand_out_in_at_most_5_percent() -> None:
    """Holm over all slices: some slice is called worse in at most 5 % of the runs (60 runs here, so at most 7)."""
    alarms = sum(any(one.is_worse for one in _slices(_arm(None, seed=seed, n=120))) for seed in range(60))
    assert alarms <= 7
    assert "No kind of item stands out" in slice_sentence(_slices(_arm(None)), "tuned")


def test_copies_of_an_item_are_one_draw() -> None:
    """Each item ten times in one cluster: ten times the items, no more evidence."""
    alone = {one.name: one.p_value for one in _slices(_arm("money", n=40))}
    copied = {one.name: one.p_value for one in _slices(_arm("money", n=400, copies=10))}
    assert copied["answer money"] > 0.2 * alone["answer money"]


def test_length_of_what_has_no_spaces_is_its_characters() -> None:
    made, inputs = _arm(None)
    chinese = {item: "你是谁呢请告诉我" * (1 + n % 9) for n, item in enumerate(inputs)}
    names = {one.name for one in _slices((made, chinese))}
    assert any(name.startswith("up to ") and name.endswith(" words or characters") for name in names)
    assert not any(name.startswith("up to 1 ") for name in names)


def test_what_an_answer_belongs_to() -> None:
    assert answer_slices("Card ", PROFILE) == ("answer card",)
    json_profile = TaskProfile(kind="json", evidence="", json_keys=("a", "b"), json_enums={"a": ("x", "y")})
    assert answer_slices('{"a": "x", "b": "free"}', json_profile) == ("a = x",)
    assert answer_slices("not json", json_profile) == () == answer_slices("text", None)
    assert slice_sentence((), "tuned") == ""
