"""Latency quantiles with distribution-free intervals, and only those the number of requests can carry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.core.errors import RunError
from luthier.core.types import Estimate

MIN_N_P95 = 200
MIN_N_P99 = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """Seconds per request. A quantile that n cannot carry has `value` None."""

    n: int
    p50: Estimate
    p95: Estimate
    p99: Estimate


def latency_summary(latencies_s: Sequence[float]) -> LatencySummary:
    """p50 always, p95 from 200 requests, p99 from 1,000, each with a 95 % order-statistic interval.

    Raises RunError on a negative or non-finite latency: a broken clock or record must not become a number.
    """
    for i, latency in enumerate(latencies_s):
        if not math.isfinite(latency) or latency < 0:
            raise RunError(
                f"latency {i + 1} is {latency!r}, expected seconds >= 0",
                where="latencies",
                fix="remove this record from the run and measure again",
            )
    ordered = sorted(latencies_s)
    return LatencySummary(
        n=len(ordered),
        p50=quantile(ordered, 0.50, min_n=1),
        p95=quantile(ordered, 0.95, min_n=MIN_N_P95),
        p99=quantile(ordered, 0.99, min_n=MIN_N_P99),
    )


def quantile(ordered: Sequence[float], q: float, *, min_n: int) -> Estimate:
    """Nearest-rank quantile of ascending values with its order-statistic (binomial) 95 % interval.

    The interval runs from the l-th to the u-th smallest value, where P(Bin(n, q) < l) <= 2.5 % and P(Bin(n, q) >= u) <= 2.5 %
    (David and Nagaraja 2003, 7.1). An end that would lie beyond the sample is None. Below `min_n` nothing is reported.
    """
    n = len(ordered)
    if n < max(1, min_n):
        return Estimate(value=None, low=None, high=None, n=n, method=f"not reported: n < {max(1, min_n)}")
    from scipy.special import bdtr  # slow to load

    # bdtr(k, n, q) = P(Bin(n, q) <= k), ascending in k: bisect both ends.
    low_rank = _first_rank(n, lambda k: float(bdtr(k - 1, n, q)) > 0.025) - 1
    high_rank = _first_rank(n, lambda k: float(bdtr(k - 1, n, q)) >= 0.975)
    return Estimate(
        value=ordered[max(1, math.ceil(n * q - 1e-9)) - 1],
        low=ordered[low_rank - 1] if low_rank >= 1 else None,
        high=ordered[high_rank - 1] if high_rank <= n else None,
        n=n,
        method="order statistics 95 %",
    )


def _first_rank(n: int, reached: Callable[[int], bool]) -> int:
    """The smallest rank in 1..n for which `reached` holds (it holds from there on); n + 1 if none."""
    low, high = 1, n + 1
    while low < high:
        middle = (low + high) // 2
        if reached(middle):
            high = middle
        else:
            low = middle + 1
    return low
