"""The one normalisation: what counts as the same text, in comparing rows and in scoring answers alike."""

from __future__ import annotations

import re
import unicodedata

# Scripts written without spaces: one character counts as one word, as MLQA and the multilingual ROUGE variants do.
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")

_MAX_PASSES = 4
_TRAILING = " .,;:!?…。、،؛؟۔।॥"
_SENTENCE_MARKS = re.compile("[.,;:!?…。、،؛؟۔।॥'\"`()\\[\\]{}“”‘’«»¿¡]+|(?<=[^\\W\\d_])[-‐–](?=[^\\W\\d_])")  # and hyphens between letters


def normalise(text: str) -> str:
    """NFKC, case folded, white space collapsed, sentence punctuation at the end stripped; idempotent.

    A text that is nothing but such punctuation keeps it, so "?" and "!" stay different. Marks that belong to a value
    ("%", ")", "€") are not punctuation here. Source: docs of `unicodedata`; Unicode 15, section 3.13 (caseless matching).
    """
    if text.isascii():
        folded = text.lower()
    else:
        folded = _fold(text)
        for _ in range(_MAX_PASSES):  # folding can make text that NFKC changes again; two passes are enough in practice
            again = _fold(folded)
            if again == folded:
                break
            folded = again
    collapsed = " ".join(folded.split())
    return collapsed.rstrip(_TRAILING) or collapsed


def loosen(text: str) -> str:
    """`normalise`, and sentence punctuation, quotes and brackets removed everywhere: equal for texts of the same words.

    A hyphen between letters is a space. Signs that carry meaning in sums, code and part numbers (+ - * / < > = % # _ @) stay.
    A text without anything else keeps its punctuation.
    """
    clean = normalise(text)
    return " ".join(_SENTENCE_MARKS.sub(" ", clean).split()) or clean


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
