"""What is no mean over items: macro-F1 of labels, precision and recall of abstention. From the recorded answers and scores alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from luthier.core.types import Estimate, ItemScore, TaskProfile
from luthier.data.normalise import normalise
from luthier.stats.intervals import mean_estimate
from luthier.stats.macro_f1 import macro_f1

AGGREGATE_MEANINGS: Mapping[str, str] = {
    "macro_f1": "mean of the F1 of each label, rare and frequent ones alike; an invalid label is wrong; no interval below 10 items a label",
    "abstention_precision": "of the answers that decline: share whose reference declines too",
    "abstention_recall": "of the items whose reference declines: share that were declined",
}


def aggregates(items: Sequence[ItemScore], profile: TaskProfile, *, seed: int) -> dict[str, Estimate]:
    """Those that apply: macro-F1 to labels, abstention where some reference declines."""
    found: dict[str, Estimate] = {}
    if profile.kind == "label":
        clusters = [item.cluster for item in items]
        found["macro_f1"] = macro_f1([normalise(i.text) for i in items], [normalise(i.gold) for i in items], clusters, seed=seed)
    unanswerable = [(1.0 - made_up, item.cluster) for item in items if (made_up := item.values.get("fabrication")) is not None]
    if unanswerable:
        needless = [(0.0, item.cluster) for item in items if item.values.get("over_abstention") == 1.0]
        found["abstention_precision"] = _mean([*(one for one in unanswerable if one[0] == 1.0), *needless], seed)
        found["abstention_recall"] = _mean(unanswerable, seed)
    return found


def _mean(values: Sequence[tuple[float, str]], seed: int) -> Estimate:
    return mean_estimate([value for value, _ in values], [cluster for _, cluster in values], seed=seed)
