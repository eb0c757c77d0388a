"""A classic classifier: TF-IDF of words, word pairs or runs of characters, multinomial logistic regression.

As a floor for tasks with a closed set of labels, and to tell two ways of writing apart (`evaluate/style.py`).

On scipy, which is here already, and not on scikit-learn as an option: a floor that some installations lack would make the verdict
depend on the installation. The problem is convex, so the solution is the same; tests hold it to the optimality conditions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from luthier.arms.index import words
from luthier.core.seeds import rng

FloatArray = NDArray[np.float64]
Terms = Literal["words", "pairs", "chars"]  # words; words and pairs of neighbours; runs of 2 to 4 characters, case and signs kept

# As many candidates as a prompting arm has, chosen on a held-out fifth of the training rows.
STRENGTHS = (1.0, 10.0, 100.0)  # inverse regularisation, scikit-learn's C
FLOOR_TERMS: tuple[Terms, ...] = ("words", "pairs")
MAX_CHOICE_ROWS = 2_000  # rows that choice is made on
MAX_FEATURES = 20_000  # the most frequent; a weight for each of these and each label must fit in memory
MAX_ITERATIONS = 200
CHAR_RUNS = (2, 3, 4)


@dataclass(frozen=True, slots=True)
class Vectoriser:
    """What texts are turned into vectors by: 1 + log(tf), smoothed idf, unit length."""

    columns: dict[str, int]
    idf_F: FloatArray
    terms: Terms

    def vectors(self, texts: Sequence[str]) -> csr_matrix:
        """Sparse matrix [len(texts), num features]; a text of unknown words is a row of zeros."""
        starts, columns, values = [0], list[int](), list[float]()
        for text in texts:
            counts = Counter(self.columns[term] for term in _terms(text, self.terms) if term in self.columns)
            weights = {column: (1 + math.log(count)) * float(self.idf_F[column]) for column, count in sorted(counts.items())}
            norm = math.sqrt(math.fsum(weight * weight for weight in weights.values()))
            columns += weights
            values += [weight / norm for weight in weights.values()]
            starts.append(len(columns))
        return csr_matrix((np.array(values), np.array(columns, dtype=np.int64), np.array(starts)), shape=(len(texts), len(self.columns)))


@dataclass(frozen=True, slots=True)
class Classifier:
    """Weights [num features, num labels] and bias [num labels]; the bias is not regularised."""

    vectoriser: Vectoriser
    labels: tuple[str, ...]
    weights_FK: FloatArray
    bias_K: FloatArray

    def __call__(self, text: str) -> str:
        """The most probable label; of equals the first by text."""
        return self.labels[int(np.argmax(self.logits([text])[0]))]

    def logits(self, texts: Sequence[str]) -> FloatArray:
        """[len(texts), num labels], in order of `labels`; the softmax of a row are its probabilities."""
        return np.asarray(self.vectoriser.vectors(texts) @ self.weights_FK + self.bias_K, dtype=np.float64)


def lazy_classifier(texts: Sequence[str], labels: Sequence[str], *, seed: int) -> Callable[[str], str]:
    """A classifier that is trained at its first answer: planning arms must cost nothing."""

    @cache
    def trained() -> Classifier:
        return train_classifier(texts, labels, seed=seed)

    def answer(text: str) -> str:
        return trained()(text)

    return answer


def train_classifier(texts: Sequence[str], labels: Sequence[str], *, seed: int) -> Classifier:
    """Choose words or pairs and the regularisation on a fifth of the rows (up to `MAX_CHOICE_ROWS`), then train on all rows with it."""
    order = list(range(len(texts)))
    rng(seed, "arms/classic").shuffle(order)
    looked_at = order[:MAX_CHOICE_ROWS]
    held_out, rest = looked_at[: len(looked_at) // 5], looked_at[len(looked_at) // 5 :]
    best = (STRENGTHS[1], FLOOR_TERMS[0])
    if held_out and len({labels[i] for i in rest}) > 1:
        right: dict[tuple[float, Terms], int] = {}
        for strength, terms in product(STRENGTHS, FLOOR_TERMS):
            found = fit_classifier([texts[i] for i in rest], [labels[i] for i in rest], strength=strength, terms=terms)
            right[strength, terms] = sum(found(texts[i]) == labels[i] for i in held_out)
        best = max(right, key=lambda way: (right[way], -FLOOR_TERMS.index(way[1]), -way[0]))  # of equals the simpler and smoother one
    return fit_classifier(texts, labels, strength=best[0], terms=best[1])


def fit_classifier(texts: Sequence[str], labels: Sequence[str], *, strength: float, terms: Terms = "words") -> Classifier:
    """Minimise strength * sum of cross-entropies + |weights|^2 / 2 by L-BFGS."""
    from scipy.optimize import minimize  # slow to load

    vectoriser = make_vectoriser(texts, terms)
    names = tuple(sorted(set(labels)))
    place = {name: k for k, name in enumerate(names)}
    gold_N = np.array([place[label] for label in labels])
    x_NF = vectoriser.vectors(texts)
    num_features, num_labels = len(vectoriser.columns), len(names)
    rows_N = np.arange(len(gold_N))

    def loss_and_gradient(flat: FloatArray) -> tuple[float, FloatArray]:
        weights_FK, bias_K = flat[:-num_labels].reshape(num_features, num_labels), flat[-num_labels:]
        logits_NK: FloatArray = x_NF @ weights_FK + bias_K
        logits_NK -= logits_NK.max(axis=1, keepdims=True)
        gold_logits_N = logits_NK[rows_N, gold_N]
        p_NK = np.exp(logits_NK)
        sums_N = p_NK.sum(axis=1)
        loss = strength * float((np.log(sums_N) - gold_logits_N).sum()) + 0.5 * float((weights_FK**2).sum())
        p_NK /= sums_N[:, None]
        p_NK[rows_N, gold_N] -= 1
        gradient = np.concatenate([(strength * (x_NF.T @ p_NK) + weights_FK).ravel(), strength * p_NK.sum(axis=0)])
        return loss, gradient

    start = np.zeros((num_features + 1) * num_labels)
    options = {"maxiter": MAX_ITERATIONS, "maxcor": 5, "ftol": 1e-9, "gtol": 1e-4}
    flat: FloatArray = np.asarray(minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x, dtype=np.float64)
    return Classifier(vectoriser, names, flat[:-num_labels].reshape(num_features, num_labels), flat[-num_labels:])


def _terms(text: str, terms: Terms) -> list[str]:
    if terms == "chars":
        flat = f" {' '.join(text.split())} "
        return [flat[at : at + size] for size in CHAR_RUNS for at in range(len(flat) - size + 1)]
    single = words(text)
    return [*single, *(f"{a} {b}" for a, b in pairwise(single))] if terms == "pairs" else list(single)


def make_vectoriser(texts: Sequence[str], terms: Terms) -> Vectoriser:
    """Learn columns and idf from `texts`."""
    frequency: Counter[str] = Counter()
    for text in texts:
        frequency.update(set(_terms(text, terms)))
    kept = sorted(sorted(frequency), key=lambda term: -frequency[term])[:MAX_FEATURES]
    idf_F = np.array([1 + math.log((1 + len(texts)) / (1 + frequency[term])) for term in kept], dtype=np.float64)
    return Vectoriser(columns={term: column for column, term in enumerate(kept)}, idf_F=idf_F, terms=terms)
