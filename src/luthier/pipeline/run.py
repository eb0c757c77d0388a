"""`luthier run`: all stages in order, on one run folder. Cheap stages are done again on resume; costly ones are kept.

read, check, split      seconds, always done again (same input, same result)
learning-rate probes    journal, one line a probe
training                checkpoints; finished weights are recognised by digest
answers                 cached by content, batch by batch
latency                 taken once, kept
behaviour               rewordings, samples and typos of a few test items; answers cached
probes                  refusals and general text, base and tuned model; answers cached
more trainings          other seeds, parts of the rows, where asked for; also later, on a finished run
judge                   a model compares the answers of the two arms, where one is named; replies cached
record                  results.json: verdict and report are functions of it
"""

from __future__ import annotations

import datetime
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from luthier import __version__
from luthier.arms.catalogue import Embeddings
from luthier.core.console import Progress
from luthier.core.environment import describe_environment
from luthier.core.errors import InputError
from luthier.core.hashing import digest
from luthier.core.stop import stop_on_signals
from luthier.core.types import ArmResult, Split, TaskProfile
from luthier.data.answer_schema import keeps_schema, learn_schema
from luthier.data.documents import Documents
from luthier.kernels.device import device_words
from luthier.metrics.closed_world import known_facts, reference_counts
from luthier.pipeline.again import refuse_short_curve, train_again
from luthier.pipeline.answering import engine_notes
from luthier.pipeline.arms import measure_all
from luthier.pipeline.behaviour import measure_behaviour
from luthier.pipeline.data import write_data_files
from luthier.pipeline.decide import decision_rule, verdict_of
from luthier.pipeline.embeddings import find_embeddings
from luthier.pipeline.endpoint import endpoint_notes, has_failed_endpoint
from luthier.pipeline.folds import Fold, cross_fit, pool, read_whole, with_curve
from luthier.pipeline.in_vllm import refuse_for_vllm
from luthier.pipeline.judge import find_judge, with_judge
from luthier.pipeline.measure import MeasureInputs
from luthier.pipeline.paraphraser import find_paraphraser
from luthier.pipeline.plan import TrainInputs
from luthier.pipeline.prepare import Prepared, prepare
from luthier.pipeline.probes import read_probes, with_probes
from luthier.pipeline.record import SCHEMA, DataRecord, RunRecord, TrainRecord, read_record, to_json
from luthier.pipeline.report import outcome, write_report
from luthier.pipeline.settings import Settings, origins
from luthier.pipeline.tune import tune
from luthier.store.files import atomic_write_json, atomic_write_text
from luthier.store.index import rebuild_index
from luthier.store.layout import RunFolder, open_run
from luthier.store.stages import finish_stage, stage_holds, stage_is_done
from luthier.train.parallel import ALONE, refuse_several
from luthier.train.watchdog import Watchdog
from luthier.verdict.slices import answer_slices


