"""The style classifier: tells two ways of writing apart, says so when it cannot, and is the same every time."""

from __future__ import annotations

import random

import numpy as np
import pytest

from luthier.evaluate.style import area_under_curve, train_judge

CURT = ["Sent.", "Not in stock.", "Paid on Monday.", "Refund done.", "Ask again in May."]
WORDY = ["Certainly! I would be absolutely delighted to help you with {}.", "Thank you so much for reaching out to us about {} today!"]


def _texts(kind: str, n: int, seed: int) -> list[str]:
    rng = random.Random(f"{kind} {seed}")
    things = ["parcel", "loom", "heddle", "thread", "invoice"]
    if kind == "curt":
        return [f"{rng.choice(CURT)} {rng.choice(things)} {rng.randrange(99)}." for _ in range(n)]
    return [rng.choice(WORDY).format(f"{rng.choice(things)} {rng.randrange(99)}") for _ in range(n)]


def test_two_ways_of_writing_are_told_apart() -> None:
    judge = train_judge(
        _texts("curt", 30, 1), _texts("wordy", 40, 1), held_out=_texts("curt", 30, 2), held_out_zero_shot=_texts("wordy", 30, 2)
    )
    assert judge.auc > 0.99 and judge.is_usable and judge.num_references == judge.num_zero_shot == 30
    assert np.mean([judge.matches(text) for text in _texts("curt", 50, 3)]) > 0.9
    assert np.mean([judge.matches(text) for text in _texts("wordy", 50, 3)]) < 0.1


def test_one_way_of_writing_is_no_style() -> None:
    judge = train_judge(
        _texts("curt", 60, 1), _texts("curt", 60, 2), held_out=_texts("curt", 60, 3), held_out_zero_shot=_texts("curt", 60, 4)
    )
    assert judge.auc < 0.7 and not judge.is_usable


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="19 texts"):
        train_judge(_texts("curt", 19, 1), _texts("wordy", 40, 1), held_out=["a"], held_out_zero_shot=["b"])


def test_area_under_curve_by_hand() -> None:
    assert area_under_curve(np.array([3.0, 2.0]), np.array([1.0, 2.0])) == pytest.approx((2 + 1.5) / 4)
