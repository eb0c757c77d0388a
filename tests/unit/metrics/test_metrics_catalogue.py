from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import ConfigError
from luthier.core.types import Example, TaskKind, TaskProfile
from luthier.metrics.catalogue import LOWER_IS_BETTER, check_metric, metrics_of, primary_metric, score_answer
from luthier.metrics.closed_world import ClosedWorld

NOTHING = ClosedWorld(known=frozenset())
EVERYWHERE = {"exact", "token_f1", "rouge_l", "unsupported", "fabrication", "over_abstention", "incoherent"}


def item(response: str, input: str = "q") -> Example:
    return Example(id="1", path="t", line=1, kind="instruct", input=input, response=response)


@pytest.mark.parametrize(
    ("kind", "primary", "extra"),
    [
        ("label", "exact", {"label_valid"}),
        ("json", "json_fields", {"json_valid", "json_exact", "json_fields"}),
        ("short", "exact", {"chrf", "edit_similarity"}),
        ("text", "rouge_l", {"chrf", "edit_similarity"}),
    ],
)
def test_metrics_of_each_kind(kind: TaskKind, primary: str, extra: set[str]) -> None:
    profile = TaskProfile(kind=kind, evidence="", labels=("a",), json_keys=("k",))
    assert primary_metric(profile) == primary
    scored = score_answer(item("a"), "b", profile=profile, world=NOTHING, markers=frozenset())
    assert set(scored.values) == EVERYWHERE | extra
    assert primary in scored.values
    assert set(scored.values) >= LOWER_IS_BETTER


def test_notes_say_what_went_wrong() -> None:
    label = TaskProfile(kind="label", evidence="", labels=("a", "b"))
    scored = score_answer(item("a"), "It is a, $5", profile=label, world=NOTHING, markers=frozenset())
    assert scored.values["label_valid"] == 0.0
    assert scored.note == "not one of the labels; unsupported: money:5 usd"
    json_task = TaskProfile(kind="json", evidence="", json_keys=("k",), json_enums={"k": ("x",)})
    notes = {
        '```{"k": "x"}```': "JSON only inside other text",
        "x": "not a JSON object",
        '{"j": 1}': "missing keys: k; extra keys: j",
        '{"k": "y"}': "a value outside its closed set",
        '{"k": "x"}': "",
    }
    for text, note in notes.items():
        assert score_answer(item('{"k": "x"}'), text, profile=json_task, world=NOTHING, markers=frozenset()).note == note
    text_task = TaskProfile(kind="text", evidence="")
    assert "reference abstains" in score_answer(item("I don't know"), "Rome", profile=text_task, world=NOTHING, markers=frozenset()).note
    assert "abstained" in score_answer(item("Rome"), "I don't know", profile=text_task, world=NOTHING, markers=frozenset()).note


def test_a_lenient_parse_never_scores() -> None:
    profile = TaskProfile(kind="json", evidence="", json_keys=("k",))
    scored = score_answer(item('{"k": 1}'), 'Here: {"k": 1}', profile=profile, world=NOTHING, markers=frozenset())
    assert (scored.values["json_valid"], scored.values["json_fields"], scored.values["json_exact"]) == (0.0, 0.0, 0.0)


def test_a_reference_that_is_no_object_is_not_scored_as_zero() -> None:
    profile = TaskProfile(kind="json", evidence="", json_keys=("k",))
    scored = score_answer(item("oops"), '{"k": 1}', profile=profile, world=NOTHING, markers=frozenset())
    assert scored.values["json_fields"] is None
    assert "reference" in scored.note


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30), st.sampled_from(["label", "json", "short", "text"]))
def test_every_value_is_a_share_and_the_reference_itself_is_perfect(pred: str, gold: str, kind: TaskKind) -> None:
    profile = TaskProfile(kind=kind, evidence="", labels=(gold,), json_keys=("k",))
    for text in (pred, gold):
        values = score_answer(item(gold), text, profile=profile, world=NOTHING, markers=frozenset()).values
        assert all(value is None or 0.0 <= value <= 1.0 for value in values.values())
        if text == gold:
            assert values["exact"] == values["token_f1"] == values["rouge_l"] == 1.0
            assert values.get("chrf", 1.0) == values.get("edit_similarity", 1.0) == 1.0
            assert values.get("label_valid", 1.0) == 1.0
            assert values["fabrication"] in (None, 0.0)
            assert values["over_abstention"] in (None, 0.0)


@pytest.mark.parametrize("kind", ["label", "json", "short", "text"])
def test_the_list_of_metrics_is_what_is_scored(kind: TaskKind) -> None:
    profile = TaskProfile(kind=kind, evidence="", labels=("a",), json_keys=("k",))
    scored = score_answer(item('{"k": 1}'), "a", profile=profile, world=NOTHING, markers=frozenset())
    assert set(metrics_of(profile)) == set(scored.values)
    assert check_metric(primary_metric(profile), profile) == primary_metric(profile)
    with pytest.raises(ConfigError, match="expected one of"):
        check_metric("fabrication", profile)


def test_answers_that_come_to_a_number_are_scored_by_it() -> None:
    worked = TaskProfile(kind="text", evidence="", number_form="#### 42")
    assert primary_metric(worked) == "number"
    assert "number" in metrics_of(worked) and "unsupported" not in metrics_of(worked)
    scored = score_answer(item("a\n#### 1200"), "600 * 2 = $1200", profile=worked, world=NOTHING, markers=frozenset())
    assert "unsupported" not in scored.values and not scored.note
    assert "number" not in metrics_of(TaskProfile(kind="text", evidence=""))
    for text, score in (("by another way\n#### 1,200", 1.0), ("it is 1200", 1.0), ("1200 - 1 = 1199", 0.0), ("", 0.0)):
        assert score_answer(item("a\n#### 1200"), text, profile=worked, world=NOTHING, markers=frozenset()).values["number"] == score
    assert score_answer(item("unknown"), "3", profile=worked, world=NOTHING, markers=frozenset()).values["number"] is None
