"""Macro-F1 of labels with its interval. It is no mean over items: a stratified cluster bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from luthier.core.seeds import seed_for
from luthier.core.types import Estimate
from luthier.stats.intervals import wilson

NUM_DRAWS = 2_000
MIN_ITEMS_A_LABEL = 10  # with 5 items for each of 77 labels such intervals covered 76 to 85 %: F1 of so few items is biased itself
Z95 = NormalDist().inv_cdf(0.975)


def macro_f1(pred: Sequence[str], gold: Sequence[str], clusters: Sequence[str], *, seed: int) -> Estimate:
    """Mean F1 over the labels that occur in `gold`; an answer that is none of them is wrong and belongs to no label.

    Clusters are resampled whole within the label of their first item, so that no label vanishes from a draw. The interval is the
    estimate and 1.96 standard deviations of the draws: with few items a label the draws themselves lie lower than the estimate.
    """
    if not gold:
        return Estimate(value=None, low=None, high=None, n=0, method="not measured")
    labels = {label: number for number, label in enumerate(dict.fromkeys(gold))}
    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    hits_GL, said_GL, wanted_GL = (np.zeros((len(names), len(labels))) for _ in range(3))
    stratum: dict[int, int] = {}
    for answer, right, cluster in zip(pred, gold, clusters, strict=True):
        g = names[cluster]
        stratum.setdefault(g, labels[right])
        wanted_GL[g, labels[right]] += 1
        if answer in labels:
            said_GL[g, labels[answer]] += 1
            hits_GL[g, labels[answer]] += answer == right
    value = float(_mean_f1(hits_GL.sum(0), said_GL.sum(0), wanted_GL.sum(0)))
    if len(gold) < MIN_ITEMS_A_LABEL * len(labels):
        few = f"no interval: fewer than {MIN_ITEMS_A_LABEL} items a label, where it would cover too seldom"
        return Estimate(value=value, low=None, high=None, n=len(gold), method=few)
    strata = np.array([stratum[g] for g in range(len(names))])
    times_DG = _draws(strata, seed)
    draws = _mean_f1(times_DG @ hits_GL, times_DG @ said_GL, times_DG @ wanted_GL)
    half = Z95 * float(np.std(draws, ddof=1))
    share = float(hits_GL.sum()) / len(gold)
    least, most = wilson(share * len(names), len(names))  # where all or none is right the draws do not vary: no certainty for that
    low, high = value - max(half, share - least), value + max(half, most - share)
    return Estimate(
        value=value,
        low=max(0.0, low),
        high=min(1.0, high),
        n=len(gold),
        method="stratified cluster bootstrap 95 %, at least as wide as Wilson's of the accuracy",
    )


def _mean_f1(hits: NDArray[np.float64], said: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    return (2 * hits / np.maximum(said + wanted, 1)).mean(axis=-1)


def _draws(strata: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """How often each cluster is drawn, draw by draw; each stratum keeps its number of clusters."""
    generator = np.random.default_rng(seed_for(seed, "stats/macro F1"))
    times_DG = np.zeros((NUM_DRAWS, len(strata)))
    for one in np.unique(strata):
        members = np.flatnonzero(strata == one)
        times_DG[:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=NUM_DRAWS)
    return times_DG
