"""The share behind one that a detector with known errors has counted."""

from __future__ import annotations

import math
from statistics import NormalDist

from luthier.stats.intervals import Interval, wilson


def corrected_interval(
    hits: float, n: float, *, found: int, positives: int, left_alone: int, negatives: int, confidence: float = 0.95
) -> Interval:
    """Interval of the true share where a detector called `hits` of `n` (Lang and Reiczigel 2014, Prev. Vet. Med. 113:13).

    It found `found` of `positives` cases known to be so and left `left_alone` of `negatives` others alone: what is not known of its
    errors is in the interval, as is the sample. Where fewer are seen than its false alarms alone would give, or more than all cases
    would, its errors are others here, and the interval reaches at least to the end of that of the share as seen.
    Raises ValueError for a detector that is no better than a coin.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    seen_n, seen = n + z * z, (hits + z * z / 2) / (n + z * z)
    sensitivity, specificity = (found + 1) / (positives + 2), (left_alone + 1) / (negatives + 2)
    gain = sensitivity + specificity - 1
    if gain <= 0 or n <= 0:
        raise ValueError(f"a detector with sensitivity {sensitivity:.2f} and specificity {specificity:.2f}, {n:g} items")
    share = (seen + specificity - 1) / gain
    of_positives = sensitivity * (1 - sensitivity) / (positives + 2)
    of_negatives = specificity * (1 - specificity) / (negatives + 2)
    centre = share + 2 * z * z * (share * of_positives - (1 - share) * of_negatives)
    half = z * math.sqrt(seen * (1 - seen) / seen_n + share**2 * of_positives + (1 - share) ** 2 * of_negatives) / gain
    low, high = centre - half, centre + half
    seen_low, seen_high = wilson(hits, n, confidence)
    low = min(low, seen_low) if share > 1 else low
    high = max(high, seen_high) if share < 0 else high
    return min(1.0, max(0.0, low)), min(1.0, max(0.0, high))
