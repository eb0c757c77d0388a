"""What a server holds an answer to: the field `response_format` with a JSON schema, in the subset that OpenAI's strict mode takes.

Its rules: an object at the root, every key required and no other allowed, a type beside every set of values, and limits on their number
(developers.openai.com/api/docs/guides/structured-outputs, "Supported schemas"). What keeps them is also taken by vLLM, llama.cpp, Ollama,
Gemini and `luthier serve`. The fields of one server alone (`structured_outputs`, `grammar`) are not sent: others refuse what they do not
know. A label becomes an object with the label as its only value, and is taken out of it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from luthier.core.types import BROKE, HELD
from luthier.data.answer_schema import json_kind
from luthier.data.profile import parse_object

KEY = "answer"  # of the object that a label stands in
WRAPPER_TOKENS = 16  # what the object around a label may take, in any tokenizer
MAX_VALUES = 1000  # closed sets of a schema, together
MAX_LONG_SET, MAX_LONG_SET_CHARS = 250, 15_000  # a set of more values than this may have so many characters
MAX_CHARS = 120_000  # of keys and closed values together
MAX_KEYS = 5000

Json = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerForm:
    """A strict schema as JSON text, or why there is none. `labels`: the answer is one of these, inside the object."""

    schema: str = ""
    labels: tuple[str, ...] = ()
    why_not: str = ""

    @property
    def field(self) -> Json:
        """The `response_format` of a request."""
        return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": json.loads(self.schema)}}

    @property
    def extra_tokens(self) -> int:
        """What the answer takes besides its own words."""
        return WRAPPER_TOKENS if self.labels else 0

    def unwrap(self, text: str) -> str:
        """The answer itself. What is not in the form stays as it was written, to be scored as that."""
        found = parse_object(text) if self.labels else None
        value = None if found is None or set(found) != {KEY} else found[KEY]
        return value if isinstance(value, str) else text

    def is_kept_by(self, text: str) -> bool:
        """Whether a text, as the server wrote it, is in the form."""
        found, wanted = parse_object(text), cast("Mapping[str, Mapping[str, object]]", json.loads(self.schema)["properties"])
        return found is not None and set(found) == set(wanted) and all(_fits(found[key], wanted[key]) for key in wanted)

    def is_answer(self, text: str) -> bool:
        """Whether an answer, taken out of its object, is one that the form allows."""
        return text in self.labels if self.labels else self.is_kept_by(text)


FREE = ServerForm()


@lru_cache(maxsize=64)
def form_of(choices: tuple[str, ...], json_schema: str) -> ServerForm:
    """The form of an answer that is held to labels or to a schema as `learn_schema` makes them; `FREE` for neither."""
    if choices:
        schema: Json = _closed_object({KEY: {"type": "string", "enum": list(choices)}})
    elif json_schema:
        properties = cast("Mapping[str, Mapping[str, object]]", json.loads(json_schema)["properties"])
        nested = next((key for key, wanted in properties.items() if not {"array", "object"}.isdisjoint(_kinds(wanted))), None)
        if nested is not None:
            return ServerForm(why_not=f"the values of {nested[:60]!r} are lists or objects, and a strict schema must name what they hold")
        schema = _closed_object({key: _typed(wanted) for key, wanted in properties.items()})
    else:
        return FREE
    problem = _beyond_limits(cast("Mapping[str, Json]", schema["properties"]))
    return ServerForm(why_not=problem) if problem else ServerForm(schema=json.dumps(schema), labels=choices)


def held_words(form: ServerForm, why_free: str, answers: Sequence[str]) -> str:
    """What a record says of an arm's answers: what they were held to and how many of them are not in it, or why they were free."""
    if why_free:
        return f"free: {why_free}"
    broken = sum(not form.is_answer(text) for text in answers)
    what = f"{len(form.labels):,} labels" if form.labels else "JSON schema of the training answers"
    return f"{HELD} {what} by the server (response_format)" + (f"; {broken:,} of {len(answers):,} {BROKE}" if broken else "")


def _closed_object(properties: Mapping[str, object]) -> Json:
    return {"type": "object", "properties": dict(properties), "required": list(properties), "additionalProperties": False}


def _typed(wanted: Mapping[str, object]) -> Json:
    """One key's schema with a type beside its closed set; several types as alternatives, null aside."""
    kinds = _kinds(wanted)
    if len(set(kinds) - {"null"}) > 1:
        return {"anyOf": [_of_kind(wanted, [kind]) for kind in kinds]}
    return _of_kind(wanted, kinds)


def _of_kind(wanted: Mapping[str, object], kinds: Sequence[str]) -> Json:
    out: Json = {"type": kinds[0] if len(kinds) == 1 else list(kinds)}
    if "enum" in wanted:
        out["enum"] = [value for value in cast("list[object]", wanted["enum"]) if json_kind(value) in kinds]
    return out


def _kinds(wanted: Mapping[str, object]) -> list[str]:
    if "enum" in wanted:
        return sorted({json_kind(value) for value in cast("list[object]", wanted["enum"])})
    kinds = wanted["type"]
    return [kinds] if isinstance(kinds, str) else list(cast("list[str]", kinds))


def _beyond_limits(properties: Mapping[str, Json]) -> str:
    parts = [part for one in properties.values() for part in cast("list[Json]", one.get("anyOf", [one]))]
    sets = [cast("list[object]", part["enum"]) for part in parts if "enum" in part]
    sizes = [sum(len(value) for value in values if isinstance(value, str)) for values in sets]
    if (number := sum(map(len, sets))) > MAX_VALUES:
        return f"{number:,} labels or closed values are more than the {MAX_VALUES:,} of a strict schema"
    if any(len(values) > MAX_LONG_SET and size > MAX_LONG_SET_CHARS for values, size in zip(sets, sizes, strict=True)):
        return f"more than {MAX_LONG_SET} labels or closed values have more than {MAX_LONG_SET_CHARS:,} characters together"
    if len(properties) > MAX_KEYS or sum(sizes) + sum(map(len, properties)) > MAX_CHARS:
        return f"the keys and values are more than the {MAX_KEYS:,} keys or {MAX_CHARS:,} characters of a strict schema"
    return ""


def _fits(value: object, wanted: Mapping[str, object]) -> bool:
    if "anyOf" in wanted:
        return any(_fits(value, part) for part in cast("list[Json]", wanted["anyOf"]))
    kind, kinds = json_kind(value), _kinds({"type": wanted["type"]})
    if "enum" in wanted:
        return any(value == one and json_kind(one) == kind for one in cast("list[object]", wanted["enum"]))
    return kind in kinds or (kind == "integer" and "number" in kinds)
