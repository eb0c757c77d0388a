"""Is a stated confidence to be trusted: Brier score, calibration error, and what is gained by answering only where it is high.

`sure[i]` in [0, 1] is the confidence of answer i, `right[i]` 0 or 1. Lower is better for all three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.core.types import Estimate
from luthier.stats.bootstrap import bca_statistic
from luthier.stats.clusters import FloatArray
from luthier.stats.intervals import mean_estimate

NUM_BINS = 10
MIN_ITEMS = 300  # fewer: only the Brier score; bins of fewer than 30 answers are mostly noise
CALIBRATION_DRAWS = 2_000

Statistic = Callable[[FloatArray, FloatArray], float]


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
    """All of it; the interval of the Brier score is that of a mean, the others are BCa cluster bootstraps."""
    n = len(sure)
    brier = mean_estimate([(p - y) ** 2 for p, y in zip(sure, right, strict=True)], clusters, seed=seed)
    few = Estimate(value=None, low=None, high=None, n=n, method=f"not measured: fewer than {MIN_ITEMS} answers")
    if n < MIN_ITEMS:
        return Calibration(brier=brier, ece=few, aurc=few, bins=())
    sure_N, right_N = np.array(sure, dtype=np.float64), np.array(right, dtype=np.float64)

    def estimate(statistic: Statistic) -> Estimate:
        value = statistic(sure_N, right_N)
        low, high = bca_statistic(
            lambda kept_N: statistic(sure_N[kept_N], right_N[kept_N]), clusters, 0.95, seed=seed, num_draws=CALIBRATION_DRAWS
        )
        return Estimate(value=value, low=max(0.0, low), high=min(1.0, high), n=n, method="cluster bootstrap BCa 95 %")

    bins = tuple(
        Bin(
            sure=float(sure_N[members].mean()),
            right=mean_estimate([right[int(i)] for i in members], [clusters[int(i)] for i in members], seed=seed),
        )
        for members in _bins(sure_N)
    )
    return Calibration(brier=brier, ece=estimate(calibration_error), aurc=estimate(risk_coverage), bins=bins)


def calibration_error(sure_N: FloatArray, right_N: FloatArray) -> float:
    """Expected calibration error over 10 bins of equal mass (Nixon et al. 2019): mean gap of confidence and share right."""
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


def _bins(sure_N: FloatArray) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    order = np.argsort(sure_N, kind="stable")
    return [part for part in np.array_split(order, NUM_BINS) if len(part)]
