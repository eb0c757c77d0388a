"""Cluster bootstrap with BCa intervals, and the sign-flip permutation test on cluster totals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from luthier.core.seeds import seed_for
from luthier.stats.clusters import ClusterTotals, FloatArray

NUM_DRAWS = 10_000
MAX_EXACT_FLIPS = 12  # up to 2^12 sign patterns are listed instead of drawn
MAX_CELLS = 2_000_000  # draws x clusters held at once
TIE = 1e-12  # relative; sums of the same numbers in another order are equal


def bca_intervals(
    totals: ClusterTotals, confidences: Sequence[float], *, seed: int, num_draws: int = NUM_DRAWS
) -> tuple[tuple[float, float], ...]:
    """Bias-corrected and accelerated bootstrap intervals of the ratio, clusters resampled whole; all from the same draws.

    Efron 1987; Efron and Tibshirani 1993, chapter 14; acceleration from the jackknife over clusters; quantiles expanded for few
    clusters as in Hesterberg 2015 (with 20 clusters plain BCa covered 91 %, docs/methods-statistics.md). An end is infinite where
    denominators can vanish. Without any variation between clusters both ends are the estimate: the caller must not read
    that as certainty.
    """
    draws = _bootstrap_ratios(totals, seed=seed, num_draws=num_draws)
    estimate = totals.ratio
    tie = TIE * max(1.0, abs(estimate))
    below = float(np.mean(draws < estimate - tie) + 0.5 * np.mean(np.abs(draws - estimate) <= tie))
    normal = NormalDist()
    bias = normal.inv_cdf(min(max(below, 1 / (num_draws + 1)), num_draws / (num_draws + 1)))
    acceleration = _acceleration(totals)
    draws.sort()
    out: list[tuple[float, float]] = []
    for confidence in confidences:
        z = _expanded_z(confidence, totals.num_clusters)
        levels = [_bca_level(bias, acceleration, end) for end in (-z, z)]
        low, high = (_sorted_quantile(draws, level) for level in levels)
        out.append((low, high))
    return tuple(out)


def bca_statistic(
    statistic: Callable[[NDArray[np.int64]], float], clusters: Sequence[str], confidence: float, *, seed: int, num_draws: int
) -> tuple[float, float]:
    """BCa interval of any statistic of items, clusters resampled whole. `statistic` is given the indices of the items drawn.

    For what is no mean (calibration error, spread of several means) and so has no totals to add up. Its median bias is corrected:
    a statistic that only grows with noise, such as an absolute gap, would else lie at the lower end of its own interval.
    """
    names = sorted(set(clusters))
    members = {name: [i for i, cluster in enumerate(clusters) if cluster == name] for name in names}
    groups = [np.array(members[name], dtype=np.int64) for name in names]
    everything = np.arange(len(clusters), dtype=np.int64)
    estimate = statistic(everything)
    generator = np.random.default_rng(seed_for(seed, "stats/bootstrap of a statistic"))
    drawn = (generator.integers(0, len(groups), size=len(groups)) for _ in range(num_draws))
    single = np.concatenate(groups) if len(groups) == len(clusters) else None  # every item for itself: the faster way to the same
    draws = np.array([statistic(np.concatenate([groups[i] for i in d]) if single is None else single[d]) for d in drawn])
    tie = TIE * max(1.0, abs(estimate))
    below = float(np.mean(draws < estimate - tie) + 0.5 * np.mean(np.abs(draws - estimate) <= tie))
    bias = NormalDist().inv_cdf(min(max(below, 1 / (num_draws + 1)), num_draws / (num_draws + 1)))
    left_out = np.array([statistic(np.setdiff1d(everything, group)) for group in groups]) if len(groups) > 1 else np.zeros(1)
    gaps: FloatArray = left_out.mean() - left_out
    size = float(np.sum(gaps**2))
    acceleration = 0.0 if size <= 0 else float(np.sum(gaps**3)) / (6 * size**1.5)
    z = _expanded_z(confidence, len(groups))
    draws.sort()
    return _sorted_quantile(draws, _bca_level(bias, acceleration, -z)), _sorted_quantile(draws, _bca_level(bias, acceleration, z))


def sign_flip_p(totals: ClusterTotals, *, seed: int, num_draws: int = NUM_DRAWS) -> float:
    """Two-sided p value of "the mean difference is 0": signs of cluster totals are exchangeable under it.

    Exact over all sign patterns where at most 12 clusters differ from 0, else (1 + hits) / (1 + draws). Clusters weigh by
    their size, as in the mean difference itself.
    """
    values = totals.numerators[totals.numerators != 0]
    if len(values) == 0:
        return 1.0
    total = float(values.sum())
    reached = abs(total) - TIE * max(1.0, float(np.abs(values).sum()))
    if len(values) <= MAX_EXACT_FLIPS:
        patterns = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
        return float(np.mean(np.abs(2.0 * (patterns @ values) - total) >= reached))
    generator = np.random.default_rng(seed_for(seed, "stats/sign flip"))
    hits = 0
    for size in _chunks(num_draws, len(values)):
        random_bytes = generator.integers(0, 256, size=(size, (len(values) + 7) // 8), dtype=np.uint8)
        kept = np.unpackbits(random_bytes, axis=1, count=len(values))
        hits += int(np.count_nonzero(np.abs(2.0 * (kept @ values) - total) >= reached))
    return (1 + hits) / (1 + num_draws)


def _bootstrap_ratios(totals: ClusterTotals, *, seed: int, num_draws: int) -> FloatArray:
    """`num_draws` ratios of as many clusters drawn with replacement."""
    generator = np.random.default_rng(seed_for(seed, "stats/bootstrap"))
    num_clusters = totals.num_clusters
    parts: list[FloatArray] = []
    for size in _chunks(num_draws, num_clusters):
        drawn = generator.integers(0, num_clusters, size=(size, num_clusters), dtype=np.int32)
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 in the denominator: infinite, by intent
            parts.append(totals.numerators[drawn].sum(axis=1) / totals.denominators[drawn].sum(axis=1))
    ratios = np.concatenate(parts)
    ratios[np.isnan(ratios)] = math.inf
    return ratios


def _chunks(num_draws: int, num_clusters: int) -> Iterator[int]:
    step = max(1, MAX_CELLS // num_clusters)
    for start in range(0, num_draws, step):
        yield min(step, num_draws - start)


def _acceleration(totals: ClusterTotals) -> float:
    """Skewness of the jackknife over clusters, / 6; 0 where it is undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = (totals.numerators.sum() - totals.numerators) / (totals.denominators.sum() - totals.denominators)
    if totals.num_clusters < 2 or not bool(np.isfinite(left_out).all()):
        return 0.0
    gaps: NDArray[np.float64] = left_out.mean() - left_out
    spread = float(np.sum(gaps**2))
    return 0.0 if spread <= 0 else float(np.sum(gaps**3)) / (6 * spread**1.5)


def _expanded_z(confidence: float, num_clusters: int) -> float:
    """Student's t for the normal quantile, times sqrt(C / (C - 1)): a bootstrap spread is too small by that factor."""
    from scipy.special import stdtrit  # slow to load

    if num_clusters < 2:
        return NormalDist().inv_cdf((1 + confidence) / 2)
    return float(stdtrit(num_clusters - 1, (1 + confidence) / 2)) * math.sqrt(num_clusters / (num_clusters - 1))


def _bca_level(bias: float, acceleration: float, z: float) -> float:
    shifted = bias + z
    scale = 1 - acceleration * shifted
    if scale <= 0:  # the correction has run past the end of the distribution
        return 1.0 if shifted > 0 else 0.0
    return NormalDist().cdf(bias + shifted / scale)


def _sorted_quantile(ordered: FloatArray, level: float) -> float:
    """Linear between order statistics; an infinite neighbour makes it infinite, not NaN."""
    position = level * (len(ordered) - 1)
    low, high = float(ordered[math.floor(position)]), float(ordered[math.ceil(position)])
    if low == high:
        return low
    if math.isinf(high):
        return high
    return low + (high - low) * (position - math.floor(position))
