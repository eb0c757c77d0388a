"""Which requests are decoded together: a pure function of all requests of a call.

Results of a batched bf16 product can differ in the last bit with the batch's shape, so a resumed run must form the same
batches as the uninterrupted one: batches are planned over all requests, and a batch is either taken from the cache whole or
decoded whole.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_PAIRS = 24_000_000  # (token, token it may see) pairs of a batch while prompts are read: the attention mask


def plan_passes(lengths: Sequence[int], most: int) -> list[tuple[int, int]]:
    """First row and end of each stretch of rows that together, padding included, are at most `most` tokens, or one row."""
    ends: list[tuple[int, int]] = []
    start = longest = 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if i > start and (i + 1 - start) * longest > most:
            ends.append((start, i))
            start, longest = i, length
    return [*ends, (start, len(lengths))]


def plan_batches(lengths: Sequence[int], *, num_prefix: int, batch: int) -> tuple[tuple[int, ...], ...]:
    """Indices of each batch, longest prompts first, similar lengths together; at least one row a batch.

    `lengths[i]` counts the tokens of prompt i after the shared prefix.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[tuple[int, ...]] = []
    current: list[int] = []
    for i in order:
        longest = lengths[current[0]] if current else lengths[i]
        pairs = (len(current) + 1) * longest * (num_prefix + longest)
        if current and (len(current) == batch or pairs > MAX_PAIRS):
            batches.append(tuple(current))
            current = []
        current.append(i)
    if current:
        batches.append(tuple(current))
    return tuple(batches)
