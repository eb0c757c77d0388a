"""The record: everything a run measured, in one JSON file. Verdict and report are functions of it, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from luthier.core.errors import RunError
from luthier.core.exports import ExportRecord
from luthier.core.types import ArmResult, Estimate, Finding, TaskProfile
from luthier.verdict.behaviour_numbers import BehaviourRecord
from luthier.verdict.judge import JudgeRecord
from luthier.verdict.learning import LearningPoint
from luthier.verdict.probes import ProbeRecord

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecord:
    """What was read, what `check` found, and how it was split."""

    files: tuple[str, ...]
    format: str
    evidence: str
    num_read: int
    num_kept: int
    num_rejected: int
    findings: tuple[Finding, ...]
    ceiling: Estimate | None
    profile: TaskProfile
    num_train: int
    num_dev: int
    num_test: int
    official_test: bool
    test_sha256: str
    notes: tuple[str, ...]
    prompt_lengths_tokens: tuple[int, ...] = ()  # of the train rows
    response_lengths_tokens: tuple[int, ...] = ()
    rows_of_answer: Mapping[str, int] = field(default_factory=dict[str, int])  # label or closed-set value -> train rows that have it


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One learning rate tried on dev. `dev_loss` None: it diverged."""

    lr: float
    dev_loss: float | None
    updates: int
    seconds: float
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveStep:
    """One update of the final training run."""

    step: int
    loss: float | None
    dev_loss: float | None
    lr: float
    tokens_per_s: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What the training was forecast to need, from a few of its own updates. Early stopping may end it sooner."""

    num_trained_weights: int
    updates: int
    row_tokens: int
    seconds: float  # the final run, dev evaluations included
    search_seconds: float
    peak_mem_gib: float | None  # of the process
    disk_mib: float  # of the run folder when the training is done
    peak_device_gib: float | None = None  # of the GPU; None on a CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRecord:
    """How the trained weights came about."""

    method: str
    lr: float
    probes: tuple[Probe, ...]
    epochs: float
    updates: int
    total_updates: int
    best_step: int
    best_dev_loss: float | None
    stopped_early: bool
    num_rows: int
    tokens_per_s: float | None  # row tokens over steady updates, the first two excluded
    train_seconds: float  # the final run, dev evaluations included
    search_seconds: float  # all learning-rate probes
    peak_mem_gib: float | None
    precision: str
    weights: str  # adapter_model.safetensors, or the folder of a whole model
    weights_sha256: str
    curve: tuple[CurveStep, ...]
    predicted: Predicted | None = None
    disk_mib: float | None = None  # of the run folder when the training was done
    notes: tuple[str, ...] = ()
    device: str = "CPU"
    peak_device_gib: float | None = None  # of the GPU; None on a CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRecord:
    """The recipe trained on nested parts of the rows. The point of all rows is the arm called `full`.

    `full_rows`: so many rows it was trained on; None: all training rows. Cross-fitted, each point is a training in each fold, of its rows.
    """

    points: tuple[LearningPoint, ...]
    full: str
    seconds: float  # training and answering
    predicted_seconds: float
    is_declared: bool  # asked for before the test items were opened
    full_rows: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run. Arms hold every answer to every locked item."""

    schema: int
    title: str
    created: str
    luthier_version: str
    command: str
    seed: int
    data: DataRecord
    model: str
    model_description: str
    max_new_tokens: int
    train: TrainRecord | None
    metric: str
    arms: tuple[ArmResult, ...]
    item_inputs: Mapping[str, str]  # test item id -> what the model was shown
    config: Mapping[str, tuple[str, str]]  # dotted key -> (value, origin)
    environment: Mapping[str, str]
    notes: tuple[str, ...] = ()
    learning: LearningRecord | None = None
    behaviour: BehaviourRecord | None = None
    num_folds: int = 1  # more: every row was a test row once, estimated by cross-fitting
    probes: ProbeRecord | None = None  # base and tuned model beside the test items
    model_sizes: Mapping[str, int] = field(default_factory=dict[str, int])  # parameters of the base and each larger local model
    metric_sha256: str = ""  # of the file of the user's own score, where `metric` is module:function
    judge: JudgeRecord | None = None  # a model's verdicts on the answers of the two arms


_ADAPTER = TypeAdapter(RunRecord)


_EXPORTS = TypeAdapter(tuple[ExportRecord, ...])


def read_exports(path: Path) -> tuple[ExportRecord, ...]:
    """What was exported from a run; nothing where nothing was. Raises RunError if the file is damaged."""
    if not path.is_file():
        return ()
    try:
        return _EXPORTS.validate_json(path.read_bytes())
    except ValidationError as error:
        raise RunError("the list of exports is damaged", where=str(path), fix=f"delete it (rm {path}) and export again") from error


def with_export(exports: tuple[ExportRecord, ...], new: ExportRecord) -> str:
    """The list as JSON text, the new one in place of an earlier one of the same kind and storage, whose files are remembered."""
    kept = tuple(old for old in exports if (old.kind, old.storage) != (new.kind, new.storage))
    replaced = tuple(old for old in exports if old not in kept)
    earlier = [digest for old in replaced for digest in (*old.earlier_sha256, *old.sha256.values())]
    new = replace(new, earlier_sha256=tuple(dict.fromkeys(earlier)))
    return _EXPORTS.dump_json((*kept, new), indent=1).decode("utf-8")


def to_json(record: RunRecord) -> str:
    """The record as JSON text; NaN and infinity are refused (they mean a bug: not measured is null)."""
    return _ADAPTER.dump_json(record, indent=1).decode("utf-8")


def read_record(path: Path) -> RunRecord:
    """Read a record back. Raises RunError if it is missing, damaged or of another schema."""
    if not path.is_file():
        raise RunError("this run has no results yet", where=str(path), fix="finish it with the command that started it: luthier run …")
    try:
        record = _ADAPTER.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise RunError(
            f"the record is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            where=str(path),
            fix="delete the file and repeat `luthier run`; answers are cached",
        ) from error
    if record.schema != SCHEMA:
        raise RunError(f"the record has schema {record.schema}, this version reads {SCHEMA}", where=str(path), fix="repeat `luthier run`")
    return record
