"""What noise alone makes larger. 2,000 runs each in `tests/slow/test_magnitude_coverage.py`."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.stats.simulate_magnitudes import error_coverage, noise_coverage, spread_coverage

from luthier.stats.magnitude import magnitude_interval, normal_errors, scaled, thresholded


@pytest.mark.parametrize(("model", "size"), [("honest", 1), ("5 points off", 3)])
def test_calibration_error_covers(model: str, size: int) -> None:
    """A bootstrap, bias-corrected or not, never covered the honest model: of 300 answers its error reads 0.05."""
    found = error_coverage(model, 300, 20, size=size)
    assert found.share >= 0.8
    assert abs(found.bias) < 0.03
    assert found.width < 0.2


@pytest.mark.parametrize("apart", [(0.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0, 0.15)], ids=["all alike", "one apart"])
def test_spread_between_wordings_covers(apart: tuple[float, ...]) -> None:
    found = spread_coverage(apart, 100, 25)
    assert found.share >= 0.8
    assert found.width < 0.2


@pytest.mark.parametrize("truth", [np.zeros(10), np.full(10, 0.08), np.linspace(-0.15, 0.15, 10), np.array([0.3] + [0.0] * 9)])
def test_interval_of_a_mean_gap_covers(truth: np.ndarray) -> None:
    assert noise_coverage(truth, 0.07, 25) >= 0.8


def test_without_noise_the_size_is_the_size() -> None:
    gaps = np.array([0.1, -0.2, 0.3])
    exact = normal_errors(np.zeros((3, 3)), seed=0)
    found = magnitude_interval(gaps, exact, lambda x: np.abs(x).mean(axis=-1), (thresholded(gaps), scaled(gaps)))
    assert found == pytest.approx((0.2, 0.2, 0.2), rel=0.01)


def test_what_noise_alone_would_give_is_not_shown_to_be_anything() -> None:
    generator = np.random.default_rng(20260107)
    gaps = generator.normal(0, 0.05, 10)
    value, low, high = magnitude_interval(
        gaps, normal_errors(0.0025 * np.eye(10), seed=0), lambda x: np.abs(x).mean(axis=-1), (thresholded(gaps), scaled(gaps))
    )
    assert low == 0.0 and value < float(np.abs(gaps).mean()) and 0.0 < high < 0.1
