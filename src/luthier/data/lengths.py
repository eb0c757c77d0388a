"""How long the rows are in tokens, and when too many are too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.core.types import Severity

NUM_BINS = 20
WARN_SHARE, REFUSE_SHARE = 0.01, 0.10


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


@dataclass(frozen=True, slots=True, kw_only=True)
class OverLong:
    """Rows over the limit, by position. `severity` is None where there are none."""

    positions: tuple[int, ...]
    share: float
    max_length: int
    severity: Severity | None


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


def over_long(num_tokens: Sequence[int], *, max_length: int) -> OverLong:
    """Rows of more than `max_length` tokens: some are an "info", more than 1 % a "warning", more than 10 % an "error"."""
    positions = tuple(i for i, length in enumerate(num_tokens) if length > max_length)
    share = len(positions) / len(num_tokens) if num_tokens else 0.0
    severity: Severity | None = "info" if positions else None
    if share > REFUSE_SHARE:
        severity = "error"
    elif share > WARN_SHARE:
        severity = "warning"
    return OverLong(positions=positions, share=share, max_length=max_length, severity=severity)
