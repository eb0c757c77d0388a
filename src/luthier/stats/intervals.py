"""Intervals and tests for shares and means. Wald intervals are never used: they are too short where it matters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from luthier.core.errors import RunError
from luthier.core.types import Estimate
from luthier.stats.bootstrap import NUM_DRAWS, bca_intervals, sign_flip_p
from luthier.stats.clusters import ClusterTotals, cluster_totals, design_effect, skewed_t_interval

MIN_CLUSTERS_BOOTSTRAP = 20
# With fewer clusters that differ from the commonest value the bootstrap covers too seldom (docs/methods-statistics.md).
MIN_VARYING_CLUSTERS = 25
BISECTIONS = 60

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Mean of paired differences in [-1, 1] with its two-sided intervals. `p_value` None: one cluster, nothing to test."""

    difference: float
    n: int
    num_clusters: int
    interval95: Interval
    interval90: Interval
    p_value: float | None
    discordance: float | None  # share of items where exactly one is right; None for graded scores
    method: str


def wilson(successes: float, n: float, confidence: float = 0.95) -> Interval:
    """Score interval of a share (Wilson 1927). Counts may be fractional: effective sample sizes."""
    if not 0 <= successes <= n or n <= 0:
        raise ValueError(f"{successes} successes of {n}")
    z = _z(confidence)
    share, scale = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Where all or none succeed one end is exactly the share; rounding must not exclude it.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def tango(b: float, c: float, n: float, confidence: float = 0.95) -> Interval:
    """Score interval of a paired difference of shares, (b - c) / n (Tango 1998, Statistics in Medicine 17:891).

    Of `n` pairs, `b` are right in the first arm only and `c` in the second only. The limits are where the score statistic
    with the constrained estimate of P(second only) reaches the normal quantile; found by bisection, which has no trouble at
    b = c = 0 or b + c = n. Counts may be fractional: effective sample sizes.
    """
    if b < 0 or c < 0 or n <= 0 or b + c > n * (1 + 1e-9):
        raise ValueError(f"discordant pairs {b} and {c} of {n}")
    z = _z(confidence)

    def is_outside(delta: float) -> bool:
        linear = (2 * n - b + c) * delta - b - c
        root = math.sqrt(max(0.0, linear * linear + 8 * n * c * delta * (1 - delta)))
        second_only = (root - linear) / (4 * n)
        variance = n * max(0.0, 2 * second_only + delta * (1 - delta))
        return (b - c - n * delta) ** 2 > z * z * variance

    difference = (b - c) / n
    return _last_inside(is_outside, difference, -1.0), _last_inside(is_outside, difference, 1.0)


def mcnemar_midp(b: int, c: int) -> float:
    """Two-sided mid-p value of McNemar's test: b against c discordant pairs under Binomial(b + c, 1/2) (Fagerland et al. 2013)."""
    from scipy.special import bdtr  # slow to load

    total, few = b + c, min(b, c)
    if total == 0:
        return 1.0
    point = math.exp(math.lgamma(total + 1) - math.lgamma(few + 1) - math.lgamma(total - few + 1) - total * math.log(2))
    return min(1.0, 2 * float(bdtr(few, total, 0.5)) - point)


def quantile_interval(values: Sequence[float], q: float, confidence: float = 0.95) -> Estimate:
    """Nearest-rank quantile with its distribution-free interval from order statistics (David and Nagaraja 2003, 7.1).

    From the l-th to the u-th smallest value, where P(Bin(n, q) < l) and P(Bin(n, q) >= u) are at most (1 - confidence) / 2.
    An end that would lie beyond the sample is None.
    """
    if not 0 < q < 1:
        raise ValueError(f"quantile {q}")
    ordered, n = sorted(values), len(values)
    if n == 0:
        return Estimate(value=None, low=None, high=None, n=0, method="not measured")
    from scipy.special import bdtr  # slow to load

    tail = (1 - confidence) / 2
    below = bdtr(np.arange(n), n, q)  # below[k] = P(Bin(n, q) <= k)
    low_rank = int(np.searchsorted(below, tail, side="right"))  # the largest l with P(Bin <= l - 1) <= tail; 0: none
    high_rank = int(np.searchsorted(below, 1 - tail, side="left")) + 1  # the smallest u with P(Bin <= u - 1) >= 1 - tail
    return Estimate(
        value=ordered[max(1, math.ceil(n * q - 1e-9)) - 1],
        low=ordered[low_rank - 1] if low_rank >= 1 else None,
        high=ordered[high_rank - 1] if high_rank <= n else None,
        n=n,
        method=f"order statistics {100 * confidence:g} %",
    )


def mean_estimate(
    values: Sequence[float], clusters: Sequence[str], *, seed: int, confidence: float = 0.95, num_draws: int = NUM_DRAWS
) -> Estimate:
    """Mean of scores in [0, 1] with its interval: Wilson for right/wrong items of their own, else over clusters.

    Raises RunError for a value outside [0, 1]. No values: `value` is None.
    """
    level = f"{100 * confidence:g} %"
    if not values:
        return Estimate(value=None, low=None, high=None, n=0, method="not measured")
    _check_range(values, 0.0, 1.0)
    n, total = len(values), math.fsum(values)
    mean = min(1.0, total / n)
    if len(set(clusters)) == n and all(value in (0.0, 1.0) for value in values):
        low, high = wilson(total, n, confidence)
        return Estimate(value=mean, low=low, high=high, n=n, method=f"Wilson {level}")

    def score_interval(effective: float, level: float) -> Interval:
        return wilson(mean * effective, effective, level)

    totals = cluster_totals(values, clusters)
    effective = n / design_effect(totals, mean * (1 - mean), n)
    ((low, high),), method = _cluster_intervals(totals, (confidence,), score_interval, effective, "Wilson", seed=seed, num_draws=num_draws)
    return Estimate(value=mean, low=max(0.0, low), high=min(1.0, high), n=n, method=f"{method} {level}")


