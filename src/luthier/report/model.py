"""Everything the report, the model card and the closing lines of a run show, precomputed by the caller.

The renderers measure nothing and decide nothing: what is not in a `ReportModel` is not in a report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from luthier.core.exports import ExportRecord
from luthier.core.types import ArmFamily, ArmResult, Comparison, Estimate, Finding, ItemScore, TaskProfile, Verdict
from luthier.verdict.behaviour import Behaviour
from luthier.verdict.judge import JudgeReading
from luthier.verdict.probes import ProbeLine
from luthier.verdict.slices import Slice

NOT_MEASURED = Estimate(value=None, low=None, high=None, n=0, method="not measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """One line of the table of arms. Scores in [0, 1]; tokens are means for one request; None is "not measured"."""

    name: str
    family: ArmFamily
    score: Estimate
    cost_per_1000: Estimate  # US dollars for 1,000 requests
    cost_per_1000_correct: Estimate = NOT_MEASURED  # US dollars for 1,000 right answers
    metrics: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])  # every metric of the task, the verdict's included
    model: str = ""
    description: str = ""
    latency_p50_s: Estimate = NOT_MEASURED
    first_token_p50_s: Estimate = NOT_MEASURED
    tokens_per_s_p50: Estimate = NOT_MEASURED  # behind the first token
    latency_p95_s: Estimate = NOT_MEASURED
    prompt_tokens: float | None = None
    new_tokens: float | None = None
    peak_mem_gib: float | None = None
    dev_score: float | None = None
    dev_n: int = 0
    train_seconds: float | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One logged training step. `dev_loss` is None except where dev was evaluated; a loss may be NaN, and is shown so."""

    step: int
    train_loss: float | None = None
    dev_loss: float | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LrTrial:
    """One learning rate tried in the search. `dev_loss` None: the trial did not finish."""

    lr: float
    dev_loss: float | None
    steps: int
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningPoint:
    """Score of the tuned arm when trained on only `num_examples`."""

    num_examples: int
    score: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningBand:
    """The fitted learning curve at one number of examples, with its 90 % interval."""

    num_examples: float
    score: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSizes:
    """What the split came to. `test_sha256` is over the locked test items."""

    num_train: int
    num_dev: int
    num_test: int
    test_sha256: str
    seed: int = 0
    official_test: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportModel:
    """One finished run, ready to be shown. All text in it is untrusted."""

    title: str
    base_model: str  # its id on the hub where it has one, else its name
    created: str  # ISO 8601, with time zone
    luthier_version: str
    run_command: str
    verdict: Verdict
    rows: tuple[ArmRow, ...]
    arms: tuple[ArmResult, ...]  # with their items; only those of the two arms compared are read
    num_read: int
    num_kept: int
    num_rejected: int
    split: SplitSizes
    findings: tuple[Finding, ...] = ()
    profile: TaskProfile | None = None
    item_inputs: Mapping[str, str] = field(default_factory=dict[str, str])  # item id -> what the model was shown
    ceiling: Estimate | None = None  # the best score the labels themselves allow
    training: Mapping[str, str] = field(default_factory=dict[str, str])  # how the adapter came about: what -> in words
    curve: tuple[CurvePoint, ...] = ()
    lr_trials: tuple[LrTrial, ...] = ()
    learning_curve: tuple[LearningPoint, ...] = ()
    learning_band: tuple[LearningBand, ...] = ()
    learning_words: tuple[str, ...] = ()
    learning_note: str = ""  # under which conditions the curve was taken
    slices: tuple[Slice, ...] = ()  # where the tuned arm errs, worst first
    behaviour: Behaviour | None = None  # before and after
    probe_lines: tuple[ProbeLine, ...] = ()  # base and tuned model beside the test items
    probe_notes: tuple[str, ...] = ()  # how they were probed, and how wrong the detector is
    judge: JudgeReading | None = None  # a model's comparison of the two arms, and whether it may be believed
    prompt_lengths_tokens: tuple[int, ...] = ()
    response_lengths_tokens: tuple[int, ...] = ()
    config: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])  # dotted key -> (value, origin)
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    cost_basis: str = ""  # one sentence: what the costs were computed from
    items_path: str = "items.jsonl"  # where every item is, whole, relative to the run folder
    rejects_path: str = "rejects.jsonl"
    records_path: str = "results.json"  # everything else behind the report
    exports: tuple[ExportRecord, ...] = ()  # each with its parity
    limits: tuple[str, ...] = ()  # what this run in particular does not show, beside the standing limits

    def row(self, name: str | None) -> ArmRow | None:
        """The table row of the arm called `name`."""
        return next((row for row in self.rows if row.name == name), None)

    def arm(self, name: str | None) -> ArmResult | None:
        """The arm called `name`, with its items."""
        return next((arm for arm in self.arms if arm.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemPair:
    """One test item as answered by the best prompt and by the best tuned arm."""

    item_id: str
    input: str | None  # None: the caller gave no input for this item
    gold: str
    prompt_answer: str
    tuned_answer: str
    prompt_value: float
    tuned_value: float
    note: str = ""

    @property
    def gap(self) -> float:
        """Tuned minus prompt."""
        return self.tuned_value - self.prompt_value


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemGroups:
    """The paired items: those that differ, largest gap first, and the ties as counts or, where both are wrong, as items."""

    tuned_better: tuple[ItemPair, ...]
    prompt_better: tuple[ItemPair, ...]
    both_wrong: tuple[ItemPair, ...]  # equal, and below one half
    num_both_right: int  # both without a fault
    num_both_partly: int  # equal, one half or more, not without a fault
    num_unscored: int  # at least one of the two answers could not be scored
    num_unpaired: int  # answered by only one of the two arms

    @property
    def num_scored(self) -> int:
        """Items answered and scored for both arms."""
        return len(self.tuned_better) + len(self.prompt_better) + len(self.both_wrong) + self.num_both_right + self.num_both_partly


def pair_items(model: ReportModel) -> ItemGroups | None:
    """Join the items of the best prompt and the best tuned arm. None where there are no two arms to join."""
    prompt, tuned = model.arm(model.verdict.best_prompt), model.arm(model.verdict.best_tuned)
    if prompt is None or tuned is None or not prompt.items or not tuned.items:
        return None
    prompt_items = {item.item_id: item for item in prompt.items}
    pairs: list[ItemPair] = []
    num_unscored = 0
    for item in tuned.items:
        other = prompt_items.get(item.item_id)
        if other is None:
            continue
        tuned_value, prompt_value = item.values.get(model.verdict.metric), other.values.get(model.verdict.metric)
        if tuned_value is None or prompt_value is None:
            num_unscored += 1
            continue
        pairs.append(
            ItemPair(
                item_id=item.item_id,
                input=model.item_inputs.get(item.item_id),
                gold=item.gold,
                prompt_answer=other.text,
                tuned_answer=item.text,
                prompt_value=prompt_value,
                tuned_value=tuned_value,
                note="; ".join(dict.fromkeys(note for note in (other.note, item.note, _shown(other), _shown(item)) if note)),
            )
        )
    num_paired = len(pairs) + num_unscored
    ties = [pair for pair in pairs if pair.gap == 0]
    return ItemGroups(
        tuned_better=tuple(sorted((pair for pair in pairs if pair.gap > 0), key=lambda pair: -pair.gap)),
        prompt_better=tuple(sorted((pair for pair in pairs if pair.gap < 0), key=lambda pair: pair.gap)),
        both_wrong=tuple(pair for pair in ties if pair.tuned_value < 0.5),
        num_both_right=sum(pair.tuned_value >= 1 for pair in ties),
        num_both_partly=sum(0.5 <= pair.tuned_value < 1 for pair in ties),
        num_unscored=num_unscored,
        num_unpaired=len(prompt_items) + len(tuned.items) - 2 * num_paired,
    )


def _shown(item: ItemScore) -> str:
    """Which passages of the documents an arm was shown with the item."""
    return f"passages shown: {', '.join(item.sources)}" if item.sources else ""


def told_comparison(model: ReportModel) -> Comparison | None:
    """The comparison that the verdict tells of: the best floor less the better arm where neither is needed, else the primary one."""
    primary, verdict = primary_of(model), model.verdict
    if primary is None or verdict.code != "neither_needed":
        return primary
    better = primary.a if primary.difference >= 0 else primary.b
    found = next((one for one in verdict.secondary if {one.a, one.b} == {better, verdict.best_floor}), None)
    if found is None:
        return primary
    return found if found.a == verdict.best_floor else _turned(found)


def primary_of(model: ReportModel) -> Comparison | None:
    """The pre-declared comparison, turned so that the tuned arm comes first: positive favours fine-tuning."""
    primary = model.verdict.primary
    if primary is None or primary.b != model.verdict.best_tuned:
        return primary
    return _turned(primary)


def _turned(one: Comparison) -> Comparison:
    return replace(
        one,
        a=one.b,
        b=one.a,
        difference=-one.difference,
        low95=-one.high95,
        high95=-one.low95,
        low90=-one.high90,
        high90=-one.low90,
    )
