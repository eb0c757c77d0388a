"""Length, reading level and register of free texts, and how far two sets of texts lie apart in them."""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from luthier.core.types import Estimate
from luthier.metrics.text import word_tokens

MAX_KEPT = 1_000  # training answers whose numbers are kept in the record

_SENTENCE_END = re.compile(r"[.!?。！？]+(?=\s|$)")
# What makes English text informal: contractions, and words for the reader and the writer. Exclamation marks and emoji in any language.
_INFORMAL = re.compile(r"\b\w+['’](?:t|s|re|ve|ll|d|m)\b|\b(?:you|your|yours|we|our|us|i|me|my)\b", re.IGNORECASE)

MEASURES = ("length", "reading level", "register")
MEASURE_WORDS = {
    "length": "words in an answer",
    "reading level": "school year that reads it easily (automated readability index, made for English)",
    "register": "informal marks in 100 words: contractions, you and we, exclamation marks, emoji (words are English ones)",
}


def measure_text(text: str, name: str) -> float | None:
    """One of `MEASURES`; None where the text has no word."""
    words = word_tokens(text)
    if not words:
        return None
    match name:
        case "length":
            return float(len(words))
        case "reading level":
            return _readability(text, words)
        case _:
            marks = len(_INFORMAL.findall(text)) + text.count("!") + sum(unicodedata.category(char) == "So" for char in text)
            return 100 * marks / len(words)


def _readability(text: str, words: Sequence[str]) -> float:
    """Automated readability index (Senter and Smith 1967): 4.71 characters a word + 0.5 words a sentence - 21.43."""
    sentences = max(1, len(_SENTENCE_END.findall(text)))
    return 4.71 * sum(map(len, words)) / len(words) + 0.5 * len(words) / sentences - 21.43


def distance(values: Sequence[float], reference: Sequence[float], num_clusters: int) -> Estimate:
    """Kolmogorov-Smirnov distance to the training answers: 0 the same distribution, 1 no overlap; with its 95 % interval.

    The reference is taken as it is (it is the target, not a sample). The interval is that of Dvoretzky, Kiefer and Wolfowitz with
    Massart's constant: the distance changes by no more than the distribution function does, which lies within sqrt(ln(40) / 2n).
    `n` there is the number of clusters, as if items of one cluster were one: never too narrow.
    """
    if not values or not reference:
        return Estimate(value=None, low=None, high=None, n=len(values), method="not measured")
    ours, theirs = sorted(values), sorted(reference)
    gap = max(
        abs(find(ours, x) / len(ours) - find(theirs, x) / len(theirs)) for find in (bisect_left, bisect_right) for x in {*ours, *theirs}
    )
    half = math.sqrt(math.log(40) / (2 * num_clusters))
    return Estimate(value=gap, low=max(0.0, gap - half), high=min(1.0, gap + half), n=len(values), method="DKW 95 %")
