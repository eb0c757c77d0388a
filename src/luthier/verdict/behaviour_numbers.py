"""Numbers of the behaviour section: one line of one table at a time, each with its interval, from recorded answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from luthier.core.types import ArmResult, Estimate, ItemScore, TaskProfile
from luthier.metrics.consistency import AskedAgain, AskPlan, Way, sample_confidence
from luthier.metrics.form import AnswerForm
from luthier.metrics.tone import distance, measure_text
from luthier.stats.calibration import Calibration, calibrate
from luthier.stats.intervals import mean_estimate, paired_difference
from luthier.stats.magnitude import spread_estimate

NOT_MEASURED = Estimate(value=None, low=None, high=None, n=0, method="not measured")
RIGHT_OR_WRONG: Mapping[str, str] = {"label": "exact", "short": "exact", "json": "json_exact"}  # what a confidence is held against
CHANGED: tuple[Way, ...] = ("reworded", "input")


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleRecord:
    """How well the style classifier tells wanted from zero-shot answers, and which wanted test answers it takes for such."""

    auc: float
    min_auc: float
    num_texts: int  # of each kind, that it was trained on
    references: Mapping[str, float]  # test item id -> 1 or 0; empty where `auc` is too low


@dataclass(frozen=True, slots=True, kw_only=True)
class ParaphraseRecord:
    """What a model made of the items asked again, and what the checks refused of it."""

    by: str
    num_asked: int = 0
    num_items: int = 0  # with at least one paraphrase that passed
    refused: Mapping[str, int] = field(default_factory=dict[str, int])  # reason -> how many
    seconds: float = 0.0
    failed: str = ""  # why there are none

    @property
    def num_kept(self) -> int:
        """Those that passed."""
        return self.num_asked - sum(self.refused.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviourRecord:
    """What the behaviour of the arms is read from, beside their answers to the locked items."""

    plan: AskPlan
    form: AnswerForm
    asked: Mapping[str, tuple[AskedAgain, ...]]  # arm -> its further answers
    failed: Mapping[str, str]  # arm -> why it could not be asked again
    tone: Mapping[str, tuple[float, ...]]  # measure -> its values on training answers; empty: answers are no free text
    style: StyleRecord | None
    style_note: str  # why there is no style match; empty where there is
    predicted_seconds: float
    seconds: float
    paraphrases: ParaphraseRecord | None = None  # None: nobody was asked for any


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Tuned minus best prompt on the same items, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviourLine:
    """One thing measured, an estimate for each column."""

    key: str
    what: str
    values: tuple[Estimate, ...]
    difference: Difference | None = None
    lower_is_better: bool = False
    is_part: bool = False  # a part of the line before


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What every line is made from."""

    arms: tuple[ArmResult, ...]  # in the order of the columns
    found: BehaviourRecord
    profile: TaskProfile
    metric: str
    seed: int
    by_arm: Mapping[str, Mapping[str, Sequence[AskedAgain]]] = field(default_factory=dict[str, Mapping[str, Sequence[AskedAgain]]])


ItemValue = Callable[[ArmResult, ItemScore], float | None]


def value_of(name: str) -> ItemValue:
    """A value recorded with each item."""
    return lambda _, item: item.values.get(name)


def make_line(
    table: Table,
    key: str,
    what: str,
    value: ItemValue,
    *,
    wanted: Callable[[ItemScore], float | None] | None = None,
    lower_is_better: bool = False,
    is_part: bool = False,
) -> BehaviourLine:
    """Means with their intervals, and the paired difference of the last two arms."""
    known = [[(item, v) for item in arm.items if (v := value(arm, item)) is not None] for arm in table.arms]
    made = BehaviourLine(
        key=key,
        what=what,
        values=(*(_mean([(v, item.cluster) for item, v in one], table.seed) for one in known), NOT_MEASURED),
        difference=_paired(known[-2], known[-1], table.seed) if len(known) > 1 else None,
        lower_is_better=lower_is_better,
        is_part=is_part,
    )
    return made if wanted is None else with_wanted(table, made, wanted)


def with_wanted(table: Table, line: BehaviourLine, wanted: Callable[[ItemScore], float | None]) -> BehaviourLine:
    """The line with the wanted answers in its last column."""
    scored = [(v, item.cluster) for item in table.arms[-1].items if (v := wanted(item)) is not None]
    return replace(line, values=(*line.values[:-1], _mean(scored, table.seed)))


def _mean(values: Sequence[tuple[float, str]], seed: int) -> Estimate:
    return mean_estimate([value for value, _ in values], [cluster for _, cluster in values], seed=seed)


def _paired(prompt: Sequence[tuple[ItemScore, float]], tuned: Sequence[tuple[ItemScore, float]], seed: int) -> Difference | None:
    others = {item.item_id: value for item, value in prompt}
    pairs = [(value, others[item.item_id], item.cluster) for item, value in tuned if item.item_id in others]
    if not pairs:
        return None
    is_binary = all(value in (0.0, 1.0) for a, b, _ in pairs for value in (a, b))
    found = paired_difference([a - b for a, b, _ in pairs], [cluster for _, _, cluster in pairs], is_binary=is_binary, seed=seed)
    return Difference(value=found.difference, low=found.interval95[0], high=found.interval95[1])


def spread_of(table: Table, arm: ArmResult) -> Estimate:
    """Best less worst mean score over the first wording and each changed one, on the items scored in all; what noise adds is taken off."""
    asked = table.by_arm.get(arm.name, {})
    rows: list[list[float]] = []
    clusters: list[str] = []
    names = sorted({one.name for again in asked.values() for one in again if one.way in CHANGED})
    for item in arm.items:
        scores = {one.name: one.score for one in asked.get(item.item_id, ()) if one.way in CHANGED and one.score is not None}
        first = item.values.get(table.metric)
        if first is not None and names and all(name in scores for name in names):
            rows.append([first, *(scores[name] or 0.0 for name in names)])
            clusters.append(item.cluster)
    if len(set(clusters)) < 2:
        return NOT_MEASURED
    return spread_estimate(np.array(rows, dtype=np.float64), clusters, seed=table.seed)


def tone_distance(items: Sequence[ItemScore], text: Callable[[ItemScore], str], name: str, reference: Sequence[float]) -> Estimate:
    """How far the texts lie from the training answers in one measure."""
    known = [(v, item.cluster) for item in items if (v := measure_text(text(item), name)) is not None]
    return distance([v for v, _ in known], reference, max(1, len({cluster for _, cluster in known})))


def confidence_of(table: Table, arm: ArmResult, item: ItemScore) -> float | None:
    """The label's probability where it was recorded, else the agreement of the samples."""
    known = item.values.get("confidence")
    again = table.by_arm.get(arm.name, {}).get(item.item_id, ())
    return known if known is not None else sample_confidence(item.text, again, table.profile)


def calibration_of(table: Table, arm: ArmResult) -> Calibration | None:
    """Calibration of an arm on the answers that have a confidence and are right or wrong; None without any."""
    metric = RIGHT_OR_WRONG.get(table.profile.kind)
    if metric is None:
        return None
    known = [
        (sure, right, item.cluster)
        for item in arm.items
        if (sure := confidence_of(table, arm, item)) is not None and (right := item.values.get(metric)) is not None
    ]
    if not known:
        return None
    return calibrate([k[0] for k in known], [k[1] for k in known], [k[2] for k in known], seed=table.seed)
