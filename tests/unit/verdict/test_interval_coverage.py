"""Coverage and power of what `decide` shows; 2,000 runs of the slow ones in `tests/slow/test_verdict_coverage.py`."""

from __future__ import annotations

import pytest
from tests.unit.verdict import simulate_intervals as simulate

from luthier.stats.power import items_for_difference, items_for_variance


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 3.0, 10.0])
def test_the_recipe_over_training_seeds_covers(num_seeds: int, spread: float) -> None:
    """0.98 above: Cochran's weighing errs on the wide side, by 2 points at most, where both errors are alike."""
    assert 0.93 <= simulate.recipe_coverage(num_seeds, spread) <= 0.98


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0, 10.0])
def test_two_training_seeds_err_on_the_wide_side(spread: float) -> None:
    """Choosing one quantile, as was done before, covered 87.5 % at a spread of 3."""
    assert simulate.recipe_coverage(2, spread) >= 0.93


@pytest.mark.parametrize(("num_clusters", "size"), [(60, 1), (40, 3), (12, 1)], ids=["alone", "clustered", "few"])
def test_break_even_covers(num_clusters: int, size: int) -> None:
    assert simulate.break_even_coverage(num_clusters, 150, size=size) >= 0.90


@pytest.mark.parametrize("metric", ["abstention_precision", "abstention_recall"])
def test_abstention_covers(metric: str) -> None:
    assert 0.93 <= simulate.abstention_coverage(metric, 200, 2_000) <= 0.97
    assert simulate.abstention_coverage(metric, 180, 60, size=3) >= 0.86


def test_a_planted_difference_is_found_at_the_tabled_power() -> None:
    needed = items_for_difference(0.05, 0.10)
    assert needed == 307
    better, _ = simulate.found_better(needed, 0.05, 400, discordance=0.10, margin=0.03)
    assert better == pytest.approx(0.80, abs=0.06)


def test_a_planted_graded_difference_is_found_at_the_tabled_power() -> None:
    needed = items_for_variance(0.02, simulate.GRADED_VARIANCE)
    better, _ = simulate.found_better(needed, 0.02, 50, discordance=None, margin=0.01)
    assert better == pytest.approx(0.80, abs=0.16)


@pytest.mark.parametrize(("discordance", "size"), [(None, 1), (None, 3), (0.2, 3)], ids=["graded", "graded clustered", "clustered"])
def test_equal_arms_seldom_get_a_quality_verdict(discordance: float | None, size: int) -> None:
    _, either = simulate.found_better(120, 0.0, 40, discordance=discordance, margin=0.02)
    assert either <= 0.15  # 7 of 40 or more: one run in 300 of a rate of 5 %
