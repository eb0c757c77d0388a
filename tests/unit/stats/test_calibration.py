"""Calibration by hand, and intervals that hold the truth."""

from __future__ import annotations

import random

import numpy as np
import pytest

from luthier.stats.bootstrap import bca_statistic
from luthier.stats.calibration import MIN_ITEMS, calibrate, calibration_error, risk_coverage


def test_brier_by_hand_and_nothing_else_from_few() -> None:
    found = calibrate([0.9, 0.6, 0.2], [1.0, 0.0, 0.0], ["a", "b", "c"], seed=0)
    assert found.brier.value == pytest.approx((0.01 + 0.36 + 0.04) / 3)
    assert found.ece.value is None and found.aurc.value is None and found.bins == ()
    assert "fewer than 300" in found.ece.method


def test_calibration_error_by_hand() -> None:
    """Ten bins of two answers: nine without a gap, one where 0.9 is said of two wrong answers."""
    sure = np.array([0.0, 0.0] * 9 + [0.9, 0.9])
    assert calibration_error(sure, np.zeros(20)) == pytest.approx(2 * 0.9 / 20)
    assert calibration_error(np.full(20, 0.5), np.array([0.0, 1.0] * 10)) == 0.0


def test_risk_coverage_by_hand() -> None:
    # surest first: right, wrong, right -> errors 0/1, 1/2, 1/3
    assert risk_coverage(np.array([0.2, 0.9, 0.5]), np.array([1.0, 1.0, 0.0])) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    # equal confidence: every share answered has the mean error, whatever the order
    for right in ([1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]):
        assert risk_coverage(np.full(4, 0.7), np.array(right)) == pytest.approx(0.5)


def test_a_model_that_knows_is_told_from_one_that_does_not() -> None:
    rng = random.Random("calibration")
    sure = [rng.random() for _ in range(MIN_ITEMS)]
    honest = [float(rng.random() < p) for p in sure]
    boasting = [float(rng.random() < 0.3) for _ in sure]
    clusters = [str(i) for i in range(len(sure))]
    good, bad = (calibrate(sure, right, clusters, seed=1) for right in (honest, boasting))
    assert good.ece.high is not None and bad.ece.low is not None and good.ece.high < bad.ece.low
    assert (good.aurc.value or 1) < (bad.aurc.value or 0)
    assert len(good.bins) == 10 and all(one.right.n == MIN_ITEMS // 10 for one in good.bins)
    assert [one.sure for one in good.bins] == sorted(one.sure for one in good.bins)
    for one in (good.ece, good.aurc, bad.ece, bad.aurc):
        assert one.low is not None and one.high is not None and one.low <= one.high
    assert calibrate(sure, honest, clusters, seed=1) == good


def test_bootstrap_of_a_mean_agrees_with_its_own() -> None:
    """A mean as "any statistic" has about the interval of the mean."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=80)
    low, high = bca_statistic(lambda kept: float(values[kept].mean()), [str(i) for i in range(80)], 0.95, seed=0, num_draws=4000)
    half = 1.99 * values.std(ddof=1) / np.sqrt(80)
    assert low == pytest.approx(values.mean() - half, abs=0.04) and high == pytest.approx(values.mean() + half, abs=0.04)


def test_copies_in_a_cluster_are_no_further_items() -> None:
    rng = np.random.default_rng(4)
    once = rng.normal(size=30)
    thrice = np.repeat(once, 3)
    names = [str(i) for i in range(30)]

    def mean(values: np.ndarray) -> tuple[float, float]:
        clusters = names if len(values) == 30 else [name for name in names for _ in range(3)]
        return bca_statistic(lambda kept: float(values[kept].mean()), clusters, 0.95, seed=0, num_draws=4000)

    (low, high), (low3, high3) = mean(once), mean(thrice)
    assert high3 - low3 == pytest.approx(high - low, rel=0.1)
