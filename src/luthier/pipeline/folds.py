"""Cross-fitting, for few rows: every row is a test row once, answered by a model trained on the other folds.

k trainings of one recipe, each measured like a run of its own with its own dev rows and choices, pooled item by item. The model that is
handed over is one more training, on all rows but dev. What is estimated is so the recipe on (k - 1) / k of the rows, which is a little
worse than what is handed over. Trainings on overlapping rows are not independent, so that no interval from one cross-fitting is exact
(Bengio and Grandvalet, JMLR 2004): the verdict is "leaning" at most.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean

from luthier.core.console import Progress
from luthier.core.errors import ConfigError, InputError
from luthier.core.hashing import sha256_text
from luthier.core.types import ArmResult, Example, Split
from luthier.data.profile import profile_task, stratum_of
from luthier.data.split import content_sha256, split_examples
from luthier.pipeline.again import (
    PARTS,
    Again,
    forecast_s,
    is_declared,
    measure_again,
    refuse_short_curve,
    spent_s,
    told_within,
)
from luthier.pipeline.arms import measure_all
from luthier.pipeline.data import CheckedData, PreparedData, read_data
from luthier.pipeline.decide import decision_rule
from luthier.pipeline.measure import MeasureInputs, make_bench
from luthier.pipeline.plan import TrainInputs
from luthier.pipeline.prepare import DTYPE_FACT, Prepared, prepare
from luthier.pipeline.record import LearningRecord, RunRecord, TrainRecord
from luthier.pipeline.settings import Settings
from luthier.pipeline.tune import tune
from luthier.store.files import atomic_write_json
from luthier.store.layout import RunFolder
from luthier.store.manifest import Manifest
from luthier.train.parallel import ALONE
from luthier.train.watchdog import Watchdog
from luthier.verdict.evidence import best_tuned
from luthier.verdict.learning import LearningPoint

MIN_ROWS_A_FOLD = 6


def fold_splits(rows: Sequence[Example], clusters: Mapping[str, str], *, folds: int, seed: int, dev_rows: int | None) -> tuple[Split, ...]:
    """`folds` splits whose test parts hold every row once. Clusters stay whole, labels are spread evenly, the order of rows does not count.

    Raises InputError where there are too few rows or clusters.
    """
    if len(rows) < folds * MIN_ROWS_A_FOLD:
        fix = f"--folds {max(2, len(rows) // MIN_ROWS_A_FOLD)}, or more rows"
        raise InputError(f"{len(rows)} rows for {folds} folds; a fold needs {MIN_ROWS_A_FOLD}", where="data.folds", fix=fix)
    profile = profile_task(rows)
    members: dict[str, list[Example]] = defaultdict(list)
    for row in rows:
        members[clusters.get(row.id, row.id)].append(row)
    if len(members) < 2 * folds:
        problem = f"the {len(rows)} rows are {len(members)} groups of near-duplicates, too few for {folds} folds"
        raise InputError(problem, where="data.folds", fix="--folds 2, or rows that differ more")
    label = {name: stratum_of(min(found, key=lambda row: row.id).response, profile) for name, found in members.items()}
    parts: list[set[str]] = [set() for _ in range(folds)]
    sizes = [0] * folds
    for name in sorted(members, key=lambda name: (label[name], sha256_text(f"{seed}/folds/{name}"), name)):
        smallest = min(range(folds), key=lambda fold: (sizes[fold], fold))
        parts[smallest].add(name)
        sizes[smallest] += len(members[name])
    in_order = sorted(rows, key=lambda row: row.id)
    return tuple(
        split_examples(
            [replace(row, given_split="test" if clusters.get(row.id, row.id) in part else None) for row in in_order],
            seed=seed,
            dev_rows=dev_rows,
            clusters=clusters,
        )
        for part in parts
    )


def read_whole(settings: Settings) -> PreparedData:
    """The data of a cross-fitted run: all test parts together, and all rows but the dev rows of the first fold to train on.

    Raises ConfigError for settings that cross-fitting has no use for.
    """
    data, arms = settings.data, settings.arms
    unwanted = {
        "data.test": data.test is not None,
        "data.dev": data.dev is not None,
        "data.test_rows": data.test_rows is not None,
        "data.train_rows": data.train_rows is not None,
        "arms.train_seeds": arms.train_seeds > 1,
    }
    for key, found in unwanted.items():
        if found:
            problem = "is given, and with data.folds every row is a test row once, each answered by another training"
            raise ConfigError(problem, where=key, fix="leave it out, or --folds 1")
    checked = read_data(settings)
    if any(row.given_split in {"dev", "test"} for row in checked.read.examples):
        raise ConfigError("the rows name test or dev rows of their own", where="data.folds", fix="--folds 1")
    splits = _splits(settings, checked)
    refuse_short_curve(settings, min(len(split.train) for split in splits), of=" in the smallest fold")
    dev = splits[0].dev
    near_dev = {splits[0].clusters[row.id] for row in dev}
    rows = [row for row in checked.read.examples if splits[0].clusters[row.id] not in near_dev]
    test = tuple(chain.from_iterable(split.test for split in splits))
    note = (
        f"cross-fitting: each of the {len(test)} rows was answered by a model trained without it, one of {len(splits)}; "
        f"the model handed over is another one, trained on {len(rows)} rows"
    )
    whole = Split(
        train=tuple(sorted(rows, key=lambda row: (sha256_text(f"{settings.seed}/order/{row.id}"), row.id))),
        dev=dev,
        test=test,
        clusters=splits[0].clusters,
        seed=settings.seed,
        official_test=False,
        test_sha256=content_sha256(test),
        notes=(note,),
    )
    return PreparedData(checked=checked, split=whole, profile=profile_task(checked.read.examples))


def _splits(settings: Settings, checked: CheckedData) -> tuple[Split, ...]:
    rows, clusters = checked.read.examples, checked.duplicates.clusters
    return fold_splits(rows, clusters, folds=settings.data.folds, seed=settings.seed, dev_rows=settings.data.dev_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One fold, trained and measured."""

    folder: RunFolder
    prepared: Prepared
    inputs: MeasureInputs
    trained: TrainRecord
    arms: tuple[ArmResult, ...]


