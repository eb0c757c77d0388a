from __future__ import annotations

import itertools
import math
import random
import statistics

import numpy as np
import pytest
from scipy import stats

from luthier.stats.bootstrap import bca_intervals, sign_flip_p
from luthier.stats.clusters import cluster_totals, clustered_se, design_effect, t_interval
from luthier.stats.holm import holm
from luthier.stats.power import (
    items_for_difference,
    items_for_margin,
    min_detectable_effect,
    min_detectable_effect_from_se,
)


def _skewed(n: int, seed: int = 0) -> list[float]:
    stream = random.Random(f"test/{seed}")
    return [stream.random() ** 3 for _ in range(n)]


def test_bca_equals_scipys() -> None:
    values = _skewed(50)
    ((low, high),) = bca_intervals(cluster_totals(values, [str(i) for i in range(50)]), (0.95,), seed=0)
    # Ours is expanded for few clusters (Hesterberg 2015): the same quantiles at a slightly higher level.
    z = float(stats.t.ppf(0.975, 49)) * math.sqrt(50 / 49)
    level = 2 * float(stats.norm.cdf(z)) - 1
    same = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", confidence_level=level, rng=np.random.default_rng(1))
    assert (low, high) == pytest.approx((same.confidence_interval.low, same.confidence_interval.high), abs=0.004)
    # and not the percentile interval: skewed to the right, BCa moves up
    plain = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert low > plain.low
    assert high > plain.high


def test_intervals_nest_and_do_not_depend_on_order() -> None:
    values, names = _skewed(90), [f"c{i % 30}" for i in range(90)]
    order = list(range(90))
    random.Random("test/order").shuffle(order)
    found = bca_intervals(cluster_totals(values, names), (0.95, 0.90), seed=3)
    again = bca_intervals(cluster_totals([values[i] for i in order], [names[i] for i in order]), (0.95, 0.90), seed=3)
    assert found == again
    assert found[0][0] < found[1][0] < found[1][1] < found[0][1]
    assert found != bca_intervals(cluster_totals(values, names), (0.95, 0.90), seed=4)


def test_the_mean_is_over_items_not_over_clusters() -> None:
    totals = cluster_totals([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert totals.ratio == 0.75


def test_clustered_se_by_hand() -> None:
    # Miller 2024: sums of residuals -0.5 + 0.5 ... over a = {1, 1}, b = {0, 0}, c = {1, 0}; mean 0.5.
    totals = cluster_totals([1.0, 1.0, 0.0, 0.0, 1.0, 0.0], ["a", "a", "b", "b", "c", "c"])
    assert clustered_se(totals) == pytest.approx(math.sqrt(3 / 2 * (1 + 1 + 0)) / 6)
    alone = _skewed(30)
    naive = statistics.stdev(alone) / math.sqrt(30)
    assert clustered_se(cluster_totals(alone, [str(i) for i in range(30)])) == pytest.approx(naive)
    assert clustered_se(cluster_totals([0.2, 0.4], ["a", "a"])) is None


def test_t_interval_equals_scipys() -> None:
    values = _skewed(12)
    found = stats.t.interval(0.95, 11, statistics.fmean(values), statistics.stdev(values) / math.sqrt(12))
    assert t_interval(cluster_totals(values, [str(i) for i in range(12)]), 0.95) == pytest.approx(found)


def test_design_effect_of_copies_is_their_number() -> None:
    values, names = [1.0, 0.0] * 20, [f"c{i}" for i in range(40)]
    copied = cluster_totals(values * 4, names * 4)
    assert design_effect(copied, 0.25, 160) == pytest.approx(4 * 40 / 39)
    assert design_effect(cluster_totals([1.0] * 12, ["a", "b", "c"] * 4), 0.0, 12) == 4.0


def test_sign_flips_are_exact_for_few_clusters() -> None:
    values = [0.4, 0.1, -0.2, 0.3, 0.25]
    found = sign_flip_p(cluster_totals(values, list("abcde")), seed=0)
    flips = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in itertools.product((1, -1), repeat=5)]
    assert found == sum(flip >= abs(sum(values)) - 1e-12 for flip in flips) / 32
    assert sign_flip_p(cluster_totals([0.0, 0.0], ["a", "b"]), seed=0) == 1.0


def test_drawn_sign_flips_agree_with_the_exact_test() -> None:
    """31 of 40 equal differences are positive: the sign-flip test is then the sign test."""
    totals = cluster_totals([1.0] * 31 + [-1.0] * 9, [str(i) for i in range(40)])
    exact = float(stats.binomtest(31, 40).pvalue)
    assert sign_flip_p(totals, seed=0, num_draws=40_000) == pytest.approx(exact, abs=4e-4)
    assert sign_flip_p(totals, seed=0, num_draws=99) >= 1 / 100


def test_copies_do_not_shrink_the_p_value() -> None:
    values, names = [0.5] * 9 + [-0.5] * 4 + [0.1] * 3, [f"c{i}" for i in range(16)]
    assert sign_flip_p(cluster_totals(values * 10, names * 10), seed=0) == sign_flip_p(cluster_totals(values, names), seed=0)


def test_holm_equals_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    p_values = [0.04, 0.001, 0.2, 0.03, 0.9, 0.0004]
    assert holm(p_values) == pytest.approx(tuple(multipletests(p_values, method="holm")[1]))
    assert holm([0.04, None, 0.01]) == (0.04, None, 0.02)
    assert holm([0.031, 0.03]) == (0.06, 0.06)  # never below a smaller p value's
    assert holm([]) == ()


@pytest.mark.parametrize(
    ("discordance", "needed"),
    [(0.05, (429, None, None)), (0.10, (865, 307, None)), (0.20, (1737, 621, 150)), (0.30, (2609, 935, 228))],
)
def test_the_power_table_for_a_difference(discordance: float, needed: tuple[int | None, ...]) -> None:
    assert tuple(items_for_difference(points / 100, discordance) for points in (3, 5, 10)) == needed


def test_the_power_table_for_the_rest() -> None:
    margins = {d: (items_for_margin(0.03, d), items_for_margin(0.05, d)) for d in (0.1, 0.2, 0.3)}
    assert margins == {0.1: (687, 248), 0.2: (1374, 495), 0.3: (2061, 742)}
    assert [round(100 * min_detectable_effect(300, d), 1) for d in (0.1, 0.2, 0.3)] == pytest.approx([5.0, 7.1, 8.7], abs=0.051)
    assert [round(100 * min_detectable_effect(1000, d), 1) for d in (0.1, 0.2, 0.3)] == pytest.approx([2.8, 3.9, 4.8], abs=0.051)


def test_smallest_difference_and_needed_items_are_inverse() -> None:
    effect = min_detectable_effect(500, 0.2)
    assert items_for_difference(effect, 0.2) == 500
    se = math.sqrt((0.2 - effect**2) / 500)
    assert min_detectable_effect_from_se(se) == pytest.approx(effect)
