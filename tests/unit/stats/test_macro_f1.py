"""Macro-F1: the value by hand, and an interval that covers and never pretends to certainty."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.stats.macro_f1 import macro_f1


def _alone(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def test_the_value_is_the_mean_of_each_labels_f1() -> None:
    gold = ["a", "a", "a", "b", "b", "c"]
    pred = ["a", "a", "b", "b", "none", "a"]
    # a: 2 hits, said 3, wanted 3; b: 1, 2, 2; c: 0; "none" is no label and drags nothing but the item's own label down
    found = macro_f1(pred, gold, _alone(6), seed=0)
    assert found.value == pytest.approx((2 * 2 / 6 + 2 * 1 / 4 + 0) / 3)
    assert found.n == 6 and found.low is found.high is None and "fewer than 10 items a label" in found.method
    assert macro_f1([], [], [], seed=0).value is None


def test_a_rare_label_counts_as_much_as_a_frequent_one() -> None:
    gold = ["often"] * 95 + ["rare"] * 5
    found = macro_f1(["often"] * 100, gold, _alone(100), seed=0)
    assert found.value == pytest.approx((2 * 95 / 195) / 2) and (found.value or 1.0) < 0.5  # the accuracy is 0.95


def test_all_right_is_no_certainty() -> None:
    found = macro_f1(["a", "b"] * 20, ["a", "b"] * 20, _alone(40), seed=0)
    assert found.value == 1.0 and found.high == 1.0 and found.low == pytest.approx(0.912, abs=0.002)  # Wilson of 40 in 40


def test_copies_of_an_item_add_no_certainty() -> None:
    gold, pred = ["a", "b", "c"] * 20, (["a", "b", "c"] * 14) + ["b", "c", "a"] * 6
    once = macro_f1(pred, gold, _alone(60), seed=0)
    thrice = macro_f1([p for p in pred for _ in range(3)], [g for g in gold for _ in range(3)], [str(i // 3) for i in range(180)], seed=0)
    assert once.value == pytest.approx(thrice.value) and once.low is not None and thrice.low is not None
    assert thrice.low == pytest.approx(once.low, abs=0.01)


def test_the_interval_covers() -> None:
    generator = np.random.default_rng(1)
    recall = np.array([0.95, 0.9, 0.7, 0.6])

    def draw(n: int) -> tuple[list[str], list[str]]:
        gold = generator.choice(4, n, p=[0.5, 0.3, 0.15, 0.05])
        pred = np.where(generator.random(n) < recall[gold], gold, generator.integers(0, 4, n))
        return [str(p) for p in pred], [str(g) for g in gold]

    truth = macro_f1(*draw(200_000), ["one"] * 200_000, seed=0).value
    assert truth is not None
    runs = [macro_f1(*draw(200), _alone(200), seed=run) for run in range(60)]
    covered = sum((run.low or 0) <= truth <= (run.high or 1) for run in runs)
    assert covered >= 52, covered
