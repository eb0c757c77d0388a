"""Coverage of what noise alone makes larger: calibration error, and the spread between wordings. Shared by the fast and the slow tier."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtri

from luthier.core.types import Estimate
from luthier.stats import calibration
from luthier.stats.magnitude import magnitude_interval, normal_errors, scaled, shrunk, spread_estimate, thresholded

Array = np.ndarray


@dataclass(frozen=True)
class Covered:
    share: float
    too_high: float  # of the runs: the whole interval above the truth
    bias: float  # mean value less the truth
    width: float


def count(found: list[Estimate], truth: float) -> Covered:
    low, high, value = (np.array([getattr(one, end) for one in found], dtype=np.float64) for end in ("low", "high", "value"))
    inside = (low - 1e-12 <= truth) & (truth <= high + 1e-12)
    return Covered(float(inside.mean()), float((low > truth + 1e-12).mean()), float(value.mean()) - truth, float((high - low).mean()))


# Right as often as said; less often by 5 points; boasting where it is sure; hardly ever wrong.
MODELS = ("honest", "5 points off", "boasting", "near the ceiling")


def answers(model: str, n: int, generator: np.random.Generator, size: int = 1) -> tuple[Array, Array, list[str]]:
    """Confidence, right or wrong, clusters of `size` answers; in half of those larger than one all are copies."""
    groups = -(-n // size)
    sure = np.repeat(generator.beta(30, 1, groups) if model == "near the ceiling" else generator.beta(4, 1.2, groups), size)[:n]
    one, each = np.repeat(generator.random(groups), size)[:n], generator.random(n)
    uniform = np.where(np.repeat(generator.random(groups) < 0.5, size)[:n], one, each)
    likely = {"honest": sure, "5 points off": np.clip(sure - 0.05, 0, 1), "boasting": 0.25 + 0.5 * sure, "near the ceiling": 0.97 * sure}
    return sure, (uniform < likely[model]).astype(float), [str(i // size) for i in range(n)]


@lru_cache
def true_error(model: str) -> float:
    sure, right, _ = answers(model, 400_000, np.random.default_rng(20260104))
    return calibration.calibration_error(sure, right)


def error_coverage(model: str, n: int, runs: int, *, size: int = 1) -> Covered:
    generator = np.random.default_rng(20260105)
    found: list[Estimate] = []
    for run in range(runs):
        sure, right, clusters = answers(model, n, generator, size)
        found.append(calibration.error_estimate(sure, right, clusters, seed=run))
    return count(found, true_error(model))


def noise_coverage(truth_K: Array, sd: float, runs: int) -> float:
    """The mean absolute gap of components seen with independent normal errors."""
    generator = np.random.default_rng(20260106)
    hits = 0
    for run in range(runs):
        seen_K = generator.normal(truth_K, sd)
        noise = normal_errors(sd**2 * np.eye(len(truth_K)), seed=run)
        paths = (thresholded(seen_K), scaled(shrunk(seen_K, sd**2)))
        _, low, high = magnitude_interval(seen_K, noise, lambda gaps: np.abs(gaps).mean(axis=-1), paths)
        hits += low - 1e-12 <= float(np.abs(truth_K).mean()) <= high
    return hits / runs


def spread_coverage(apart: tuple[float, ...], n: int, runs: int, *, size: int = 1, share: float = 0.7) -> Covered:
    """Best less worst of wordings that are right in `share` less `apart` of the items; most items are answered alike in all of them."""
    generator = np.random.default_rng(20260108)
    groups = n // size
    found: list[Estimate] = []
    for run in range(runs):
        items, own = np.repeat(generator.normal(size=(groups, 1)), size, axis=0), generator.normal(size=(groups, len(apart)))
        latent = np.sqrt(0.8) * items + np.sqrt(0.2) * np.repeat(own, size, axis=0)
        scores = (latent < ndtri(share - np.array(apart))).astype(float)
        found.append(spread_estimate(scores, [str(i // size) for i in range(n)], seed=run))
    return count(found, max(apart) - min(apart))
