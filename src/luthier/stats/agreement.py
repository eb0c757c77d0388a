"""Do two raters say the same beyond what chance would give: Cohen's kappa with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from luthier.core.types import Estimate
from luthier.stats.bootstrap import bca_statistic

KAPPA_DRAWS = 2_000
# A bootstrap of n items sees nothing that did not occur in them: where both raters agree on (almost) all, its interval is a point.
MIN_UNLIKE = 3


def cohen_kappa(a: Sequence[str], b: Sequence[str], clusters: Sequence[str], *, seed: int, num_draws: int = KAPPA_DRAWS) -> Estimate:
    """Kappa of two raters over the same items (Cohen 1960), clusters resampled whole.

    Kappa is (agreement - chance) / (1 - chance), chance being what two raters with these shares of verdicts agree on by accident. None
    where there is no item, or one of them gave the same verdict throughout: kappa is then 0, or undefined, in every resample, and an
    interval without width would be false certainty. Where fewer than
    three items are rated unlike, the lower end is at most that of three: a bootstrap cannot show a disagreement that did not happen.
    """
    n = len(a)
    names = sorted({*a, *b})
    place = {name: i for i, name in enumerate(names)}
    first, second = (np.array([place[name] for name in ratings], dtype=np.int64) for ratings in (a, b))
    value = _kappa(first, second, len(names))
    if value is None or len(set(a)) == 1 or len(set(b)) == 1:
        return Estimate(value=None, low=None, high=None, n=n, method="not measured")

    def interval(second: NDArray[np.int64]) -> tuple[float, float]:
        def statistic(kept: NDArray[np.int64]) -> float:
            found = _kappa(first[kept], second[kept], len(names))
            return 0.0 if found is None else found  # a draw in which nothing varies shows nothing beyond chance

        return bca_statistic(statistic, clusters, 0.95, seed=seed, num_draws=num_draws)

    low, high = interval(second)
    unlike = int(np.count_nonzero(first != second))
    if unlike < MIN_UNLIKE:
        low = min(low, interval(_made_unlike(first, second, len(names)))[0])
    return Estimate(value=value, low=max(-1.0, min(low, value)), high=min(1.0, max(high, value)), n=n, method="cluster bootstrap BCa 95 %")


def _kappa(first: NDArray[np.int64], second: NDArray[np.int64], num_names: int) -> float | None:
    n = len(first)
    if n == 0:
        return None
    table = np.bincount(first * num_names + second, minlength=num_names * num_names).reshape(num_names, num_names) / n
    chance = float(table.sum(axis=1) @ table.sum(axis=0))
    return None if chance >= 1.0 else (float(np.trace(table)) - chance) / (1.0 - chance)


def _made_unlike(first: NDArray[np.int64], second: NDArray[np.int64], num_names: int) -> NDArray[np.int64]:
    """The second rater with as many items turned that three are unlike, spread over the items."""
    changed = second.copy()
    alike = np.flatnonzero(first == second)
    missing = min(len(alike), MIN_UNLIKE - int(np.count_nonzero(first != second)))
    for at in np.linspace(0, len(alike) - 1, missing).round().astype(np.int64):
        changed[alike[at]] = (changed[alike[at]] + 1) % num_names
    return changed
