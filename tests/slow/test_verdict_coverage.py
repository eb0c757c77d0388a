"""2,000 runs each of what stands beside the difference, and of whole verdicts on graded and clustered scores."""

from __future__ import annotations

import pytest
from tests.unit.stats import simulate_magnitudes as magnitudes
from tests.unit.verdict import simulate_intervals as simulate

from luthier.stats.power import items_for_difference, items_for_variance

pytestmark = pytest.mark.slow
RUNS = 2_000


@pytest.mark.parametrize(("model", "n", "size"), [("honest", 300, 1), ("5 points off", 300, 3), ("boasting", 1_000, 1)])
def test_calibration_error(model: str, n: int, size: int) -> None:
    """No upper bound: where the error does not stand out from noise the interval errs on the wide side."""
    found = magnitudes.error_coverage(model, n, RUNS, size=size)
    assert found.share >= 0.93
    assert abs(found.bias) <= 0.025


@pytest.mark.parametrize("model", ["5 points off", "near the ceiling"])
def test_calibration_error_of_1000(model: str) -> None:
    assert magnitudes.error_coverage(model, 1_000, RUNS).share >= 0.93


@pytest.mark.parametrize("apart", [(0.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0, 0.15), (0.0, 0.02, 0.04, 0.06, 0.08)])
@pytest.mark.parametrize("size", [1, 3])
def test_spread_between_wordings(apart: tuple[float, ...], size: int) -> None:
    assert magnitudes.spread_coverage(apart, 150, RUNS, size=size).share >= 0.93


@pytest.mark.parametrize(("num_clusters", "size"), [(60, 1), (40, 3), (12, 1)])
def test_break_even(num_clusters: int, size: int) -> None:
    assert 0.93 <= simulate.break_even_coverage(num_clusters, RUNS, size=size) <= 0.98


@pytest.mark.parametrize("metric", ["abstention_precision", "abstention_recall"])
def test_abstention_clustered(metric: str) -> None:
    assert simulate.abstention_coverage(metric, 300, RUNS, size=3) >= 0.93


def test_planted_differences() -> None:
    better, _ = simulate.found_better(items_for_difference(0.05, 0.10) or 0, 0.05, RUNS, discordance=0.10, margin=0.03)
    assert better == pytest.approx(0.80, abs=0.03)
    better, _ = simulate.found_better(items_for_variance(0.02, simulate.GRADED_VARIANCE), 0.02, RUNS, discordance=None, margin=0.01)
    assert better == pytest.approx(0.80, abs=0.03)


@pytest.mark.parametrize(("discordance", "size"), [(None, 1), (None, 3), (0.2, 3)])
def test_equal_arms(discordance: float | None, size: int) -> None:
    _, either = simulate.found_better(120, 0.0, RUNS, discordance=discordance, margin=0.02)
    assert either <= 0.05
