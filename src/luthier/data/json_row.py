"""One JSON object from untrusted text: what the standard decoder lets pass or fails on is refused with a reason."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import NoReturn, cast

from luthier.data.limits import Limits
from luthier.data.reject import RowError, clip, nul_character

# A whole string, or the rest of the text where it is not closed. Possessive: linear in the text, whatever it holds.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]+|\\.?)*+(?:"|\Z)|[\[\]{}]', re.DOTALL)
_NUL_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*+\\u0000")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")

_SYNTAX_FIX = "mend this record; a JSON library writes it correctly (in Python: json.dumps)"


def object_decoder(limits: Limits) -> Callable[[str], dict[str, object]]:
    """A function that decodes one JSON object, or raises RowError.

    Refused beyond bad syntax (RFC 8259 leaves all of these to the reader): brackets nested deeper than `max_depth`, numbers of
    more than `max_number_digits` characters, NaN, Infinity and numbers that overflow to it, a key given twice, more than
    `max_keys` keys in one object, lone surrogates, NUL, and anything at the top that is not an object.
    """

    def integer(digits: str) -> int:
        _check_number_length(digits, limits)
        return int(digits)

    def real(digits: str) -> float:
        _check_number_length(digits, limits)
        value = float(digits)
        if not math.isfinite(value):
            _refuse_constant(clip(digits, 40))
        return value

    def mapping(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(pairs) > limits.max_keys:
            raise RowError(
                "too_many_keys",
                f"an object has {len(pairs):,} keys; at most {limits.max_keys:,} are read",
                "keep the fields that are used, for example: jq -c '{instruction, input, output}' FILE > SMALLER",
            )
        fields = dict(pairs)
        if len(fields) != len(pairs):
            _refuse_duplicate_key(pairs)
        return fields

    decoder = json.JSONDecoder(object_pairs_hook=mapping, parse_int=integer, parse_float=real, parse_constant=_refuse_constant)

    def decode(text: str) -> dict[str, object]:
        if text.count("[") + text.count("{") > limits.max_depth:
            _check_depth(text, limits.max_depth)
        try:
            value: object = decoder.decode(text)
        except json.JSONDecodeError as error:
            if "\x00" in text:
                raise nul_character() from None
            raise RowError("not_json", f"not valid JSON: {error.msg} at character {error.pos + 1} of the record", _SYNTAX_FIX) from None
        if not isinstance(value, dict):
            raise RowError(
                "not_an_object",
                f"expected an object {{...}}, found {json_type(value)}",
                "write each row as one JSON object with named fields",
            )
        _check_characters(text, value)
        return cast("dict[str, object]", value)

    return decode


def json_type(value: object) -> str:
    """How JSON calls the type of a decoded value, with its article."""
    names: dict[type[object], str] = {
        str: "a text",
        bool: "a true/false value",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), "a value of another kind")


def _check_depth(text: str, max_depth: int) -> None:
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        bracket = match[0]
        if bracket in "[{":
            depth += 1
            if depth > max_depth:
                raise RowError(
                    "too_deep", f"brackets are nested more than {max_depth} deep", "remove the record, or write the nested part as one text"
                )
        elif bracket in "]}":
            depth -= 1


def _check_characters(text: str, value: object) -> None:
    # The plain searches are many times faster, and nearly always enough.
    if "\\u0000" in text and _NUL_ESCAPE.search(text):
        raise nul_character()
    if ("\\ud" in text or "\\uD" in text) and _SURROGATE_ESCAPE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise RowError(
                "lone_surrogate",
                "the record holds half of a UTF-16 pair (\\ud800 to \\udfff), which is no character and cannot be tokenised",
                "write the record again from its source; a text was cut in the middle of a character",
            ) from None


def _check_number_length(digits: str, limits: Limits) -> None:
    if len(digits) > limits.max_number_digits:
        raise RowError(
            "number_too_long",
            f"a number has {len(digits):,} characters; at most {limits.max_number_digits:,} are read",
            "write the number as a text, in quotes",
        )


def _refuse_constant(name: str) -> NoReturn:
    raise RowError("not_finite", f"{name} is not a finite number, and not JSON", "use null, or leave the field out")


def _refuse_duplicate_key(pairs: list[tuple[str, object]]) -> NoReturn:
    seen: set[str] = set()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))
    raise RowError("duplicate_key", f'the key "{clip(twice, 40)}" is given twice in one object', "keep one of the two values")
