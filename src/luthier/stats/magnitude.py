"""How large is a quantity that noise alone makes larger: a sum of absolute gaps, a best less a worst.

No bootstrap can: its draws lie above the estimate, which itself lies above the truth, and correcting the median does not undo that (a
calibrated model's error was never in such an interval). So the test is inverted: a size belongs to the interval where, were it the
true one, noise would often enough give as much and as little as was seen (Hansen 1999, Review of Economics and Statistics 81:594).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from luthier.core.seeds import seed_for
from luthier.core.types import Estimate
from luthier.stats.clusters import FloatArray
from luthier.stats.intervals import wilson

METHOD = "test inversion 95 %, noise taken off"
NUM_DRAWS = 2_000
BISECTIONS = 10
MAX_DOUBLINGS = 16
MIN_COMPONENTS_SHRUNK = 4  # James and Stein's rule around a mean

Magnitude = Callable[[FloatArray], FloatArray]  # of the last axis
Path = Callable[[float], FloatArray]  # true components, from no size at all (0) upwards
Sampler = Callable[[FloatArray], FloatArray]  # [draws, K] as they would be seen, were these the true components; the same noise each time


def magnitude_interval(
    found_K: FloatArray, seen_if: Sampler, magnitude: Magnitude, paths: Sequence[Path], *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """The size of `found_K` with its interval: value, low, high.

    How a size is spread over the components is not known, so each of `paths` is tried, and the interval holds those of all; the value
    is the mean of their median-unbiased ones. Above 95 % where the size does not stand out from the noise: no sample lies below nothing.
    """
    seen = float(magnitude(found_K))
    tail = (1 - confidence) / 2
    ends = np.array([[_size_at(level, path, seen_if, magnitude, seen) for level in (tail, 0.5, 1 - tail)] for path in paths])
    return float(ends[:, 1].mean()), float(ends[:, 0].min()), float(ends[:, 2].max())


def normal_errors(covariance_KK: FloatArray, *, seed: int) -> Sampler:
    """Components seen with normal errors of this covariance."""
    generator = np.random.default_rng(seed_for(seed, "stats/magnitude"))
    values_K, vectors_KK = np.linalg.eigh(covariance_KK)
    noise_DK = generator.normal(size=(NUM_DRAWS, len(covariance_KK))) @ (vectors_KK * np.sqrt(np.maximum(values_K, 0.0))).T
    return lambda true_K: true_K + noise_DK


def thresholded(found_K: FloatArray) -> Path:
    """Few components hold all of it: what lies within a threshold of 0 is 0, and the threshold falls."""
    largest = float(np.abs(found_K).max())
    signs_K = np.where(found_K < 0, -1.0, 1.0)
    return lambda t: signs_K * np.maximum(np.abs(found_K) - largest + t, 0.0)


def scaled(found_K: FloatArray) -> Path:
    """All components hold their share of it."""
    size = float(np.abs(found_K).mean())
    direction_K = found_K / size if size > 0 else np.ones_like(found_K)
    return lambda t: t * direction_K


def shrunk(found_K: FloatArray, variance: float) -> FloatArray:
    """Towards their mean by what noise of this variance adds to their spread (James and Stein 1961, positive part)."""
    mean = float(found_K.mean())
    squares = float(((found_K - mean) ** 2).sum())
    noise = max(0, len(found_K) - MIN_COMPONENTS_SHRUNK + 1) * variance
    return mean + (max(0.0, 1 - noise / squares) if squares > 0 else 0.0) * (found_K - mean)


def spread_estimate(scores_NW: FloatArray, clusters: Sequence[str], *, seed: int) -> Estimate:
    """Best less worst mean of the columns, the same items in all, less what noise adds to it. Two clusters or more."""
    means_W, n = scores_NW.mean(axis=0), len(scores_NW)
    place = {name: g for g, name in enumerate(dict.fromkeys(clusters))}
    num_clusters = len(place)
    # Items that are hard in every column say nothing of the spread: what counts is how each column differs from the mean of all.
    apart_NW = scores_NW - scores_NW.mean(axis=1, keepdims=True)
    rests_GW = np.zeros((num_clusters, len(means_W)))
    np.add.at(rests_GW, [place[name] for name in clusters], (apart_NW - apart_NW.mean(axis=0)) / n)
    covariance_WW = num_clusters / (num_clusters - 1) * (rests_GW.T @ rests_GW)
    covariance_WW += np.diag(np.maximum(0.0, unseen_variance(0.0, num_clusters) - np.diag(covariance_WW)))
    value, low, high = magnitude_interval(
        means_W,
        normal_errors(covariance_WW, seed=seed),
        lambda means: np.ptp(means, axis=-1),
        (thresholded(means_W - float(np.median(means_W))), scaled(means_W - float(means_W.mean()))),
    )
    high = max(high, wilson(0, num_clusters)[1])  # what did not happen in so many items is not excluded
    return Estimate(value=value, low=low, high=min(1.0, high), n=n, method=METHOD)


def unseen_variance(events: float, n: float) -> float:
    """Variance of a share of `n` items that does not vanish where none or all were seen: 2 more of either kind (Agresti and Coull 1998)."""
    share = (events + 2) / (n + 4)
    return share * (1 - share) / n


def _size_at(level: float, path: Path, seen_if: Sampler, magnitude: Magnitude, seen: float) -> float:
    """The size on the path at which as much as was seen is reached with this probability; 0 where nothing reaches it more often."""

    def reached(t: float) -> float:
        return float(np.mean(magnitude(seen_if(path(t))) >= seen * (1 - 1e-12)))

    if reached(0.0) >= level:
        return 0.0
    low, high = 0.0, max(seen, 1e-9)
    for _ in range(MAX_DOUBLINGS):  # a path may end where no component can grow
        if reached(high) >= level:
            break
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < level else (low, middle)
    return float(magnitude(path((low + high) / 2)))
