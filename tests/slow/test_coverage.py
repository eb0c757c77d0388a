"""Coverage of the cluster intervals in 2,000 simulated runs each (standard error 0.5 points), and A/A runs of the whole verdict.

The bounds are 93 to 97 % where the method is at home. Near the ceiling, where few clusters vary, the interval is meant to err
on the wide side: no upper bound there.
"""

from __future__ import annotations

import pytest
from tests.unit.stats import simulate
from tests.unit.stats.simulate_learning import learning_coverage
from tests.unit.verdict.simulate_verdicts import false_verdicts

pytestmark = pytest.mark.slow
RUNS = 2_000
NUM_DRAWS = 2_000


@pytest.mark.parametrize("n", [30, 50, 100, 200, 400])
@pytest.mark.parametrize(("first_only", "second_only"), [(0.05, 0.05), (0.10, 0.10), (0.15, 0.05), (0.20, 0.10)])
def test_tango(n: int, first_only: float, second_only: float) -> None:
    assert 0.935 <= simulate.tango_coverage(n, first_only, second_only) <= 0.97


@pytest.mark.parametrize(
    ("num_clusters", "mean_size", "copies", "first_only", "second_only"),
    [(100, 3, 0.5, 0.15, 0.10), (80, 3, 0.5, 0.20, 0.20), (150, 2, 0.3, 0.10, 0.02), (50, 5, 0.8, 0.20, 0.15), (12, 5, 0.5, 0.20, 0.10)],
)
def test_clustered_right_or_wrong(num_clusters: int, mean_size: int, copies: float, first_only: float, second_only: float) -> None:
    draw = simulate.clustered(num_clusters, mean_size, copies, simulate.right_or_wrong(first_only, second_only))
    assert 0.93 <= simulate.paired_coverage(draw, first_only - second_only, RUNS, is_binary=True, num_draws=NUM_DRAWS) <= 0.97


@pytest.mark.parametrize(
    ("num_clusters", "mean_size", "first_only", "second_only"),
    [(30, 3, 0.03, 0.01), (60, 5, 0.03, 0.01), (100, 3, 0.01, 0.01), (300, 2, 0.02, 0.01)],
)
def test_clustered_near_the_ceiling(num_clusters: int, mean_size: int, first_only: float, second_only: float) -> None:
    draw = simulate.clustered(num_clusters, mean_size, 0.5, simulate.right_or_wrong(first_only, second_only))
    assert simulate.paired_coverage(draw, first_only - second_only, RUNS, is_binary=True, num_draws=NUM_DRAWS) >= 0.93


@pytest.mark.parametrize(("num_clusters", "mean_size"), [(12, 4), (30, 3), (60, 3), (120, 2)])
def test_clustered_graded(num_clusters: int, mean_size: int) -> None:
    draw = simulate.clustered(num_clusters, mean_size, 0.5, simulate.graded)
    assert 0.93 <= simulate.paired_coverage(draw, simulate.GRADED_MEAN, RUNS, is_binary=False, num_draws=NUM_DRAWS) <= 0.97


@pytest.mark.parametrize(
    ("num_clusters", "mean_size", "share"), [(60, 5, 0.7), (100, 3, 0.8), (200, 3, 0.95), (60, 3, 0.98), (30, 5, 0.97)]
)
def test_clustered_mean(num_clusters: int, mean_size: int, share: float) -> None:
    draw = simulate.clustered(num_clusters, mean_size, 0.5, simulate.below(share))
    assert simulate.mean_coverage(draw, share, RUNS, num_draws=NUM_DRAWS) >= 0.93


@pytest.mark.parametrize(("n", "clustered"), [(300, False), (100, True), (300, True)])
def test_a_a_runs_of_the_whole_verdict(n: int, clustered: bool) -> None:
    assert false_verdicts(n, 0.2, 1_000, clustered=clustered) <= 50


@pytest.mark.parametrize(
    ("a", "b", "c", "num_items", "seed_sd", "size"),
    [
        (2, 0.5, 0.05, 300, 0.01, 1),
        (2, 0.5, 0.05, 300, 0.01, 3),
        (2, 0.5, 0.05, 1000, 0.005, 1),
        (30, 1.0, 0.10, 300, 0.01, 1),
        (2, 0.5, 0.05, 100, 0.02, 1),
    ],
)
def test_the_gain_from_more_examples(a: float, b: float, c: float, num_items: int, seed_sd: float, size: int) -> None:
    """A 90 % interval of the gain from twice the rows; of the runs in which it is said, at least as often."""
    found = learning_coverage(a, b, c, num_rows=400, num_items=num_items, seed_sd=seed_sd, runs=RUNS, size=size)
    assert 0.86 <= found.covered <= 0.95
    assert found.covered_when_said >= 0.86
