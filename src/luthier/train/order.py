"""Which rows make up which update: a pure function of (lengths, seed, epoch), so that resuming needs no replay.

Rows of similar length go together (less padding inside attention, steadier step time), within windows drawn at random:
the order stays random at the scale of `WINDOW_BATCHES` updates.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

WINDOW_BATCHES = 8


def epoch_batches(lengths: Sequence[int], *, batch: int, seed: int, epoch: int) -> tuple[tuple[int, ...], ...]:
    """Row indices of each update of one epoch. Every row appears exactly once; the last update may be smaller."""
    rng = random.Random(f"{seed}/order/{epoch}")  # noqa: S311  private, reproducible stream
    rows = list(range(len(lengths)))
    rng.shuffle(rows)
    batches: list[tuple[int, ...]] = []
    for start in range(0, len(rows), batch * WINDOW_BATCHES):
        window = sorted(rows[start : start + batch * WINDOW_BATCHES], key=lambda i: (lengths[i], i))
        pieces = [tuple(window[i : i + batch]) for i in range(0, len(window), batch)]
        rng.shuffle(pieces)
        batches += pieces
    return tuple(batches)


def updates(lengths: Sequence[int], *, batch: int, seed: int, start: int = 0) -> Iterator[tuple[int, ...]]:
    """Row indices of update `start` (counted from 0) and all after it, epoch after epoch, without end."""
    first_epoch, done = divmod(start, -(-len(lengths) // batch))
    for epoch in itertools.count(first_epoch):
        yield from epoch_batches(lengths, batch=batch, seed=seed, epoch=epoch)[done if epoch == first_epoch else 0 :]
