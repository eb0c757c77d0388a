"""The schema that training answers keep: what is in it, and when there is none."""

from __future__ import annotations

import json

import pytest

from luthier.core.types import Example
from luthier.data.answer_schema import AnswerSchema, keeps_schema, learn_schema
from luthier.data.profile import profile_task


def rows(answers: list[str]) -> list[Example]:
    return [Example(id=f"i{n}", path="t", line=n, kind="instruct", input=f"q{n}", response=text) for n, text in enumerate(answers)]


def _written(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def answer(n: int) -> dict[str, object]:
    weight = n / 2 if n % 3 else 1
    return {"intent": ["price", "visit"][n % 2], "reply": f'It costs €{n}, "net".', "items": n, "weight": weight, "open": n % 2 == 0}


def test_closed_sets_kinds_and_order_are_those_of_the_training_answers() -> None:
    train = rows([_written(answer(n)) for n in range(40)])
    profile = profile_task(train)
    schema = json.loads(learn_schema(train, profile).text)
    assert list(schema["properties"]) == schema["required"] == ["intent", "reply", "items", "weight", "open"]
    assert schema["properties"]["intent"] == {"enum": ["price", "visit"]} and schema["properties"]["open"] == {"enum": [False, True]}
    assert [schema["properties"][key]["type"] for key in ("reply", "items", "weight")] == ["string", "integer", "number"]
    assert schema["additionalProperties"] is False
    good = answer(3)
    assert keeps_schema(_written(good), schema) and not keeps_schema(json.dumps(good), schema)  # € as it is, not as \\u20ac
    bad: list[dict[str, object]] = [
        {**good, "intent": "other"}, {**good, "open": 1}, {**good, "reply": 3}, {**good, "items": True}, {**good, "more": 1},
        dict(reversed(good.items())), {key: value for key, value in good.items() if key != "open"},
    ]  # fmt: skip
    assert not any(keeps_schema(_written(one), schema) for one in bad)
    assert not keeps_schema(json.dumps(good, indent=1, ensure_ascii=False), schema) and not keeps_schema("x", schema)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([json.dumps(answer(n), separators=(",", ":")) for n in range(40)], "other keys, order or spacing"),
        ([_written(answer(n) if n % 10 else dict(reversed(answer(n).items()))) for n in range(40)], "4 of 40 training answers"),
        ([json.dumps(answer(n)) for n in range(40)], "escapes"),
        ([_written(answer(n)) for n in range(12)], "too few"),
    ],
)
def test_no_schema_where_it_would_take_right_answers_away(answers: list[str], reason: str) -> None:
    train = rows(answers)
    found = learn_schema(train, profile_task(train))
    assert not found.text and reason in found.why_not


def test_other_tasks_have_none_and_need_no_reason() -> None:
    train = rows(["yes", "no"] * 30)
    assert learn_schema(train, profile_task(train)) == AnswerSchema()
