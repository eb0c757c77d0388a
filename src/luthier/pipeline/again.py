"""Stage: train the same recipe again where asked for: from other seeds, and on nested parts of the rows (the learning curve).

Learning rate and epochs are those of the run's own training, so that a part of the rows means fewer updates. All are measured on the locked
test items, beside the arms: sizes, seeds and recipe are fixed before, and nothing is chosen by what comes out, so the items choose nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from luthier.arms.search import Chosen, Effort, find_candidate
from luthier.core.console import Progress, duration
from luthier.core.errors import InputError
from luthier.core.seeds import rng
from luthier.core.types import ArmResult, TokenRow
from luthier.evaluate.run import Bench, measure
from luthier.pipeline.answering import open_trained
from luthier.pipeline.decide import decision_rule
from luthier.pipeline.measure import MeasureInputs, make_bench, planned_arms
from luthier.pipeline.plan import TrainInputs, choose_epochs
from luthier.pipeline.prepare import Prepared
from luthier.pipeline.record import LearningRecord, RunRecord, TrainRecord
from luthier.pipeline.settings import Settings
from luthier.pipeline.tune import training_key, tune
from luthier.store.files import atomic_write_json
from luthier.store.layout import RunFolder
from luthier.store.manifest import Manifest
from luthier.train.parallel import ALONE
from luthier.train.watchdog import Watchdog
from luthier.verdict.evidence import best_tuned
from luthier.verdict.learning import LearningPoint

PARTS = (8, 4, 2)  # an eighth, a quarter, half of the rows; all of them is the run's own training
MIN_CURVE_ROWS = 64
STAGES = {"fine-tune": (0.0, 0.8), "measure": (0.8, 1.0)}  # about their shares of one training
DECLARED = "arms.learning_curve"  # as the run had it when it opened the test items


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """One training that is still to do."""

    name: str
    seed: int
    num_rows: int


def refuse_short_curve(settings: Settings, num_rows: int, *, of: str = "") -> None:
    """Raise InputError where the learning curve asked for has no rows to stand on. Before anything computes."""
    if settings.arms.learning_curve and num_rows < MIN_CURVE_ROWS:
        raise InputError(
            f"a learning curve needs {MIN_CURVE_ROWS} training rows, there are {num_rows}{of}",
            where="arms.learning_curve",
            fix=f"leave it out{', or more --folds, or fewer --dev-rows' if of else ''}",
        )


def train_again(
    settings: Settings,
    folder: RunFolder,
    prepared: Prepared,
    inputs: MeasureInputs,
    record: RunRecord,
    *,
    progress: Progress,
) -> RunRecord:
    """The record with the trainings it lacks; the record itself where nothing was asked for, or all is there.

    Each training resumes like the run's own; answers are cached.
    """
    tuned = best_tuned([arm for arm in record.arms if arm.failed is None and arm.items], decision_rule(settings, record))
    main = record.train
    if tuned is None or main is None:
        return record
    names = {arm.name for arm in record.arms}
    num_rows = len(prepared.train_rows)
    seeds = [Again(name=f"{tuned.name}, seed {seed}", seed=seed, num_rows=num_rows) for seed in _more_seeds(settings)]
    parts = [Again(name=f"{tuned.name}, {num_rows // part} rows", seed=settings.seed, num_rows=num_rows // part) for part in PARTS]
    tasks = [task for task in seeds if task.name not in names]
    tasks += parts if settings.arms.learning_curve and record.learning is None else []
    if not tasks:
        return record
    predicted_s = sum(forecast_s(task, main, tuned, num_rows) for task in tasks)
    progress("again", 0, len(tasks), f"{len(tasks)} more trainings: about {duration(predicted_s)}")
    bench = make_bench(settings, folder, inputs)
    done: dict[str, ArmResult] = {}
    for number, task in enumerate(tasks):
        told = told_within(progress, task.name, number, len(tasks))
        done[task.name] = measure_again(settings, folder, prepared, inputs, bench, task, main, tuned, told)
    replicates = tuple(done[task.name] for task in seeds if task.name in done)
    learning = record.learning
    if all(task.name in done for task in parts):
        learning = LearningRecord(
            points=tuple(LearningPoint(num_rows=task.num_rows, arm=done[task.name]) for task in parts),
            full=tuned.name,
            seconds=sum(spent_s(done[task.name]) for task in parts),
            predicted_seconds=sum(forecast_s(task, main, tuned, num_rows) for task in parts),
            is_declared=is_declared(record),
        )
    return replace(record, arms=(*record.arms, *replicates), learning=learning)


def is_declared(record: RunRecord) -> bool:
    """Whether the curve was asked for when the test items were opened."""
    return record.config.get(DECLARED, ("", ""))[0] == "true"


def _more_seeds(settings: Settings) -> Sequence[int]:
    return range(settings.seed + 1, settings.seed + settings.arms.train_seeds)


def forecast_s(task: Again, main: TrainRecord, tuned: ArmResult, num_rows: int) -> float:
    """Seconds it will take. Updates shrink with the rows; looks at dev and answers to the test items do not."""
    tokens = 0.0 if main.predicted is None else main.predicted.row_tokens * main.updates / main.total_updates
    updates_s = min(main.train_seconds, tokens / main.tokens_per_s) if main.tokens_per_s and tokens else main.train_seconds
    answers_s = sum(item.latency_s or 0.0 for item in tuned.items)
    return updates_s * task.num_rows / num_rows + main.train_seconds - updates_s + answers_s


def spent_s(arm: ArmResult) -> float:
    """Seconds of its training and its answers."""
    return (arm.train_seconds or 0.0) + sum(item.latency_s or 0.0 for item in arm.items)


def nested_rows(rows: Sequence[TokenRow], num_rows: int, *, seed: int) -> tuple[TokenRow, ...]:
    """The first `num_rows` of one seeded order, in the order they stand in: a smaller part lies within every larger one."""
    order = list(range(len(rows)))
    rng(seed, "learning curve").shuffle(order)
    return tuple(rows[i] for i in sorted(order[:num_rows]))


def measure_again(
    settings: Settings,
    folder: RunFolder,
    prepared: Prepared,
    inputs: MeasureInputs,
    bench: Bench,
    task: Again,
    main: TrainRecord,
    tuned: ArmResult,
    progress: Progress,
) -> ArmResult:
    """Train once more and answer the test items, prompted like the tuned arm."""
    variant = folder.again(task.seed, task.num_rows)
    if not variant.manifest.is_file():
        variant.root.mkdir(parents=True, exist_ok=True)
        atomic_write_json(variant.manifest, Manifest(identity={}, benign={}).to_json())
    epochs, _ = choose_epochs(settings.train.epochs, len(prepared.train_rows))
    recipe = settings.train.model_copy(update={"lr": main.lr, "epochs": epochs})
    rows = nested_rows(prepared.train_rows, task.num_rows, seed=settings.seed)
    train_inputs = replace(
        TrainInputs.of(prepared, progress, inputs.should_stop, ALONE, Watchdog.from_environment(variant.stacks)), train=rows
    )
    again = settings.model_copy(update={"seed": task.seed, "train": recipe})
    _keep_forecast(variant, training_key(again, train_inputs), main, task.num_rows / len(prepared.train_rows))
    trained = tune(again, variant, train_inputs)
    shutil.rmtree(variant.train / "checkpoints", ignore_errors=True)
    told = replace(bench, on_progress=lambda label, done, total: progress("measure", done, total, label))
    with open_trained(settings, variant, prepared) as model:
        arm = next(arm for arm in planned_arms(settings, inputs, model.context) if arm.name == tuned.name)
        chosen = Chosen(candidate=find_candidate(arm, tuned.params), dev_score=None, dev_n=0, effort=Effort())
        result = measure(arm, chosen, inputs.split.test, model, told, model_name=tuned.model)
    return replace(result, name=task.name, seed=task.seed, train_seconds=trained.train_seconds)


def _keep_forecast(variant: RunFolder, key: str, main: TrainRecord, part: float) -> None:
    """What the run's own training was forecast to need, for a part of its rows: measuring it again would cost updates."""
    if main.predicted is None:
        return
    p = main.predicted
    shrunk = replace(
        p, updates=round(part * p.updates), row_tokens=round(part * p.row_tokens), seconds=part * p.seconds, search_seconds=0.0
    )
    atomic_write_json(variant.train / "forecast.json", {"key": key, "predicted": asdict(shrunk)})


def told_within(progress: Progress, name: str, number: int, total: int) -> Progress:
    """Progress within one of several trainings."""

    def tell(stage: str, done: float, out_of: float, text: str) -> None:
        begins, ends = STAGES.get(stage, (0.0, 0.0))
        progress("again", number + begins + (ends - begins) * done / max(1.0, out_of), total, f"{name}: {text}")

    return tell
