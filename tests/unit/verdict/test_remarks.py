"""What would change the answer is what `decide` itself says under that other rule."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from tests.unit.verdict.made_arms import arm, contest, rule

from luthier.core.types import ArmResult, Verdict
from luthier.verdict.rules import decide


def _remark(found: Verdict, word: str) -> str:
    return next(remark for remark in found.remarks if word in remark)


def _headline(arms: list[ArmResult], **settings: object) -> str:
    return decide(arms, rule(**settings)).headline


def test_power_in_plain_words() -> None:
    found = decide(contest(120, 70, 20, 12), rule())
    seen = found.min_detectable_effect
    assert seen is not None
    assert found.remarks[0].startswith(f"With 120 items only differences above {100 * seen:.1f} points can be seen (80 % power); about ")
    assert "would show 5.0" in found.remarks[0]
    assert "in reach" in decide(contest(2000, 1200, 100, 100), rule()).remarks[0]


CHEAP = contest(600, 500, 12, 12, tuned_seconds=1.0, prompt_seconds=3.0, train_seconds=36_000.0)


def test_the_volume_at_which_the_answer_changes() -> None:
    """Equal quality, a third of the cost, 36 dollars of training over six months: it pays from about 3,000 requests a month."""
    said = _remark(decide(CHEAP, rule(volume_per_month=100)), "requests a month")
    volume = int(re.search(r"At ([\d,]+) requests a month the answer changes to FINE-TUNE: as good, cheaper", said)[1].replace(",", ""))  # type: ignore[index]
    assert 2_500 <= volume <= 4_500
    assert _headline(CHEAP, volume_per_month=volume) == "FINE-TUNE: as good, cheaper"
    assert _headline(CHEAP, volume_per_month=volume // 2) == "PROMPT: as good, simpler"
    above = _remark(decide(CHEAP, rule(volume_per_month=100_000)), "requests a month")
    assert f"Below about {volume:,} requests a month the answer changes to PROMPT: as good, simpler" in above
    unsaid = _remark(decide(CHEAP, rule()), "requests a month")
    assert f"From about {volume:,} requests a month on the answer would be FINE-TUNE" in unsaid


def test_no_volume_where_nothing_is_saved() -> None:
    dear = contest(600, 500, 12, 12, tuned_seconds=3.0, prompt_seconds=1.0)
    assert "No number of requests a month changes the answer" in _remark(decide(dear, rule(volume_per_month=5)), "requests")
    untimed = contest(600, 500, 12, 12, tuned_seconds=None, prompt_seconds=None)
    assert not any("requests a month" in remark for remark in decide(untimed, rule()).remarks)


@pytest.mark.parametrize(("arms", "margin"), [(contest(400, 250, 60, 30), 0.05), (contest(400, 250, 60, 30), 0.1), (CHEAP, 0.05)])
def test_the_margins_named_are_the_nearest_that_change_the_answer(arms: list[ArmResult], margin: float) -> None:
    found = decide(arms, rule(margin=margin))
    said = _remark(found, "The margin was")
    named = re.findall(r"with ([\d.]+) points or (less|more) the answer would be (.+?)(?=, with \d|\.$)", said)
    assert named
    for points, direction, headline in named:
        there = float(points) / 100
        assert _headline(arms, margin=there, declared_margin=margin) == headline
        step = 0.005 if direction == "less" else -0.005
        if abs(there + step - margin) > 1e-9:
            assert decide(arms, rule(margin=there + step, declared_margin=margin)).code == found.code


def test_a_margin_that_never_matters() -> None:
    assert any(remark.startswith("Any margin from 0.5 to 30.0") for remark in decide(contest(400, 200, 195, 2), rule()).remarks)


def test_the_recipe_and_what_one_training_is_worth() -> None:
    arms = contest(300, 150, 60, 15)
    assert "--train-seeds 3" in _remark(decide(arms, rule()), "one training")
    again = [replace(arms[1], name=f"tuned, seed {seed}", seed=seed, dev_score=None, latencies_s=()) for seed in (1, 2)]
    found = decide([*arms, *again], rule())
    assert "over 3 training seeds: +15.0 points" in _remark(found, "As a recipe")
    assert found.best_tuned == "tuned"
    assert not [c for c in found.secondary if "seed" in c.a]  # they stand in the recipe's interval, not as comparisons of their own


def test_other_seeds_never_stand_for_the_tuned_arm() -> None:
    """The weights that are handed over are those of the run: a replicate has no dev score and cannot be chosen, however good it is."""
    arms = contest(300, 150, 60, 15)
    perfect = replace(arm("tuned, seed 1", [1.0] * 300, family="tuned", dev=None), seed=1)
    assert decide([*arms, perfect], rule()).best_tuned == "tuned"


def test_seeds_differ_in_answers_never_in_cost() -> None:
    """A replicate is not timed one request at a time; that alone must not make seeds disagree about "as good, cheaper"."""
    twin = replace(CHEAP[1], name="tuned, seed 1", seed=1, dev_score=None, items=tuple(replace(i, latency_s=9.0) for i in CHEAP[1].items))
    found = decide([*CHEAP, twin], rule(volume_per_month=100_000))
    assert found.code == "fine_tune_as_good_cheaper"


def test_dev_beside_test() -> None:
    arms = contest(300, 150, 60, 15)
    assert "tuned 50.0 on dev (n = 100), 70.0 on test; few-shot 50.0 on dev (n = 100), 55.0 on test" in _remark(
        decide(arms, rule()), "Chosen on dev"
    )


def test_the_best_floor_on_dev_is_the_one_that_decides() -> None:
    arms = contest(300, 150, 60, 15)
    weak = arm("majority", [0.0] * 300, family="floor", dev=0.1)
    strong = arm("TF-IDF + logistic regression", [1.0] * 215 + [0.0] * 85, family="floor", dev=0.7)
    found = decide([*arms, weak, strong], rule())
    assert (found.code, found.best_floor) == ("neither_needed", strong.name)
    assert decide([*arms, weak], rule()).code == "fine_tune_better"


def test_the_best_without_a_model_stands_beside_the_better_arm() -> None:
    arms = contest(400, 100, 200, 20)
    near = arm("nearest neighbour", [1.0] * 250 + [0.0] * 150, family="floor")
    said = _remark(decide([*arms, near], rule()), "without a language model")
    assert said.startswith("tuned minus nearest neighbour (62.5), the best without a language model: +12.5 points (95 % interval +")
    assert not any("without a language model" in remark for remark in decide(arms, rule()).remarks)
    close = decide([*arms, arm("nearest neighbour", [1.0] * 250 + [0.0] * 110 + [1.0] * 40, family="floor")], rule())
    assert (close.code, close.strength) == ("fine_tune_better", "leaning")
    assert "But tuned is not shown to beat nearest neighbour (72.5), which needs no language model." in close.sentence
    enough = arm("nearest neighbour", [1.0] * 320 + [0.0] * 80, family="floor")
    found = decide([*arms, enough], rule())
    assert found.code == "neither_needed" and not any("without a language model" in remark for remark in found.remarks)


def test_power_promises_nothing_where_the_arms_hardly_disagree() -> None:
    said = decide(contest(100, 0, 3, 1), rule()).remarks[0]
    assert said == "With 100 items only differences above 5.4 points can be seen (80 % power)."
