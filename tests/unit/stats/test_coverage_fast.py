"""How often 95 % intervals hold the truth, and how often the tabled numbers of items find a planted effect.

Exact sums where the outcomes can be listed; 200-run simulations where not (`tests/slow/test_coverage.py` has 2,000).
"""

from __future__ import annotations

import pytest
from tests.unit.stats import simulate


@pytest.mark.parametrize("n", [30, 100, 200])
@pytest.mark.parametrize(("first_only", "second_only"), [(0.05, 0.05), (0.10, 0.10), (0.15, 0.05), (0.20, 0.10)])
def test_tango_covers_exactly(n: int, first_only: float, second_only: float) -> None:
    assert 0.935 <= simulate.tango_coverage(n, first_only, second_only) <= 0.97


def test_tango_near_the_ceiling_errs_on_the_safe_side() -> None:
    """3 % against 1 % discordant on 50 items: the percentile bootstrap covers 77 % here."""
    assert simulate.tango_coverage(50, 0.03, 0.01) >= 0.95


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9, 0.95])
@pytest.mark.parametrize("n", [30, 100, 300])
def test_wilson_covers(n: int, share: float) -> None:
    """Averaged over a neighbourhood of shares: a single share can sit on a step of the binomial."""
    shares = [share * (1 - 0.02 * k / 5) for k in range(6)]
    assert 0.94 <= sum(simulate.wilson_coverage(n, p) for p in shares) / 6 <= 0.965


@pytest.mark.parametrize(
    ("n", "first_only", "second_only"), [(307, 0.075, 0.025), (621, 0.125, 0.075), (865, 0.065, 0.035), (150, 0.15, 0.05)]
)
def test_planted_effects_are_found_at_the_tabled_power(n: int, first_only: float, second_only: float) -> None:
    assert simulate.tango_power(n, first_only, second_only) == pytest.approx(0.80, abs=0.03)


@pytest.mark.parametrize(("n", "discordance"), [(248, 0.1), (495, 0.2)])
def test_equal_arms_are_shown_not_worse_at_the_tabled_power(n: int, discordance: float) -> None:
    found = simulate.tango_power(n, discordance / 2, discordance / 2, above=-0.05, confidence=0.90)
    assert found == pytest.approx(0.80, abs=0.035)


@pytest.mark.parametrize("n", [100, 300])
@pytest.mark.parametrize("discordance", [0.05, 0.2])
def test_no_effect_is_found_where_there_is_none(n: int, discordance: float) -> None:
    assert simulate.tango_power(n, discordance / 2, discordance / 2) <= 0.028  # one side of 5 %


@pytest.mark.parametrize(
    ("num_clusters", "first_only", "second_only"), [(100, 0.15, 0.10), (60, 0.03, 0.01), (12, 0.20, 0.10)], ids=["plain", "ceiling", "few"]
)
def test_clustered_right_or_wrong_scores_cover(num_clusters: int, first_only: float, second_only: float) -> None:
    draw = simulate.clustered(num_clusters, 3, 0.5, simulate.right_or_wrong(first_only, second_only))
    assert simulate.paired_coverage(draw, first_only - second_only, 200, is_binary=True, num_draws=1000) >= 0.905


@pytest.mark.parametrize("num_clusters", [12, 30, 80])
def test_clustered_graded_scores_cover(num_clusters: int) -> None:
    draw = simulate.clustered(num_clusters, 3, 0.5, simulate.graded)
    assert 0.895 <= simulate.paired_coverage(draw, simulate.GRADED_MEAN, 200, is_binary=False, num_draws=1000) <= 0.99


def test_ignoring_the_clusters_would_not_cover() -> None:
    """The counter-example that makes the tests above worth something: the same draws, each item taken for itself."""
    draw = simulate.clustered(60, 5, 0.8, simulate.right_or_wrong(0.15, 0.10))

    def apart(generator: simulate.Generator) -> tuple[list[float], list[str]]:
        values, _ = draw(generator)
        return values, [str(i) for i in range(len(values))]

    assert simulate.paired_coverage(apart, 0.05, 200, is_binary=True, num_draws=1000) < 0.80
    assert simulate.paired_coverage(draw, 0.05, 200, is_binary=True, num_draws=1000) >= 0.905


@pytest.mark.parametrize(("num_clusters", "share"), [(60, 0.7), (60, 0.97)])
def test_clustered_means_cover(num_clusters: int, share: float) -> None:
    draw = simulate.clustered(num_clusters, 3, 0.5, simulate.below(share))
    assert simulate.mean_coverage(draw, share, 200, num_draws=1000) >= 0.905
