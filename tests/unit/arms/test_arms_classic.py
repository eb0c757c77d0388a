from __future__ import annotations

import random

import numpy as np
import pytest

from luthier.arms.classic import fit_classifier, lazy_classifier, make_vectoriser, train_classifier

WORDS = {"card": ("card", "plastic", "pin"), "money": ("transfer", "cash", "euro"), "close": ("close", "leave", "cancel")}


def made(n: int, *, seed: int = 0, noise: float = 0.0) -> tuple[list[str], list[str]]:
    stream = random.Random(f"test/classic/{seed}")
    texts, labels = [], []
    for _ in range(n):
        label = stream.choice(sorted(WORDS))
        texts.append(f"please {stream.choice(WORDS[label])} {' '.join(stream.choices('abcdefghij', k=4))}")
        labels.append(stream.choice(sorted(WORDS)) if stream.random() < noise else label)
    return texts, labels


def test_vectors_by_hand() -> None:
    vectoriser = make_vectoriser(["a b", "a c"], "words")
    idf_a, idf_b = 1.0, 1 + np.log(3 / 2)
    rows = vectoriser.vectors(["a b b", "unknown"]).toarray()
    expected = np.array([idf_a, (1 + np.log(2)) * idf_b])
    found = rows[0, [vectoriser.columns["a"], vectoriser.columns["b"]]]
    assert found == pytest.approx(expected / np.linalg.norm(expected))
    assert not rows[1].any()
    assert {"a b", "a c"} <= set(make_vectoriser(["a b", "a c"], "pairs").columns)


@pytest.mark.parametrize("strength", [1.0, 10.0])
def test_the_solution_meets_the_optimality_conditions(strength: float) -> None:
    """The problem is strictly convex in the weights: gradient 0 is the one solution, whoever finds it."""
    texts, labels = made(80, noise=0.2)
    found = fit_classifier(texts, labels, strength=strength)
    x = found.vectoriser.vectors(texts).toarray()
    logits = x @ found.weights_FK + found.bias_K
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    gold = np.array([[label == name for name in found.labels] for label in labels], dtype=float)
    assert np.abs(strength * x.T @ (p - gold) + found.weights_FK).max() < 5e-3 * strength
    assert np.abs((p - gold).sum(axis=0)).max() < 5e-3


def test_two_labels_equal_binary_logistic_regression() -> None:
    """Softmax over two labels, weights w and -w: a binary regression with 2 w and half the penalty; solved here by Newton's method."""
    texts, labels = made(60, noise=0.25)
    labels = ["card" if label == "card" else "other" for label in labels]
    found = fit_classifier(texts, labels, strength=2.0)
    x = np.column_stack([found.vectoriser.vectors(texts).toarray(), np.ones(len(texts))])
    y = np.array([label == "card" for label in labels], dtype=float)
    penalty = np.r_[np.full(x.shape[1] - 1, 0.5), 0.0]
    w = np.zeros(x.shape[1])
    for _ in range(40):
        p = 1 / (1 + np.exp(-x @ w))
        gradient = 2.0 * x.T @ (p - y) + penalty * w
        hessian = 2.0 * (x.T * (p * (1 - p))) @ x + np.diag(penalty)
        w -= np.linalg.solve(hessian, gradient)
    ours = np.r_[found.weights_FK[:, 0] - found.weights_FK[:, 1], found.bias_K[0] - found.bias_K[1]]
    assert ours == pytest.approx(w, abs=0.02)


def test_it_learns_and_noise_alone_teaches_nothing() -> None:
    texts, labels = made(120)
    test, gold = made(200, seed=1)
    found = train_classifier(texts, labels, seed=0)
    assert sum(found(text) == label for text, label in zip(test, gold, strict=True)) >= 190
    shuffled = list(labels)
    random.Random("test/shuffle").shuffle(shuffled)
    untaught = train_classifier(texts, shuffled, seed=0)
    assert sum(untaught(text) == label for text, label in zip(test, gold, strict=True)) <= 110


def test_one_label_and_one_row_are_no_problem() -> None:
    assert train_classifier(["a b", "b c", "c d"], ["x", "x", "x"], seed=0)("anything") == "x"
    assert lazy_classifier(["a"], ["only"], seed=0)("b") == "only"
