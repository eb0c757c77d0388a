from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.types import TaskProfile
from luthier.metrics.structure import (
    MAX_DEPTH,
    find_json_object,
    json_exact,
    json_fields,
    json_valid,
    label_valid,
    parse_json_answer,
    text_fields,
)

PROFILE = TaskProfile(
    kind="json", evidence="", json_keys=("kind", "urgent", "note"), json_enums={"kind": ("refund", "other"), "urgent": ("true", "false")}
)
GOLD = '{"kind": "refund", "urgent": true, "note": "wants the money back by next Friday"}'


@pytest.mark.parametrize(
    ("pred", "expected"),
    [("card_arrival", 1.0), (" Card_Arrival. ", 1.0), ("card arrival", 0.0), ("card_arrival because", 0.0), ("", 0.0)],
)
def test_label_valid(pred: str, expected: float) -> None:
    assert label_valid(pred, ("card_arrival", "top_up")) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[1]",
        '"{}"',
        "{} {}",
        '```json\n{"a": 1}\n```',
        'Sure: {"a": 1}',
        '{"a": 1',
        "{'a': 1}",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": 1, "a": 2}',
        '{"a": {"b": 1, "b": 1}}',
        '{"a": ' + "9" * 5_000 + "}",
        '{"a":' * 100_000,
        '{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1),
        '\ufeff{"a": 1}',
    ],
    ids=range(18),
)
def test_strict_parse_refuses(text: str) -> None:
    assert parse_json_answer(text) is None


def test_strict_parse_reads_an_object() -> None:
    assert parse_json_answer(' \n{"a": [1, {"b": null}]}\n') == {"a": [1, {"b": None}]}
    deep = '{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH
    assert parse_json_answer(deep) is not None
    assert json_exact(deep, deep) == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('{not} then {"a": 2} and more', {"a": 2}),
        ("no braces", None),
        ("{" * 1_000_000, None),
    ],
)
def test_lenient_parse_is_for_notes(text: str, expected: object) -> None:
    assert find_json_object(text) == expected


@pytest.mark.parametrize(
    ("pred", "expected"),
    [
        (GOLD, 1.0),
        ('{"note": "", "urgent": false, "kind": "Other"}', 1.0),
        ('{"kind": "refund", "urgent": true}', 0.0),  # a key is missing
        ('{"kind": "refund", "urgent": true, "note": "", "x": 1}', 0.0),  # a key too many
        ('{"kind": "complaint", "urgent": true, "note": ""}', 0.0),  # outside the closed set
        ('{"kind": "refund", "urgent": 1, "note": ""}', 0.0),  # 1 is not true
        ('{"kind": ["refund"], "urgent": true, "note": ""}', 0.0),
        ("refund", 0.0),
    ],
)
def test_json_valid(pred: str, expected: float) -> None:
    assert json_valid(pred, PROFILE) == expected


@pytest.mark.parametrize(
    ("pred", "expected"),
    [
        (GOLD, 1.0),
        ('{"kind": "REFUND", "urgent": true, "note": "Wants the money back by next Friday."}', 1.0),
        ('{"kind": "other", "urgent": true, "note": "wants the money back by next Friday"}', 2 / 3),
        ('{"kind": "refund", "urgent": true, "note": "money back"}', (2 + 2 * 2 / (2 + 6)) / 3),  # long text: token F1
        ('{"kind": "refund", "urgent": "true", "note": 3}', 1 / 3),  # types count
        ('{"urgent": true}', 1 / 3),
        ("{}", 0.0),
        ("not json", 0.0),
    ],
)
def test_json_fields(pred: str, expected: float) -> None:
    assert json_fields(pred, GOLD, PROFILE) == pytest.approx(expected)


def test_json_scores_without_a_usable_reference_are_not_measured() -> None:
    assert json_fields("{}", "not json", PROFILE) is None
    assert json_exact("{}", "[]") is None
    assert json_fields("{}", "{}", PROFILE) == 1.0
    assert json_fields('{"a": 1}', "{}", PROFILE) == 0.0


def test_short_text_and_numbers_are_all_or_nothing() -> None:
    profile = TaskProfile(kind="json", evidence="", json_keys=("a",))
    assert json_fields('{"a": "one two three four"}', '{"a": "one two three four five"}', profile) == 0.0
    assert json_fields('{"a": 1.0}', '{"a": 1}', profile) == 1.0
    assert json_fields('{"a": true}', '{"a": 1}', profile) == 0.0
    assert json_fields('{"a": [1, {"b": "X."}]}', '{"a": [1, {"b": "x"}]}', profile) == 1.0
    assert json_fields('{"a": [1, 2]}', '{"a": [2, 1]}', profile) == 0.0


@pytest.mark.parametrize(
    ("pred", "expected"),
    [
        ('{"note": "Wants the money back by next Friday", "urgent": true, "kind": "refund"}', 1.0),
        (GOLD[:-1] + ', "x": 1}', 0.0),
        ('{"kind": "refund", "urgent": 1, "note": "wants the money back by next Friday"}', 0.0),
        ("", 0.0),
    ],
)
def test_json_exact(pred: str, expected: float) -> None:
    assert json_exact(pred, GOLD) == expected


def test_text_fields_in_order_without_keys() -> None:
    assert text_fields({"a": ["x", {"b": "y"}], "c": 1, "d": None}) == ("x", "y")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=8) | st.sampled_from(["six words are a long text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(OBJECTS, OBJECTS)
def test_fields_in_range_and_implied_by_exact(a: dict[str, object], b: dict[str, object]) -> None:
    profile = TaskProfile(kind="json", evidence="", json_keys=tuple(sorted(b)))
    pred, gold = json.dumps(a), json.dumps(b)
    fields, exact = json_fields(pred, gold, profile), json_exact(pred, gold)
    assert fields is not None and 0.0 <= fields <= 1.0
    assert exact in (0.0, 1.0)
    assert exact == json_exact(gold, pred)
    assert json_exact(gold, gold) == 1.0
    if exact == 1.0:
        assert fields == 1.0
        assert json_valid(pred, profile) == 1.0


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_scored(text: str) -> None:
    assert json_valid(text, PROFILE) in (0.0, 1.0)
    assert json_fields(text, GOLD, PROFILE) is not None
    assert label_valid(text, ("a",)) in (0.0, 1.0)
