from __future__ import annotations

import json
import random

import pytest
from tests.unit.data_check.make_rows import pairs, row, rows, sentences

from luthier.data.profile import parse_object, profile_task, stratum_of


def answers(*texts: str) -> tuple:  # type: ignore[type-arg]
    return pairs(*((f"question {i}", text) for i, text in enumerate(texts)))


def test_labels_most_frequent_first_in_their_usual_spelling() -> None:
    found = profile_task(answers(*["refund"] * 5, *["Card lost"] * 9, "card lost.", *["top up"] * 6))
    assert found.kind == "label"
    assert found.labels == ("Card lost", "top up", "refund")
    assert found.max_response_chars == 10
    assert "21 responses are 3 distinct short answers" in found.evidence


def test_many_labels_with_a_few_rows_each() -> None:
    assert profile_task(answers(*(f"label_{i % 77}" for i in range(400)))).kind == "label"


def test_one_rare_label_is_still_a_label() -> None:
    assert profile_task(answers(*["yes"] * 30, *["no"] * 29, "maybe")).labels == ("yes", "no", "maybe")


def test_numbers_that_repeat_are_no_closed_set() -> None:
    rng = random.Random("numbers")
    found = profile_task(answers(*(str(int(rng.paretovariate(0.7))) for _ in range(2000))))  # a long tail, as in sums
    assert found.kind == "short"
    assert found.labels == ()


def test_short_and_text() -> None:
    assert profile_task(answers(*(f"in {text.split()[0]} {i}" for i, text in enumerate(sentences(50, name="short"))))).kind == "short"
    assert profile_task(answers(*sentences(50, name="text"))).kind == "text"
    assert profile_task(answers(*["我们将在三个工作日内把您的织布机寄到您所在的地址" * 5 + str(i) for i in range(50)])).kind == "text"


def test_a_few_fixed_long_replies_are_not_labels() -> None:
    replies = sentences(4, name="replies")
    assert profile_task(answers(*(replies[i % 4] for i in range(100)))).kind == "text"


def test_json_keys_in_order_and_closed_sets() -> None:
    rng = random.Random("json")
    texts = []
    for i, reply in enumerate(sentences(200, name="json")):
        answer: dict[str, object] = {
            "intent": rng.choice(["price", "visit", "return"]),
            "reply": reply,
            "handover": rng.random() < 0.2,
            "n": i % 3,
        }
        if i % 50 == 0:
            answer["note"] = "rare"
        texts.append(json.dumps(answer))
    found = profile_task(answers(*texts))
    assert found.kind == "json"
    assert found.json_keys == ("intent", "reply", "handover", "n")
    assert set(found.json_enums) == {"intent", "handover"}
    assert set(found.json_enums["intent"]) == {"price", "visit", "return"}
    assert found.json_enums["handover"] == ("false", "true")


def test_json_needs_95_percent_objects() -> None:
    good = [json.dumps({"n": i}) for i in range(95)]
    assert profile_task(answers(*good, *["[1]"] * 5)).kind == "json"
    assert profile_task(answers(*good[:94], *[f"[{i}]" for i in range(6)])).kind != "json"


def test_null_belongs_to_an_optional_closed_set() -> None:
    found = profile_task(answers(*(json.dumps({"size": size}) for size in ("S", "M", None) * 20)))
    assert found.json_enums == {"size": ("M", "null", "S")}


@pytest.mark.parametrize("text", ["[1]", '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1} x', "{" * 5000, "", "null"])
def test_not_an_object(text: str) -> None:
    assert parse_object(text) is None


def test_strata() -> None:
    labels = profile_task(answers(*["a", "b"] * 10))
    assert stratum_of("A.", labels) == "a"
    objects = profile_task(answers(*['{"x": "a", "y": true}', '{"x": "b", "y": false}'] * 10))
    assert stratum_of('{"y": true, "x": "a"}', objects) == stratum_of('{"x": "a", "y": true}', objects)
    assert stratum_of("broken", objects) != stratum_of('{"x": "a", "y": true}', objects)


def test_raw_text_unwanted_answers_and_nothing() -> None:
    assert profile_task(rows([row("", "some text", kind="text")])).kind == "text"
    assert profile_task(()).kind == "text"
    wanted = [row(f"q{i}", "yes", kind="kto", desirable=True) for i in range(9)]
    kept = profile_task(rows([*wanted, row("q", "x" * 500, kind="kto", desirable=False)]))
    assert kept.labels == ("yes",)
