"""Test rows that a model may have seen in training.

Four nets, from fine to coarse: the same prompt, the same but for case, spacing and punctuation, character 5-gram Jaccard similarity, and
containment of word 8-grams (n = 8 as in PaLM and ConTAM). Strings only: a paraphrase in other words passes all of them.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.core.types import Example
from luthier.data.duplicates import prompt_key, varying_text
from luthier.data.normalise import loosen
from luthier.data.similar import similar_pairs

NGRAM_WORDS = 8
CONTAINED_SHARE = 0.8
BOILERPLATE_SHARE = 0.05  # word 8-grams in more of the training prompts than this are a template
BOILERPLATE_MIN_ROWS = 20

Pair = tuple[int, int]  # position of the training row, of the test row
LeakKind = Literal["exact", "spelling", "near", "contained", "answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """A test row and a training row that gives it away. `similarity`: Jaccard, or the share of 8-grams contained."""

    kind: LeakKind
    test: Example
    train: Example
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaks:
    """Leaks by kind; a pair stands under the strictest kind of prompt leak it shows, and under answers as well if it gives one away.

    Where several training rows meet several test rows in one text, each row is listed, not each pair.
    """

    exact: tuple[Leak, ...]
    spelling: tuple[Leak, ...]
    near: tuple[Leak, ...]
    contained: tuple[Leak, ...]
    answers: tuple[Leak, ...]

    @property
    def prompts(self) -> tuple[Leak, ...]:
        """All but the answers."""
        return (*self.exact, *self.spelling, *self.near, *self.contained)


def find_leaks(train: Sequence[Example], test: Sequence[Example], *, threshold: float = 0.8) -> Leaks:
    """All training rows whose prompt gives a test prompt, or a test answer of at least eight words, away.

    `exact`: the same prompt after `normalise`. `spelling`: the same words. `near`: Jaccard >= `threshold`. `contained`: at least 80 % of
    the word 8-grams of the test prompt stand in one training prompt. `answers`: the same for the test answer.
    """
    train_texts, test_texts = [varying_text(e) for e in train], [varying_text(e) for e in test]
    train_loose, test_loose = [loosen(text) for text in train_texts], [loosen(text) for text in test_texts]
    exact = _meeting([prompt_key(e) for e in train], [prompt_key(e) for e in test])
    seen = set(exact)
    spelling = [pair for pair in _meeting(train_loose, test_loose) if pair not in seen]
    by_text = (_positions(train_loose), _positions(test_loose))
    seen.update(spelling)
    near = {pair: s for pair, s in _similar(by_text, threshold).items() if pair not in seen}
    seen.update(near)
    same = set(train_loose) & set(test_loose)  # met above already, whichever rows were listed for them
    contained = {
        (i, j): s
        for (i, j), s in _contained(train_texts, test_texts).items()
        if (i, j) not in seen and not (train_loose[i] == test_loose[j] and train_loose[i] in same)
    }
    answers = _contained([_shown(e) for e in train], [e.response if e.kind == "instruct" else "" for e in test])

    def leaks(kind: LeakKind, found: Mapping[Pair, float]) -> tuple[Leak, ...]:
        return tuple(Leak(kind=kind, test=test[j], train=train[i], similarity=found[i, j]) for i, j in sorted(found))

    return Leaks(
        exact=leaks("exact", dict.fromkeys(exact, 1.0)),
        spelling=leaks("spelling", dict.fromkeys(spelling, 1.0)),
        near=leaks("near", near),
        contained=leaks("contained", contained),
        answers=leaks("answer", answers),
    )


def find_given_answers(examples: Sequence[Example]) -> tuple[Leak, ...]:
    """Rows (`test`) whose answer of at least eight words stands in the prompt of another row (`train`), which has another prompt."""
    asked = [e.response if e.kind == "instruct" else "" for e in examples]
    found = _contained([_shown(e) for e in examples], asked)
    keys = [prompt_key(e) for e in examples]
    return tuple(
        Leak(kind="answer", test=examples[j], train=examples[i], similarity=found[i, j]) for i, j in sorted(found) if keys[i] != keys[j]
    )


def ngrams(text: str) -> set[tuple[str, ...]]:
    """The word 8-grams of the loosened text; empty below eight words."""
    words = loosen(text).split()
    return {tuple(words[k : k + NGRAM_WORDS]) for k in range(len(words) - NGRAM_WORDS + 1)}


def _shown(example: Example) -> str:
    return "\n".join(turn.content for turn in example.prompt)


def _positions(texts: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        found[text].append(i)
    return found


def _meeting(train_keys: Sequence[str], test_keys: Sequence[str]) -> list[Pair]:
    train_at, test_at = _positions(train_keys), _positions(test_keys)
    return [pair for key, rows in train_at.items() if key in test_at for pair in _each_once(rows, test_at[key])]


def _each_once(train_rows: Sequence[int], test_rows: Sequence[int]) -> list[Pair]:
    """Every row in a pair with the first of the other side: n + m - 1 pairs instead of n x m."""
    return [*((i, test_rows[0]) for i in train_rows), *((train_rows[0], j) for j in test_rows[1:])]


def _similar(by_text: tuple[Mapping[str, Sequence[int]], Mapping[str, Sequence[int]]], threshold: float) -> dict[Pair, float]:
    train_at, test_at = by_text
    texts = list(dict.fromkeys((*train_at, *test_at)))
    found: dict[Pair, float] = {}
    for a, b, similarity in similar_pairs(texts, threshold=threshold):
        for left, right in ((texts[a], texts[b]), (texts[b], texts[a])):
            if left in train_at and right in test_at:
                for pair in _each_once(train_at[left], test_at[right]):
                    found[pair] = similarity
    return found


def _contained(train_texts: Sequence[str], test_texts: Sequence[str]) -> dict[Pair, float]:
    """`_contained_texts` for rows, each distinct text looked at once: a canned answer may stand under half of all rows.

    Every row is in some pair; rows with the same test text are all named beside the first training text that holds it, and
    beside further ones only the first of them is.
    """
    train_at, test_at = _positions(train_texts), _positions(test_texts)
    train_rows, test_rows = list(train_at.values()), list(test_at.values())
    out: dict[Pair, float] = {}
    named: set[int] = set()
    for (a, b), share in _contained_texts(list(train_at), list(test_at)).items():
        for pair in _each_once(train_rows[a], test_rows[b][:1] if b in named else test_rows[b]):
            out[pair] = share
        named.add(b)
    return out


def _contained_texts(train_texts: Sequence[str], test_texts: Sequence[str]) -> dict[Pair, float]:
    """(training text, test text) -> share of the test text's 8-grams in the training text, where that is at least 80 %.

    8-grams of a template, which many training texts share, say nothing and do not count.
    """
    wanted: dict[tuple[str, ...], list[int]] = defaultdict(list)
    sizes: Counter[int] = Counter()
    for j, text in enumerate(test_texts):
        for gram in ngrams(text):
            wanted[gram].append(j)
            sizes[j] += 1
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, text in enumerate(train_texts):
        for gram in ngrams(text):
            if gram in wanted:
                holders[gram].append(i)
    limit = max(2.0, BOILERPLATE_SHARE * len(train_texts)) if len(train_texts) >= BOILERPLATE_MIN_ROWS else math.inf
    counts: Counter[Pair] = Counter()
    for gram, rows in holders.items():
        if len(rows) > limit:
            sizes.subtract(wanted[gram])
        else:
            counts.update((i, j) for i in rows for j in wanted[gram])
    return {(i, j): count / sizes[j] for (i, j), count in counts.items() if count >= CONTAINED_SHARE * sizes[j]}
