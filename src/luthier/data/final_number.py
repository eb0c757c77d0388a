"""The number an answer comes to: worked answers end in one, and only that one is right or wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

FORMS = ("#### 42", "\\boxed{42}")  # how worked answers mark their number: GSM8K (Cobbe et al. 2021), MATH (Hendrycks et al. 2021)
MAX_DIGITS = 60  # of a number that is compared; longer ones are no answers
_NUMBER = re.compile(r"(?<![\w.])[-\u2212](?=[$€£]?[0-9.])|[0-9][0-9,]*(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+")
_MARKS = re.compile(r"####|\\boxed\s*\{")


def final_number(text: str) -> Decimal | None:
    """The first number after the last mark, else the last number; None if there is none.

    Thousands commas, currency and percent signs do not count. A hyphen after a word, a digit or a point is no sign.
    """
    marks = list(_MARKS.finditer(text))
    found = _numbers(text[marks[-1].end() :])[:1] if marks else _numbers(text)[-1:]
    return found[0] if found else None


def number_form(responses: Sequence[str], share: float) -> str:
    """How at least `share` of the responses give a final number: one of `FORMS`, "42" for bare numbers, or "" if they do not."""
    least = share * len(responses)
    for form, mark in zip(FORMS, ("####", "\\boxed"), strict=True):
        if sum(mark in text and final_number(text) is not None for text in responses) >= least > 0:
            return form
    bare = sum(re.fullmatch(r"[-\u2212]?\s*[$€£]?\s*[0-9][0-9,]*(\.[0-9]+)?\s*%?", text.strip()) is not None for text in responses)
    return "42" if bare >= least > 0 else ""


def _numbers(text: str) -> list[Decimal]:
    found: list[Decimal] = []
    is_negative = False
    for match in _NUMBER.finditer(text):
        word = match[0]
        if word in ("-", "\u2212"):
            is_negative = True
            continue
        digits = word.replace(",", "")
        if len(digits) <= MAX_DIGITS:
            found.append(-Decimal(digits) if is_negative else Decimal(digits))
        is_negative = False
    return found