def run(settings: Settings, progress: Progress) -> dict[str, object]:
    """The whole main job. Returns lines for people and one JSON object; killed anywhere, the same call goes on."""
    refuse_several("luthier run")
    refuse_for_vllm(settings)
    with stop_on_signals() as should_stop, open_run(Path(settings.run_dir), settings) as folder:
        watch = Watchdog.from_environment(folder.stacks)
        with watch.setup():
            prepared = prepare(settings, folder, progress, read_whole(settings) if settings.data.folds > 1 else None)
        _refuse_text(prepared.data.split)
        refuse_short_curve(settings, len(prepared.train_rows))  # of a fold: `read_whole` has looked
        probes, judge = read_probes(settings, prepared), find_judge(settings)
        find_paraphraser(settings)  # refused now, or never
        write_data_files(folder, prepared.data)
        _write_schema(settings, folder, prepared)
        embeddings = find_embeddings(settings, folder, progress, should_stop)
        inputs = _measure_inputs(prepared, embeddings, progress, should_stop, watch)

        @cache
        def folds() -> tuple[Fold, ...]:
            measured = lambda it: _measure_inputs(it, embeddings, progress, should_stop, watch)  # noqa: E731
            return cross_fit(settings, folder, prepared, progress, should_stop, measured)

        key = digest(settings.identity())
        record = read_record(folder.results) if stage_is_done(folder, "measure", key) and stage_holds(folder, "train") else None
        if record is None or has_failed_endpoint(settings, record):
            trained = tune(settings, folder, TrainInputs.of(prepared, progress, should_stop, ALONE, watch))
            arms = (
                pool([fold.arms for fold in folds()])
                if settings.data.folds > 1
                else measure_all(settings, folder, prepared, inputs, trained)
            )
            record = make_record(settings, prepared, trained, arms)
            _keep(folder, key, record)
        if settings.data.folds > 1:
            whole = with_curve(settings, record, folds, progress)
        else:
            whole = train_again(settings, folder, prepared, inputs, record, progress=progress)
        whole = measure_behaviour(settings, folder, prepared, inputs, whole, progress=progress)
        whole = with_probes(settings, folder, prepared, inputs, probes, whole, progress=progress)
        whole = with_judge(settings, folder, prepared, inputs, judge, whole, progress=progress)
        if whole is not record:
            _keep(folder, key, whole)
        if not folder.index.exists():
            rebuild_index(folder)
        return _decide_and_report(settings, folder, whole)


def _write_schema(settings: Settings, folder: RunFolder, prepared: Prepared) -> None:
    """What JSON answers are held to, for whoever serves the model."""
    schema = learn_schema(prepared.data.split.train, prepared.data.profile).text if settings.arms.constrained else ""
    if schema:
        atomic_write_json(folder.answer_schema, json.loads(schema))


def _keep(folder: RunFolder, key: str, record: RunRecord) -> None:
    """Write the record, and the index that is made from it."""
    atomic_write_text(folder.results, to_json(record))
    finish_stage(folder, "measure", key, [folder.results])
    rebuild_index(folder)


def _refuse_text(split: Split) -> None:
    """Raw text asks nothing, so there is nothing to prompt with and nothing to score."""
    row = next((row for row in (*split.test, *split.dev, *split.train) if row.kind == "text"), None)
    if row is not None:
        raise InputError(
            "raw text has no prompts and no wanted answers, so prompting and tuning cannot be compared on it",
            where=f"{row.path}:{row.line}",
            fix="train on it alone: luthier train FILE; or give instruction / input / output rows",
        )


def _decide_and_report(settings: Settings, folder: RunFolder, record: RunRecord) -> dict[str, object]:
    rule = decision_rule(settings, record)
    verdict = verdict_of(settings, record)
    model = write_report(folder, record, verdict, rule, settings)
    return outcome(folder, record, verdict, model)


def _measure_inputs(
    prepared: Prepared, embeddings: Embeddings | None, progress: Progress, should_stop: Callable[[], bool], watch: Watchdog
) -> MeasureInputs:
    return MeasureInputs(
        split=prepared.data.split,
        profile=prepared.data.profile,
        max_new_tokens=prepared.max_new_tokens,
        metric=prepared.metric,
        chars_per_token=prepared.chars_per_token,
        on_progress=progress,
        should_stop=should_stop,
        documents=prepared.documents,
        embeddings=embeddings,
        watch=watch,
    )


