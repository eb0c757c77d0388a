"""The consistency gate and the behaviour section from synthetic records, without a model."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tests.unit.verdict.made_arms import arm, rule

from luthier.core.types import ArmResult, Example, TaskProfile
from luthier.metrics.consistency import AskedAgain, AskPlan, Way, agreement
from luthier.metrics.form import learn_form
from luthier.verdict.behaviour import Behaviour, read_behaviour
from luthier.verdict.behaviour_numbers import BehaviourLine, BehaviourRecord, StyleRecord
from luthier.verdict.gates import check_gates

LABEL = TaskProfile(kind="label", evidence="", labels=("card", "money", "close"))
TEXT = TaskProfile(kind="text", evidence="")
PLAN = AskPlan(items=40, samples=3, temperature=0.7, style_rows=60, seed=0)
ANSWERS = ("card", "money", "close")
TRAIN = [Example(id=f"t{n}", path="", line=n, kind="instruct", input=f"q {n}", response=ANSWERS[n % 3]) for n in range(60)]


def _asked(arm_: ArmResult, steady: float, num_items: int = 40) -> tuple[AskedAgain, ...]:
    """Answers that equal the first with probability `steady`."""
    rng = random.Random(f"{arm_.name} {steady}")
    ways: list[tuple[Way, str]] = [("repeat", f"sample {n}") for n in (1, 2, 3)]
    ways += [("reworded", "reworded 1"), ("reworded", "reworded 2"), ("input", "input 1"), ("input", "input 2")]
    out = []
    for item in arm_.items[:num_items]:
        for way, name in ways:
            same = rng.random() < steady
            text = item.text if same else "close"
            out.append(AskedAgain(item_id=item.item_id, way=way, name=name, shown=f"{name}: q" if way != "repeat" else "", text=text,
                                  score=item.values["exact"] if same else 0.0, is_valid=1.0, latency_s=0.5))  # fmt: skip
    return tuple(out)


def _arm(name: str, family: str, n: int, right: float, sure: float | None = None) -> ArmResult:
    rng = random.Random(name)
    scores = [float(rng.random() < right) for _ in range(n)]
    made = arm(name, scores, family=family)  # type: ignore[arg-type]
    items = tuple(
        replace(
            item,
            text="card" if score else "money",
            gold="card",
            values={**item.values, "stops": 1.0, "answers": 1.0, "keeps_form": 1.0, "label_valid": 1.0, "confidence": sure},
        )
        for item, score in zip(made.items, scores, strict=True)
    )
    return replace(made, items=items)


def _with_gate_values(arm_: ArmResult, asked: tuple[AskedAgain, ...]) -> ArmResult:
    by_id: dict[str, list[AskedAgain]] = {}
    for one in asked:
        by_id.setdefault(one.item_id, []).append(one)
    items = [
        replace(item, values={**item.values, "consistency": agreement(item.text, by_id[item.item_id], LABEL).overall})
        if item.item_id in by_id
        else item
        for item in arm_.items
    ]
    return replace(arm_, items=tuple(items))


def _gate(prompt_steady: float, tuned_steady: float, n: int) -> str:
    prompt, tuned = _arm("few-shot", "prompt", n, 0.7), _arm("tuned", "tuned", n, 0.8)
    made = [_with_gate_values(one, _asked(one, steady, n)) for one, steady in ((prompt, prompt_steady), (tuned, tuned_steady))]
    [gate] = [gate for gate in check_gates(made[0], made[1], rule()) if gate.name == "consistency"]
    return gate.state


def test_gate_from_answers() -> None:
    """Allowed: 3 points less than the prompt."""
    assert _gate(0.6, 0.95, 40) == "pass"
    assert _gate(0.95, 0.5, 40) == "fail"
    assert _gate(0.9, 0.9, 30) == "not shown"


def test_gate_is_not_measured_without_further_answers() -> None:
    prompt, tuned = _arm("few-shot", "prompt", 40, 0.7), _arm("tuned", "tuned", 40, 0.8)
    states = {gate.name: gate.state for gate in check_gates(prompt, tuned, rule())}
    assert states["consistency"] == "not measured"


def _record(asked: dict[str, tuple[AskedAgain, ...]], **changes: object) -> BehaviourRecord:
    made = BehaviourRecord(plan=PLAN, form=learn_form(TRAIN, LABEL), asked=asked, failed={}, tone={}, style=None, style_note="",
                           predicted_seconds=100.0, seconds=90.0)  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def _read(arms: list[tuple[str, ArmResult]], found: BehaviourRecord, profile: TaskProfile = LABEL) -> Behaviour:
    return read_behaviour(arms, found, profile, "exact", inputs={"i0000": "q 0"}, max_new_tokens=12, seed=0)


def _lines(found: Behaviour) -> dict[str, BehaviourLine]:
    return {line.key: line for group in found.groups for line in group.lines}


def test_lines_have_every_column_and_the_paired_difference() -> None:
    bare, prompt, tuned = _arm("zero-shot", "prompt", 60, 0.1), _arm("few-shot", "prompt", 60, 0.7), _arm("tuned", "tuned", 60, 0.8)
    asked = {"few-shot": _asked(prompt, 0.5), "tuned": _asked(tuned, 1.0)}
    found = _read([("as it is", bare), ("prompt", prompt), ("tuned", tuned)], _record(asked))
    assert [role for role, _ in found.columns] == ["as it is", "prompt", "tuned", "wanted"]
    lines = _lines(found)
    assert all(len(line.values) == 4 for line in lines.values())
    steady = lines["consistency"]
    assert steady.values[0].value is None and steady.values[2].value == 1.0 and steady.values[2].n == 40
    assert steady.difference is not None and steady.difference.low > 0
    assert lines["repeat"].is_part and lines["paraphrase"].is_part and "order" not in lines
    assert lines["spread"].values[2].value == pytest.approx(0.0) and (lines["spread"].values[1].value or 0) > 0.05
    assert lines["form: length"].values[3].value == 1.0  # the wanted answers keep it
    assert [name for name, _, _ in found.examples] == ["input 1", "input 2", "reworded 1", "reworded 2"]
    assert found.examples[0][1:] == ("q 0", "input 1: q")


def test_spread_by_hand() -> None:
    """Ten items, all right at first; the second rewording is wrong on four, the others on none: 40 points."""
    tuned = _arm("tuned", "tuned", 10, 1.0)
    asked = [replace(one, score=0.0 if one.name == "reworded 2" and int(one.item_id[1:]) < 4 else 1.0) for one in _asked(tuned, 1.0)]
    found = _read([("prompt", _arm("few-shot", "prompt", 10, 1.0)), ("tuned", tuned)], _record({"tuned": tuple(asked)}))
    spread = _lines(found)["spread"].values[1]
    assert spread.n == 10 and spread.value is not None and spread.low is not None and spread.high is not None
    assert spread.low <= 0.4 <= spread.high and 0.2 < spread.value < 0.4  # of ten items noise gives some of it
    assert spread.low is not None and spread.high is not None and spread.low <= 0.4 <= spread.high and spread.high > spread.low


def test_calibration_takes_the_label_probability_and_else_the_samples() -> None:
    prompt, tuned = _arm("few-shot", "prompt", 40, 0.7, sure=0.7), _arm("tuned", "tuned", 40, 0.8)
    found = _read([("prompt", prompt), ("tuned", tuned)], _record({"tuned": _asked(tuned, 1.0)}))
    right = [item.values["exact"] or 0.0 for item in prompt.items]
    assert found.calibration["few-shot"].brier.value == pytest.approx(sum((0.7 - y) ** 2 for y in right) / 40)
    wrong = [1.0 - (item.values["exact"] or 0.0) for item in tuned.items]
    assert found.calibration["tuned"].brier.value == pytest.approx(sum(wrong) / 40)  # three equal samples: sure
    [group] = [group for group in found.groups if group.title == "Knows when it is right"]
    assert [line.key for line in group.lines] == ["brier"] and "fewer than 300" in group.notes[0]


def test_nothing_is_shown_that_was_not_measured() -> None:
    prompt, tuned = _arm("few-shot", "prompt", 40, 0.7), _arm("tuned", "tuned", 40, 0.8)
    off = _read([("prompt", prompt), ("tuned", tuned)], _record({}, plan=replace(PLAN, items=0)))
    assert "consistency" not in _lines(off)
    assert any("arms.consistency_items is 0" in note for group in off.groups for note in group.notes)
    broken = _read([("prompt", prompt), ("tuned", tuned)], _record({}, failed={"few-shot": "the server is gone"}))
    assert any("the server is gone" in note for group in broken.groups for note in group.notes)


def test_tone_of_free_text() -> None:
    prompt, tuned = _arm("few-shot", "prompt", 40, 0.7), _arm("tuned", "tuned", 40, 0.8)
    prompt = replace(
        prompt,
        items=tuple(replace(i, text="You can't! You can't!", values={**i.values, "style_match": 0.0}) for i in prompt.items),
    )
    tuned = replace(tuned, items=tuple(replace(i, values={**i.values, "style_match": 1.0}) for i in tuned.items))
    style = StyleRecord(auc=0.93, min_auc=0.8, num_texts=60, references={i.item_id: 1.0 for i in tuned.items})
    record = _record({}, tone={"length": (1.0,) * 40, "register": (0.0,) * 40}, style=style)
    found = _read([("prompt", prompt), ("tuned", tuned)], record, TEXT)
    lines = _lines(found)
    assert [value.value for value in lines["style_match"].values] == [0.0, 1.0, 1.0]
    assert [value.value for value in lines["distance: length"].values] == [1.0, 0.0, 0.0]
    assert lines["distance: register"].values[0].value == 1.0
    assert "brier" not in lines
    note = "Style match: tone not measurable, wanted and zero-shot answers cannot be told apart (AUC 0.60, at least 0.8 wanted)."
    blind = _read([("prompt", prompt), ("tuned", tuned)], _record({}, tone={"length": (1.0,)}, style_note=note), TEXT)
    assert any("not measurable" in n for group in blind.groups for n in group.notes)
