"""Orders of fixed solved examples that are worth a try on dev.

How well the same examples work depends on their order about as much as on which they are, no order is good for all models and tasks,
and a good one can be told on dev items (Lu et al. 2022; Guo et al. 2024; arXiv:2511.09700). What stands last weighs most
(Zhao et al. 2021), so the orders with a reason differ in what that is; the rest are drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from luthier.arms.index import index_words
from luthier.core.seeds import rng
from luthier.core.types import Example

AS_DRAWN = "as drawn"
MAX_NEIGHBOURS = 256  # training rows that say which example is typical


def shot_orders(
    shots: Sequence[Example],
    rows: Sequence[Example],
    *,
    number: int,
    group: Callable[[Example], str],
    query: Callable[[Example], str],
    seed: int,
    stream: str,
) -> tuple[tuple[str, tuple[Example, ...]], ...]:
    """At most `number` other orders of `shots`, each with its name, none twice; a smaller number gives the first of a larger one.

    `group` is the answer as it is counted over `rows`, `query` the text that examples resemble each other by. Shuffles come
    from the private stream `stream`.
    """
    as_drawn = tuple(range(len(shots)))
    named = {
        "reversed": as_drawn[::-1],
        "commonest answer last": _commonest_last(shots, rows, group),
        "most typical last": _most_typical_last(shots, rows, query),
    }
    out: dict[tuple[int, ...], str] = {}
    for name, order in named.items():
        if order != as_drawn:
            out.setdefault(order, name)
    random, drawn = rng(seed, stream), 0
    while len(out) < min(number, math.factorial(len(shots)) - 1):
        order = tuple(random.sample(as_drawn, len(as_drawn)))
        if order != as_drawn and order not in out:
            drawn += 1
            out[order] = f"shuffle {drawn}"
    return tuple((name, tuple(shots[place] for place in order)) for order, name in list(out.items())[:number])


def _commonest_last(shots: Sequence[Example], rows: Sequence[Example], group: Callable[[Example], str]) -> tuple[int, ...]:
    """By how often their answer is given in training; equal ones as drawn."""
    count = Counter(group(row) for row in rows)
    return tuple(sorted(range(len(shots)), key=lambda place: count[group(shots[place])]))


def _most_typical_last(shots: Sequence[Example], rows: Sequence[Example], query: Callable[[Example], str]) -> tuple[int, ...]:
    """By how many training rows resemble this example more than the others (BM25); equal ones as drawn."""
    index = index_words([query(shot) for shot in shots])
    nearest: Counter[int] = Counter()
    for row in rows[:: max(1, math.ceil(len(rows) / MAX_NEIGHBOURS))]:
        scores = index.scores(query(row))
        if scores.max() > 0:
            nearest[int(np.argmax(scores))] += 1
    return tuple(sorted(range(len(shots)), key=lambda place: nearest[place]))