def make_record(settings: Settings, prepared: Prepared, trained: TrainRecord | None, arms: tuple[ArmResult, ...]) -> RunRecord:
    """Everything that was measured, with what it was measured on."""
    data, split = prepared.data.checked, prepared.data.split
    files = (*settings.data.paths, *(f for f in (settings.data.dev, settings.data.test) if f))
    reads = data.reads
    environment: Mapping[str, str] = describe_environment()
    return RunRecord(
        schema=SCHEMA,
        title=Path(settings.data.paths[0]).name,
        created=datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
        luthier_version=__version__,
        command=shlex.join(["luthier", *(word for word in sys.argv[1:] if word != "--fresh")]),
        seed=settings.seed,
        data=DataRecord(
            files=tuple(str(f) for f in files),
            format=data.read.format,
            evidence=data.read.evidence,
            num_read=sum(r.num_read for r in reads),
            num_kept=sum(len(r.examples) for r in reads),
            num_rejected=sum(len(r.rejects) for r in reads),
            findings=(*data.findings, *prepared.findings),
            ceiling=data.conflicts.ceiling,
            profile=prepared.data.profile,
            num_train=len(prepared.train_rows),
            num_dev=len(split.dev),
            num_test=len(split.test),
            official_test=split.official_test,
            test_sha256=split.test_sha256,
            notes=split.notes,
            prompt_lengths_tokens=tuple(len(r.input_ids) - r.num_labels for r in prepared.train_rows),
            response_lengths_tokens=tuple(r.num_labels for r in prepared.train_rows),
            rows_of_answer=Counter(name for row in split.train for name in answer_slices(row.response, prepared.data.profile)),
        ),
        model=settings.model.name,
        model_description=prepared.info.architecture,
        max_new_tokens=prepared.max_new_tokens,
        train=trained,
        metric=prepared.metric,
        arms=arms,
        item_inputs={item.id: item.input or item.user_text for item in split.test},
        config=origins(settings),
        environment={**environment, "device": device_words(prepared.precision.device), "precision": prepared.precision.reason},
        num_folds=settings.data.folds,
        model_sizes=prepared.model_sizes,
        metric_sha256=prepared.own_metric.sha256 if prepared.own_metric else "",
        notes=(
            *((prepared.own_metric_note,) if prepared.own_metric_note else ()),
            *_detector_error(split, prepared.data.profile),
            *_constraint(settings, prepared),
            *_documents(prepared.documents),
            *endpoint_notes(settings, arms),
            *engine_notes(settings, arms),
        ),
    )


def _documents(documents: Documents | None) -> tuple[str, ...]:
    """What the arms with documents could look things up in, and what was left out of it."""
    if documents is None:
        return ()
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in documents.left_out.items()) or "nothing"
    return (
        f"Reference documents: {documents.described}; left out: {left_out}. In the arms with documents, a value counts as supported where "
        "the passages shown state it; which these were is recorded with each answer (`sources` in results.json).",
    )


def _constraint(settings: Settings, prepared: Prepared) -> tuple[str, ...]:
    """That answers were held to labels or a schema while they were written, and what follows from it."""
    split, profile = prepared.data.split, prepared.data.profile
    if profile.kind == "json" and settings.arms.constrained:
        schema = learn_schema(split.train, profile)
        if not schema.text:
            return (f"Answers were not held to a JSON schema: {schema.why_not}.",)
        outside = sum(not keeps_schema(item.response, json.loads(schema.text)) for item in split.test)
        return (
            "Local models were held to the JSON schema of the training answers while they wrote, in prompted and tuned arms alike: an "
            "answer breaks it only where it was cut off. Serve the model with the same schema (answer_schema.json), or measure without it: "
            f"--set arms.constrained=false. {outside:,} of {len(split.test):,} wanted test answers do not keep it.",
        )
    if profile.kind != "label" or not settings.arms.constrained:
        return ()
    return (
        f"Local models could write nothing but one of the {len(profile.labels)} labels, in prompted and tuned arms alike, so an invalid "
        "label cannot occur. Serve the model with the same restriction, or measure without it: --set arms.constrained=false.",
    )


def _detector_error(split: Split, profile: TaskProfile) -> tuple[str, ...]:
    """How often the detector of unsupported values is wrong here: references of dev are right, whatever it says of them."""
    stated, marked = reference_counts(split.dev, known_facts(split.train))
    if not stated or profile.number_form:  # values that were worked out are not looked for in the input
        return ()
    return (
        f"The detector of unsupported values marks {marked} of the {stated} dev references that state values; these are right, so that is "
        "its own error on this data, in every arm alike.",
    )