def paired_difference(
    differences: Sequence[float], clusters: Sequence[str], *, is_binary: bool, seed: int, num_draws: int = NUM_DRAWS
) -> PairedDifference:
    """Mean of paired differences `first - second`, each in [-1, 1].

    Right/wrong scores (`is_binary`) of items of their own: Tango and McNemar mid-p. Otherwise over clusters: BCa bootstrap from
    20 clusters on, skewness-corrected t below, and a sign-flip permutation test.
    Raises RunError for a value outside [-1, 1], ValueError if there is none.
    """
    _check_range(differences, -1.0, 1.0)
    n, num_clusters = len(differences), len(set(clusters))
    first = math.fsum(value for value in differences if value > 0)
    second = -math.fsum(value for value in differences if value < 0)
    difference = (first - second) / n
    discordance = (first + second) / n if is_binary else None
    if is_binary and num_clusters == n:
        intervals: tuple[Interval, ...] = (tango(first, second, n, 0.95), tango(first, second, n, 0.90))
        p_value: float | None = mcnemar_midp(round(first), round(second))
        method = "Tango score interval, McNemar mid-p"
    else:

        def score_interval(effective: float, level: float) -> Interval:
            return tango(first * effective / n, second * effective / n, effective, level)

        totals = cluster_totals(differences, clusters)
        # A difference in [-1, 1] has at most the variance of a right/wrong one with the same mean and mean size.
        effective = n / design_effect(totals, (first + second) / n - difference**2, n)
        intervals, name = _cluster_intervals(totals, (0.95, 0.90), score_interval, effective, "Tango", seed=seed, num_draws=num_draws)
        p_value = sign_flip_p(totals, seed=seed, num_draws=num_draws) if num_clusters > 1 else None
        method = f"paired {name}, sign-flip permutation"
    low_high = [(max(-1.0, low), min(1.0, high)) for low, high in intervals]
    return PairedDifference(
        difference=difference,
        n=n,
        num_clusters=num_clusters,
        interval95=low_high[0],
        interval90=low_high[1],
        p_value=p_value,
        discordance=discordance,
        method=method,
    )


def ratio_intervals(
    totals: ClusterTotals, confidences: Sequence[float], *, seed: int, num_draws: int = NUM_DRAWS
) -> tuple[tuple[Interval, ...], str]:
    """Intervals of a mean or of a ratio of means, and their name: BCa bootstrap from 20 clusters on, skewness-corrected t below."""
    if totals.num_clusters < MIN_CLUSTERS_BOOTSTRAP:
        intervals = tuple(skewed_t_interval(totals, confidence) for confidence in confidences)
        return intervals, f"cluster t with {totals.num_clusters - 1} df, skewness corrected"
    return bca_intervals(totals, confidences, seed=seed, num_draws=num_draws), "cluster bootstrap BCa"


def _cluster_intervals(
    totals: ClusterTotals,
    confidences: Sequence[float],
    score_interval: Callable[[float, float], Interval],
    effective_n: float,
    score_name: str,
    *,
    seed: int,
    num_draws: int,
) -> tuple[tuple[Interval, ...], str]:
    """Bootstrap or t, and where few clusters vary the wider of that and a score interval on the effective sample size.

    The score interval with n / design effect items (Rao and Scott 1992) does not shrink to nothing where no cluster varies.
    """
    intervals, method = ratio_intervals(totals, confidences, seed=seed, num_draws=num_draws)
    if not _few_vary(totals):
        return intervals, method
    scores = [score_interval(effective_n, confidence) for confidence in confidences]
    wider = tuple((min(low, s_low), max(high, s_high)) for (low, high), (s_low, s_high) in zip(intervals, scores, strict=True))
    return wider, f"{method} widened by {score_name} on the effective n"


def _few_vary(totals: ClusterTotals) -> bool:
    """Whether most clusters have one and the same mean, and those that differ are too few for a bootstrap."""
    _, counts = np.unique(np.round(totals.numerators / totals.denominators, 12), return_counts=True)
    varying = totals.num_clusters - int(counts.max())
    return varying < MIN_VARYING_CLUSTERS and 2 * varying <= totals.num_clusters


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _last_inside(is_outside: Callable[[float], bool], inside: float, end: float) -> float:
    """The point between `inside` and `end` up to which `is_outside` is false."""
    if not is_outside(end):
        return end
    outside = end
    for _ in range(BISECTIONS):
        middle = (inside + outside) / 2
        if is_outside(middle):
            outside = middle
        else:
            inside = middle
    return inside


def _check_range(values: Sequence[float], low: float, high: float) -> None:
    for i, value in enumerate(values):
        if not low <= value <= high:  # also catches NaN
            raise RunError(
                f"score {i + 1} is {value!r}, expected {low:g} to {high:g}", where="scores", fix="measure again; the record is damaged"
            )
