"""The JSON schema that the training answers keep, for holding answers to it while they are written.

It says what `json_valid` asks for (exactly the usual keys, values of closed sets within them), the kind of every other value, and the order
of the keys. An answer that keeps it and is written as the training answers are comes out the same with and without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from luthier.core.types import Example, TaskProfile
from luthier.data.profile import as_text, parse_object

KEPT_BY = 0.98  # of the training answers: fewer, and holding to it would take right answers away
MIN_ANSWERS = 20
MAX_SCHEMA_CHARS = 32 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSchema:
    """`text` is the schema as JSON; empty where there is none, with the reason in `why_not`."""

    text: str = ""
    why_not: str = ""


def learn_schema(train: Sequence[Example], profile: TaskProfile) -> AnswerSchema:
    """The schema of JSON tasks; none for others. Learnt from train alone."""
    if profile.kind != "json":
        return AnswerSchema()
    answers = [row.response for row in train if row.desirable is not False]
    objects = [found for text in answers if (found := parse_object(text)) is not None]
    if len(answers) < MIN_ANSWERS:
        return AnswerSchema(why_not=f"{len(answers)} training answers are too few to read a schema from")
    properties = {key: _property(key, [found[key] for found in objects if key in found], profile) for key in profile.json_keys}
    schema = {"type": "object", "properties": properties, "required": list(profile.json_keys), "additionalProperties": False}
    text = json.dumps(schema, ensure_ascii=False)
    if len(text) > MAX_SCHEMA_CHARS:
        return AnswerSchema(why_not="their schema is too long")
    kept = sum(keeps_schema(answer, schema) for answer in answers)
    if kept < KEPT_BY * len(answers):
        return AnswerSchema(
            why_not=f"{len(answers) - kept:,} of {len(answers):,} training answers have other keys, order or spacing than most, or escapes"
        )
    return AnswerSchema(text=text)


def keeps_schema(answer: str, schema: Mapping[str, Any]) -> bool:
    """Whether an answer could be written when held to a schema made here.

    That is: its keys in their order, values of the right kind or set, one space behind , and :, letters as they are and not escaped.
    """
    found = parse_object(answer)
    properties = cast("Mapping[str, Mapping[str, Any]]", schema["properties"])
    if found is None or list(found) != list(properties):
        return False
    if not all(_fits(found[key], wanted) for key, wanted in properties.items()):
        return False
    return answer.strip() == json.dumps(found, ensure_ascii=False)


def _property(key: str, values: Sequence[object], profile: TaskProfile) -> dict[str, Any]:
    """A closed set with its values as they are spelled, or the kinds there are."""
    if key in profile.json_enums:
        spelled = {json.dumps(value, ensure_ascii=False, sort_keys=True): value for value in values if as_text(value) is not None}
        return {"enum": [spelled[text] for text in sorted(spelled)]}
    kinds = sorted({json_kind(value) for value in values})
    if "number" in kinds:  # holds the whole ones too
        kinds = [kind for kind in kinds if kind != "integer"]
    return {"type": kinds[0] if len(kinds) == 1 else kinds}


def json_kind(value: object) -> str:
    """The JSON schema type of a value."""
    match value:
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case float():
            return "number"
        case None:
            return "null"
        case list():
            return "array"
        case _:
            return "object"


def _fits(value: object, wanted: Mapping[str, Any]) -> bool:
    if "enum" in wanted:
        return any(value == one and type(value) is type(one) for one in wanted["enum"])
    kinds = [wanted["type"]] if isinstance(wanted["type"], str) else list(wanted["type"])
    kind = json_kind(value)
    return kind in kinds or (kind == "integer" and "number" in kinds)
