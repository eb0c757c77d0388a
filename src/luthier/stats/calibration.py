"""Is a stated confidence to be trusted: Brier score, calibration error, and what is gained by answering only where it is high.

`sure[i]` in [0, 1] is the confidence of answer i, `right[i]` 0 or 1. Lower is better for all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from luthier.core.seeds import seed_for
from luthier.core.types import Estimate
from luthier.stats.bootstrap import bca_statistic
from luthier.stats.clusters import FloatArray, cluster_totals, design_effect
from luthier.stats.intervals import mean_estimate, wilson
from luthier.stats.magnitude import METHOD, NUM_DRAWS, Path, Sampler, magnitude_interval, scaled, shrunk, thresholded, unseen_variance

NUM_BINS = 10
MIN_ITEMS = 300  # fewer: only the Brier score; bins of fewer than 30 answers are mostly noise
CALIBRATION_DRAWS = 2_000
Members = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Answers of neighbouring confidence: their mean confidence, and the share that is right with its interval."""

    sure: float
    right: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Calibration of one arm. `ece` and `aurc` without a value, and no bins, where there are fewer than 300 answers."""

    brier: Estimate
    ece: Estimate
    aurc: Estimate
    bins: tuple[Bin, ...]


def calibrate(sure: Sequence[float], right: Sequence[float], clusters: Sequence[str], *, seed: int) -> Calibration:
    """All of it. The interval of the Brier score is that of a mean, of the AURC a BCa cluster bootstrap; ECE: `error_estimate`."""
    n = len(sure)
    brier = mean_estimate([(p - y) ** 2 for p, y in zip(sure, right, strict=True)], clusters, seed=seed)
    few = Estimate(value=None, low=None, high=None, n=n, method=f"not measured: fewer than {MIN_ITEMS} answers")
    if n < MIN_ITEMS:
        return Calibration(brier=brier, ece=few, aurc=few, bins=())
    sure_N, right_N = np.array(sure, dtype=np.float64), np.array(right, dtype=np.float64)
    low, high = bca_statistic(
        lambda kept_N: risk_coverage(sure_N[kept_N], right_N[kept_N]), clusters, 0.95, seed=seed, num_draws=CALIBRATION_DRAWS
    )
    area = risk_coverage(sure_N, right_N)
    aurc = Estimate(value=area, low=max(0.0, low), high=min(1.0, high), n=n, method="cluster bootstrap BCa 95 %")
    bins = tuple(
        Bin(
            sure=float(sure_N[members].mean()),
            right=mean_estimate([right[int(i)] for i in members], [clusters[int(i)] for i in members], seed=seed),
        )
        for members in _bins(sure_N)
    )
    return Calibration(brier=brier, ece=error_estimate(sure_N, right_N, clusters, seed=seed), aurc=aurc, bins=bins)


def calibration_error(sure_N: FloatArray, right_N: FloatArray) -> float:
    """Expected calibration error over 10 bins of equal mass (Nixon et al. 2019): mean gap of confidence and share right.

    As seen, noise and all: of 300 answers of a model without any error it is about 0.05.
    """
    gaps = [len(members) * abs(float(sure_N[members].mean() - right_N[members].mean())) for members in _bins(sure_N)]
    return sum(gaps) / len(sure_N)


def risk_coverage(sure_N: FloatArray, right_N: FloatArray) -> float:
    """Area under the risk-coverage curve (Geifman and El-Yaniv 2017): mean error over all shares answered, surest first.

    Answers of equal confidence count with their mean, so that their order does not matter.
    """
    order = np.argsort(-sure_N, kind="stable")
    _, first, sizes = np.unique(-sure_N[order], return_index=True, return_counts=True)
    wrong = 1.0 - right_N[order]
    means = np.repeat(np.add.reduceat(wrong, first) / sizes, sizes)
    return float(np.mean(np.cumsum(means) / np.arange(1, len(means) + 1)))


def error_estimate(sure_N: FloatArray, right_N: FloatArray, clusters: Sequence[str], *, seed: int) -> Estimate:
    """The calibration error less what noise adds to it, with its interval.

    The share right in each bin is binomial over the effective number of answers, n / design effect (Rao and Scott 1992).
    """
    bins, n = _bins(sure_N), len(sure_N)
    sure_K, right_K = (np.array([float(x_N[members].mean()) for members in bins]) for x_N in (sure_N, right_N))
    shares_K = np.array([len(members) / n for members in bins])
    effect = _design_effect(sure_N, right_N, clusters, bins)
    effective_K = np.maximum(1, np.round(shares_K * n / effect)).astype(np.int64)
    gaps_K = sure_K - right_K
    noise = fmean(unseen_variance(share * size, size) for share, size in zip(right_K, effective_K, strict=True))

    def possible(path: Path) -> Path:
        return lambda t: sure_K - np.clip(sure_K - path(t), 0.0, 1.0)

    value, low, high = magnitude_interval(
        gaps_K,
        _binomial_gaps(sure_K, effective_K, seed=seed),
        lambda gaps: np.abs(gaps) @ shares_K,
        (possible(thresholded(gaps_K)), possible(scaled(shrunk(gaps_K, noise)))),
    )
    high = max(high, wilson(0, n / effect)[1])  # what did not happen in so many answers is not excluded
    return Estimate(value=value, low=low, high=min(1.0, high), n=n, method=METHOD)


def _binomial_gaps(sure_K: FloatArray, sizes_K: Members, *, seed: int) -> Sampler:
    """Gaps as they would be seen, by inversion of the same uniform numbers: a larger true gap never gives a smaller one."""
    from scipy.special import bdtr  # slow to load

    uniform_KD = np.random.default_rng(seed_for(seed, "stats/calibration")).random((len(sizes_K), NUM_DRAWS))

    def seen_if(true_K: FloatArray) -> FloatArray:
        likely_K = np.clip(sure_K - true_K, 0.0, 1.0)
        drawn_KD = [
            np.searchsorted(bdtr(np.arange(size), size, share), uniform_D)
            for size, share, uniform_D in zip(sizes_K, likely_K, uniform_KD, strict=True)
        ]
        gaps: FloatArray = sure_K - np.stack(drawn_KD, axis=1) / sizes_K
        return gaps

    return seen_if


def _design_effect(sure_N: FloatArray, right_N: FloatArray, clusters: Sequence[str], bins: Sequence[Members]) -> float:
    """The larger of those within bins, which shape the single gaps, and of the mean gap, which clusters that span bins move."""
    if len(set(clusters)) == len(clusters):
        return 1.0
    rests_N = right_N - sure_N
    within_N = np.empty_like(rests_N)
    for members in bins:
        within_N[members] = right_N[members] - right_N[members].mean()
    found: list[float] = []
    for x_N in (within_N, rests_N - rests_N.mean()):
        totals = cluster_totals(x_N.tolist(), clusters)
        found.append(design_effect(totals, float((x_N**2).mean()), len(x_N)))
    return max(found)


def _bins(sure_N: FloatArray) -> list[Members]:
    order = np.argsort(sure_N, kind="stable")
    return [part for part in np.array_split(order, NUM_BINS) if len(part)]
