"""Rows whose label their nearest neighbours do not share: mislabelled, or on the border between two labels."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.core.hashing import sha256_text
from luthier.data.normalise import loosen

NUM_NEIGHBOURS = 5
MIN_AGREEING = 3  # of the neighbours, on one other label, and none on the row's own
MIN_SIMILARITY = 0.3  # cosine of the nearest neighbour; below it the neighbours say nothing
MAX_LOOKED_AT = 1000
MAX_POSTINGS = 500  # words in more rows than this do not look up neighbours

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """`positions`: rows whose neighbours agree on `other` instead of the row's label. `num_looked_at`: rows with near neighbours."""

    positions: tuple[int, ...]
    other: tuple[str, ...]
    num_looked_at: int


def disagreeing_rows(texts: Sequence[str], labels: Sequence[str]) -> Disagreement:
    """Compare each row's label with those of its five nearest rows by TF-IDF cosine of words.

    Up to 1,000 rows, chosen by their content, are compared with all rows. Of two equal texts one counts.
    """
    vectors = _tfidf(texts)
    postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for i, vector in enumerate(vectors):
        for term, weight in vector.items():
            postings[term].append((i, weight))
    chosen = sorted(range(len(texts)), key=lambda i: sha256_text(texts[i]))[:MAX_LOOKED_AT]
    positions: list[int] = []
    other: list[str] = []
    num_looked_at = 0
    for i in sorted(chosen):
        scores: dict[int, float] = defaultdict(float)
        for term, weight in vectors[i].items():
            if len(postings[term]) <= MAX_POSTINGS:
                for j, their_weight in postings[term]:
                    scores[j] += weight * their_weight
        scores.pop(i, None)
        nearest = heapq.nlargest(NUM_NEIGHBOURS, scores, key=scores.__getitem__)
        if len(nearest) < NUM_NEIGHBOURS or scores[nearest[0]] < MIN_SIMILARITY:
            continue
        num_looked_at += 1
        votes = Counter(labels[j] for j in nearest)
        label, count = min(votes.items(), key=lambda vote: (-vote[1], vote[0]))
        if count >= MIN_AGREEING and labels[i] not in votes:
            positions.append(i)
            other.append(label)
    return Disagreement(positions=tuple(positions), other=tuple(other), num_looked_at=num_looked_at)


def words(text: str) -> list[str]:
    """Words of the loosened text, in order."""
    return _WORD.findall(loosen(text))


def _tfidf(texts: Sequence[str]) -> list[dict[str, float]]:
    """Unit vectors of words, with 1 + log(tf) and smoothed idf."""
    counts: list[Counter[str]] = []
    frequency: Counter[str] = Counter()
    for text in texts:
        terms = Counter(words(text))
        counts.append(terms)
        frequency.update(terms.keys())
    vectors: list[dict[str, float]] = []
    for terms in counts:
        weights = {term: (1 + math.log(n)) * math.log((1 + len(texts)) / (1 + frequency[term])) for term, n in terms.items()}
        norm = math.sqrt(math.fsum(weight * weight for weight in weights.values())) or 1.0
        vectors.append({term: weight / norm for term, weight in weights.items() if weight > 0})
    return vectors
