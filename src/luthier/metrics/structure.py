"""Structured answers: is the label in the set, is the JSON what was asked for, which fields are right."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping

from luthier.core.types import TaskProfile
from luthier.data.normalise import normalise
from luthier.data.profile import is_writable
from luthier.metrics.text import token_f1

LONG_FIELD_WORDS = 5  # a text field with more words than this in the reference is scored by token F1
MAX_LENIENT_STARTS = 20
MAX_DEPTH = 64


def label_valid(pred: str, labels: Collection[str]) -> float:
    """1.0 if the answer is one of the labels after `normalise`, before any repair; else 0.0."""
    return 1.0 if normalise(pred) in {normalise(label) for label in labels} else 0.0


def parse_json_answer(text: str) -> dict[str, object] | None:
    """The answer as a JSON object, or None. Strict: white space aside, the whole answer is one object.

    Refused: code fences, words around it, arrays and scalars, NaN and Infinity, numbers that overflow, duplicate keys
    (readers disagree on which one counts), nesting deeper than `MAX_DEPTH`, half characters.
    """
    try:
        value: object = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _depth_ok(value) and is_writable(text, value) else None


def find_json_object(text: str) -> dict[str, object] | None:
    """The first JSON object anywhere in the text, or None. For notes and diagnosis only, never for a score."""
    start = text.find("{")
    for _ in range(MAX_LENIENT_STARTS):
        if start < 0:
            return None
        try:
            value, _end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
            continue
        return value if isinstance(value, dict) and _depth_ok(value) else None
    return None


def json_valid(pred: str, profile: TaskProfile) -> float:
    """1.0 if the answer parses strictly, has exactly the profile's keys, and every closed-set value is in its set."""
    answer = parse_json_answer(pred)
    if answer is None or set(answer) != set(profile.json_keys):
        return 0.0
    for key, allowed in profile.json_enums.items():
        if key in answer and not _in_enum(answer[key], allowed):
            return 0.0
    return 1.0


def json_fields(pred: str, gold: str, profile: TaskProfile) -> float | None:
    """Mean score over the reference's keys; 0.0 for an answer that does not parse, None if the reference does not.

    A field is right (1) or wrong (0) by equality after `normalise`, types included ("12" is not 12, 1.0 is 1). A text
    field outside the closed sets whose reference has more than `LONG_FIELD_WORDS` words scores its token F1. Keys the
    reference does not have cost nothing here; `json_valid` and `json_exact` see them.
    """
    wanted = parse_json_answer(gold)
    if wanted is None:
        return None
    answer = parse_json_answer(pred)
    if answer is None:
        return 0.0
    if not wanted:
        return 1.0 if not answer else 0.0
    return math.fsum(_field_score(key, answer, wanted, profile) for key in wanted) / len(wanted)


def json_exact(pred: str, gold: str) -> float | None:
    """1.0 if both objects have the same keys and equal values after `normalise`; None if the reference does not parse."""
    wanted = parse_json_answer(gold)
    if wanted is None:
        return None
    answer = parse_json_answer(pred)
    return 1.0 if answer is not None and _canonical(answer) == _canonical(wanted) else 0.0


def text_fields(value: object) -> tuple[str, ...]:
    """Every string value inside a parsed JSON value, keys left out, in order."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, dict):
        return tuple(text for item in value.values() for text in text_fields(item))
    if isinstance(value, list):
        return tuple(text for item in value for text in text_fields(item))
    return ()


def _field_score(key: str, answer: Mapping[str, object], wanted: Mapping[str, object], profile: TaskProfile) -> float:
    """One field: token F1 for long free text, equality for the rest; 0.0 where the answer lacks the key."""
    if key not in answer:
        return 0.0
    got, gold = answer[key], wanted[key]
    if isinstance(gold, str) and key not in profile.json_enums and len(gold.split()) > LONG_FIELD_WORDS:
        return token_f1(got, gold) if isinstance(got, str) else 0.0
    return 1.0 if _canonical(got) == _canonical(gold) else 0.0


def _in_enum(value: object, allowed: Collection[str]) -> bool:
    """Closed sets are kept as text, so a non-text value is compared by its JSON and its Python spelling."""
    spellings = {value} if isinstance(value, str) else {json.dumps(value, ensure_ascii=False), str(value)}
    return bool({normalise(s) for s in spellings} & {normalise(a) for a in allowed})


def _canonical(value: object) -> object:
    """A value that compares equal exactly when two JSON values mean the same: text normalised, true apart from 1."""
    if isinstance(value, str):
        return ("text", normalise(value))
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return value


def _depth_ok(value: object) -> bool:
    """Whether the value nests at most `MAX_DEPTH` deep, found without recursion."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return True
        level = inner
    return False


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"number out of range: {text[:20]}")
    return number


def _no_constant(name: str) -> object:
    raise ValueError(f"not JSON: {name}")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_pairs, parse_float=_finite_float, parse_constant=_no_constant)
