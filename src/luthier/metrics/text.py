"""Text overlap: exact match, token F1, ROUGE-L, chrF, edit similarity. All in [0, 1], and 1 wherever `exact_match` is 1.

All but chrF, which weighs recall, are symmetric.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter

from luthier.data.normalise import UNSPACED, normalise

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_PUNCTUATION = frozenset(string.punctuation)

MAX_ROUGE_TOKENS = 20_000
MAX_EDIT_CHARS = 20_000
CHRF_ORDER = 6
CHRF_BETA = 2


def exact_match(pred: str, gold: str) -> float:
    """1.0 if both are the same text after `normalise`, else 0.0."""
    return 1.0 if normalise(pred) == normalise(gold) else 0.0


def token_f1(pred: str, gold: str) -> float:
    """Token F1 by the rules of the SQuAD 2.0 evaluation script (Rajpurkar et al. 2018), after `normalise`.

    Punctuation is removed (not replaced by a space: "u.s." is "us"), then the articles a, an, the; the rest is split at
    white space. If either side has no token left, the score is 1.0 when neither has, else 0.0. Beyond the script: Unicode
    punctuation counts as punctuation, and scripts without spaces are split into characters.
    """
    pred_tokens, gold_tokens = _squad_tokens(pred), _squad_tokens(gold)
    if not pred_tokens or not gold_tokens:
        return 1.0 if pred_tokens == gold_tokens else 0.0
    common = sum((Counter(pred_tokens) & Counter(gold_tokens)).values())
    # 2c / (p + g) equals the harmonic mean of c/p and c/g, without rounding twice.
    return 2 * common / (len(pred_tokens) + len(gold_tokens))


def rouge_l(pred: str, gold: str) -> float:
    """ROUGE-L F1 (Lin 2004): longest common subsequence of word tokens, no stemming.

    Texts without any word token score 1.0 if they are the same after `normalise`, else 0.0. Beyond `MAX_ROUGE_TOKENS`
    tokens only the beginning is aligned while the lengths count in full, so such a score can be too low, never too high.
    """
    if normalise(pred) == normalise(gold):
        return 1.0
    pred_tokens, gold_tokens = word_tokens(pred), word_tokens(gold)
    if not pred_tokens or not gold_tokens:
        return 0.0
    common = _lcs_length(pred_tokens[:MAX_ROUGE_TOKENS], gold_tokens[:MAX_ROUGE_TOKENS])
    return 2 * common / (len(pred_tokens) + len(gold_tokens))


def chrf(pred: str, gold: str) -> float:
    """chrF2 (Popović 2015) as sacreBLEU computes it for one sentence, after `normalise`: runs of 1 to 6 characters without white space.

    Precision and recall are means over the lengths that both texts have; recall counts twice (beta 2).
    """
    a, b = ("".join(normalise(text).split()) for text in (pred, gold))
    if a == b:
        return 1.0
    precision = recall = 0.0
    orders = min(CHRF_ORDER, len(a), len(b))
    for n in range(1, orders + 1):
        ours, theirs = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (a, b))
        common = (ours & theirs).total()
        precision += common / ours.total()
        recall += common / theirs.total()
    if not precision or not recall:
        return 0.0
    precision, recall, weight = precision / orders, recall / orders, CHRF_BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall)


def edit_similarity(pred: str, gold: str) -> float:
    """1 - edit distance / length of the longer text, in characters after `normalise` (Levenshtein 1966).

    Beyond `MAX_EDIT_CHARS` characters only the beginnings are aligned and the rest counts as different: such a score is never too high.
    """
    a, b = normalise(pred), normalise(gold)
    if a == b:
        return 1.0
    head_a, head_b = a[:MAX_EDIT_CHARS], b[:MAX_EDIT_CHARS]
    rest = max(len(a) - len(head_a), len(b) - len(head_b))
    return max(0.0, 1 - (edit_distance(head_a, head_b) + rest) / max(len(a), len(b)))


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and substitutions that make one text the other; bit-parallel (Myers 1999, in Hyyrö's form of 2003)."""
    if not a:
        return len(b)
    where: dict[str, int] = {}
    for i, char in enumerate(a):
        where[char] = where.get(char, 0) | (1 << i)
    full, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    up, down, distance = full, 0, len(a)  # where the column grows, where it falls, and its lowest cell
    for char in b:
        match = where.get(char, 0)
        diagonal = (((match & up) + up) ^ up) | match | down
        right, left = down | (full & ~(diagonal | up)), up & diagonal
        distance += bool(right & last) - bool(left & last)
        right, left = (right << 1) | 1, left << 1
        up, down = full & (left | ~((match | down) | right)), full & right & (match | down)
    return distance


def word_tokens(text: str) -> tuple[str, ...]:
    """Words of the normalised text: punctuation, symbols and control characters separate; unspaced scripts by character."""
    clean = normalise(text)
    table: dict[int, str] = {}
    for char in set(clean):
        if unicodedata.category(char)[0] in "PSZC":
            table[ord(char)] = " "
        elif UNSPACED.match(char):
            table[ord(char)] = f" {char} "
    return tuple(clean.translate(table).split())


def _squad_tokens(text: str) -> tuple[str, ...]:
    """Tokens as in the SQuAD script: lower case, no punctuation, no articles."""
    clean = normalise(text)
    table: dict[int, str] = {}
    for char in set(clean):
        if char in _ASCII_PUNCTUATION or unicodedata.category(char)[0] == "P":
            table[ord(char)] = ""
        elif UNSPACED.match(char):
            table[ord(char)] = f" {char} "
    return tuple(_ARTICLES.sub(" ", clean.translate(table)).split())


def _lcs_length(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Length of the longest common subsequence, bit-parallel (Crochemore et al. 2001): one big-integer step a token of `b`."""
    where: dict[str, int] = {}
    for i, token in enumerate(a):
        where[token] = where.get(token, 0) | (1 << i)
    full = (1 << len(a)) - 1
    row = full  # a zero bit at i: the LCS grows at position i
    for token in b:
        match = row & where.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return len(a) - row.bit_count()