def cross_fit(
    settings: Settings,
    folder: RunFolder,
    whole: Prepared,
    progress: Progress,
    should_stop: Callable[[], bool],
    inputs_of: Callable[[Prepared], MeasureInputs],
) -> tuple[Fold, ...]:
    """Train and measure fold after fold; `pool` makes one measurement of it. Cut off, it goes on within the fold."""
    splits = _splits(settings, whole.data.checked)
    found: list[Fold] = []
    for number, split in enumerate(splits, start=1):
        progress("folds", number - 1, len(splits), f"fold {number}: {len(split.train)} rows to train on, {len(split.test)} to test")
        variant = folder.fold(number)
        if not variant.manifest.is_file():
            variant.root.mkdir(parents=True, exist_ok=True)
            atomic_write_json(variant.manifest, Manifest(identity={DTYPE_FACT: whole.precision.name}, benign={}).to_json())
        data = PreparedData(checked=whole.data.checked, split=split, profile=whole.data.profile)
        prepared = prepare(settings, variant, progress, data)
        inputs, watch = inputs_of(prepared), Watchdog.from_environment(variant.stacks)
        trained = tune(settings, variant, TrainInputs.of(prepared, progress, should_stop, ALONE, watch))
        shutil.rmtree(variant.train / "checkpoints", ignore_errors=True)
        arms = measure_all(settings, variant, prepared, inputs, trained)
        found.append(Fold(folder=variant, prepared=prepared, inputs=inputs, trained=trained, arms=arms))
    return tuple(found)


