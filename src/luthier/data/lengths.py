"""How long the rows are in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NUM_BINS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthSummary:
    """Lengths in tokens; quantiles are lengths that occur (nearest rank), None without rows. `bins`: (low, high, rows), high exclusive."""

    n: int
    min: int | None
    p50: int | None
    p90: int | None
    p99: int | None
    max: int | None
    bins: tuple[tuple[int, int, int], ...]


def length_summary(num_tokens: Sequence[int]) -> LengthSummary:
    """Quantiles and a histogram of at most `NUM_BINS` equally wide bins."""
    ordered = sorted(num_tokens)
    n = len(ordered)
    if not n:
        return LengthSummary(n=0, min=None, p50=None, p90=None, p99=None, max=None, bins=())
    low, high = ordered[0], ordered[-1]
    width = -(-(high - low + 1) // NUM_BINS)
    counts = [0] * (-(-(high - low + 1) // width))
    for length in ordered:
        counts[(length - low) // width] += 1
    bins = tuple((low + k * width, low + (k + 1) * width, count) for k, count in enumerate(counts))
    p50, p90, p99 = (ordered[max(0, -(-percent * n // 100) - 1)] for percent in (50, 90, 99))
    return LengthSummary(n=n, min=low, p50=p50, p90=p90, p99=p99, max=high, bins=bins)
