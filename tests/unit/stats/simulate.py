"""Coverage, exactly where the tables can be listed and by simulation where they cannot; shared by the fast and the slow tier."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from luthier.stats.intervals import mean_estimate, paired_difference, tango, wilson

Generator = np.random.Generator
Draw = Callable[[Generator], tuple[list[float], list[str]]]
NEGLIGIBLE = 1e-9

cached_tango = lru_cache(maxsize=200_000)(tango)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def tables(n: int, first_only: float, second_only: float) -> list[tuple[int, int, float]]:
    """(b, c, probability) of every table of `n` pairs that is not negligible."""
    out: list[tuple[int, int, float]] = []
    rest = 1 - first_only - second_only
    for b in range(n + 1):
        for c in range(n - b + 1):
            log_p = _log_choose(n, b) + _log_choose(n - b, c) + b * math.log(first_only) + c * math.log(second_only)
            p = math.exp(log_p + (n - b - c) * math.log(rest))
            if p > NEGLIGIBLE:
                out.append((b, c, p))
            elif c > n * second_only:
                break
    return out


def tango_coverage(n: int, first_only: float, second_only: float, confidence: float = 0.95) -> float:
    truth = first_only - second_only
    return sum(p for b, c, p in tables(n, first_only, second_only) if _holds(cached_tango(b, c, n, confidence), truth))


def tango_power(n: int, first_only: float, second_only: float, *, above: float = 0.0, confidence: float = 0.95) -> float:
    """Chance that the lower end lies above `above`."""
    return sum(p for b, c, p in tables(n, first_only, second_only) if cached_tango(b, c, n, confidence)[0] > above)


def wilson_coverage(n: int, share: float, confidence: float = 0.95) -> float:
    def p(k: int) -> float:
        return math.exp(_log_choose(n, k) + k * math.log(share) + (n - k) * math.log1p(-share))

    return sum(p(k) for k in range(n + 1) if _holds(wilson(k, n, confidence), share))


def clustered(num_clusters: int, mean_size: int, copies: float, value: Callable[[np.ndarray], np.ndarray]) -> Draw:
    """Clusters of 1 to 2 x mean_size - 1 items; in a share `copies` of them all items are the same (intracluster correlation)."""

    def draw(generator: Generator) -> tuple[list[float], list[str]]:
        values: list[float] = []
        names: list[str] = []
        for number, size in enumerate(generator.integers(1, 2 * mean_size, size=num_clusters)):
            one = np.full(size, generator.random())
            uniform = one if generator.random() < copies else generator.random(size)
            values += [float(v) for v in value(uniform)]
            names += [f"c{number:04d}"] * int(size)
        return values, names

    return draw


def right_or_wrong(first_only: float, second_only: float) -> Callable[[np.ndarray], np.ndarray]:
    """Differences of right/wrong scores."""
    return lambda u: np.where(u < first_only, 1.0, np.where(u < first_only + second_only, -1.0, 0.0))


def graded(u: np.ndarray) -> np.ndarray:
    """A skewed difference in [-0.4, 0.6]."""
    return u**2 - 0.4


GRADED_MEAN = 1 / 3 - 0.4


def below(share: float) -> Callable[[np.ndarray], np.ndarray]:
    """Right/wrong scores with this mean."""
    return lambda u: (u < share) * 1.0


def paired_coverage(draw: Draw, truth: float, runs: int, *, is_binary: bool, num_draws: int) -> float:
    generator = np.random.default_rng(20260101)
    hits = 0
    for run in range(runs):
        values, names = draw(generator)
        hits += _holds(paired_difference(values, names, is_binary=is_binary, seed=run, num_draws=num_draws).interval95, truth)
    return hits / runs


def mean_coverage(draw: Draw, truth: float, runs: int, *, num_draws: int) -> float:
    generator = np.random.default_rng(20260102)
    hits = 0
    for run in range(runs):
        values, names = draw(generator)
        found = mean_estimate(values, names, seed=run, num_draws=num_draws)
        assert found.low is not None
        assert found.high is not None
        hits += _holds((found.low, found.high), truth)
    return hits / runs


def _holds(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] - 1e-12 <= truth <= interval[1] + 1e-12