def with_curve(settings: Settings, record: RunRecord, folds: Callable[[], tuple[Fold, ...]], progress: Progress) -> RunRecord:
    """The record with the learning curve it lacks: in each fold the recipe on nested parts of its rows, answers of all folds together.

    The record itself where none was asked for. `folds`: what `cross_fit` found, called where it is needed. Resumes like the folds.
    """
    tuned = best_tuned([arm for arm in record.arms if arm.failed is None and arm.items], decision_rule(settings, record))
    if not settings.arms.learning_curve or record.learning is not None or tuned is None:
        return record
    found = folds()
    rows = [len(fold.prepared.train_rows) for fold in found]
    parts = [min(rows) // part for part in PARTS]
    tasks = [Again(name=f"{tuned.name}, {num_rows} rows", seed=settings.seed, num_rows=num_rows) for num_rows in parts]
    measured: dict[str, list[ArmResult]] = {task.name: [] for task in tasks}
    predicted_s, number = 0.0, 0
    for fold in found:
        own = next(arm for arm in fold.arms if arm.name == tuned.name)
        bench = make_bench(settings, fold.folder, fold.inputs)
        for task in tasks:
            told = told_within(progress, f"{task.name}, fold {number // len(tasks) + 1}", number, len(found) * len(tasks))
            arm = measure_again(settings, fold.folder, fold.prepared, fold.inputs, bench, task, fold.trained, own, told)
            measured[task.name].append(arm)
            predicted_s += forecast_s(task, fold.trained, own, len(fold.prepared.train_rows))
            number += 1
    pooled = {name: pool([[arm] for arm in arms])[0] for name, arms in measured.items()}
    learning = LearningRecord(
        points=tuple(LearningPoint(num_rows=task.num_rows, arm=pooled[task.name]) for task in tasks),
        full=tuned.name,
        seconds=sum(spent_s(arm) for arms in measured.values() for arm in arms),
        predicted_seconds=predicted_s,
        is_declared=is_declared(record),
        full_rows=round(fmean(rows)),
    )
    return replace(record, learning=learning)


def pool(folds: Sequence[Sequence[ArmResult]]) -> tuple[ArmResult, ...]:
    """The arms of all folds, item after item. An arm that failed in one fold has failed."""
    out: list[ArmResult] = []
    for first in folds[0]:
        same = [arm for fold in folds for arm in fold if arm.name == first.name]
        failed = next((f"fold {number}: {arm.failed}" for number, arm in enumerate(same, start=1) if arm.failed), None)
        scored = [arm for arm in same if arm.dev_score is not None]
        out.append(
            replace(
                first,
                items=() if failed else tuple(chain.from_iterable(arm.items for arm in same)),
                params=_params(same),
                dev_score=fmean(arm.dev_score or 0.0 for arm in scored) if scored else None,
                dev_n=sum(arm.dev_n for arm in same),
                effort={key: sum(arm.effort.get(key, 0.0) for arm in same) for key in first.effort},
                tried=tuple(
                    replace(one, params={"fold": str(number), **one.params})
                    for number, arm in enumerate(same, start=1)
                    for one in arm.tried
                ),
                train_seconds=fmean(arm.train_seconds or 0.0 for arm in same) if first.train_seconds is not None else None,
                peak_mem_gib=max((arm.peak_mem_gib for arm in same if arm.peak_mem_gib is not None), default=None),
                latencies_s=tuple(chain.from_iterable(arm.latencies_s for arm in same)),
                first_tokens_s=tuple(chain.from_iterable(arm.first_tokens_s for arm in same)),
                token_rates=tuple(chain.from_iterable(arm.token_rates for arm in same)),
                failed=failed,
            )
        )
    return tuple(out)


def _params(arms: Sequence[ArmResult]) -> dict[str, str]:
    """What each fold chose on its own dev rows: one value where all agree, else all of them, fold by fold."""
    keys = dict.fromkeys(key for arm in arms for key in arm.params)
    values = {key: [arm.params.get(key, "-") for arm in arms] for key in keys}
    return {key: found[0] if len(set(found)) == 1 else f"{' | '.join(found)} (by fold)" for key, found in values.items()}
