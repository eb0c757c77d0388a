"""Stage: fine-tune. Forecast, learning rate from probes on dev, then the run itself, then adapter or model in standard files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from luthier.core.errors import RunError
from luthier.core.hashing import digest, sha256_file
from luthier.generate.local import peak_memory_gib
from luthier.kernels.device import device_words, peak_device_gib, rounds_otherwise
from luthier.models.folder import weight_files, weights_sha256
from luthier.models.trainable import save_trained
from luthier.pipeline.plan import Plan, TrainInputs, begin, choose_epochs, forecast_words, make_plan, measure_forecast
from luthier.pipeline.record import CurveStep, Predicted, Probe, TrainRecord
from luthier.pipeline.settings import Settings
from luthier.store.files import atomic_write_json, folder_bytes, require_free
from luthier.store.journal import append, read
from luthier.store.layout import RunFolder
from luthier.store.stages import finish_stage, stage_is_done
from luthier.train.loop import FitSettings, FitState, StepRecord, fit
from luthier.train.optim import Optimiser
from luthier.train.parallel import World, share_json
from luthier.train.search import LrProbe, best_learning_rate, probe_learning_rate
from luthier.train.sharded import put_together

DISK_ROOM = 1.5  # times what is left in the end: a third checkpoint is written before the first of two goes


def tune(settings: Settings, folder: RunFolder, inputs: TrainInputs) -> TrainRecord:
    """Train, or take up where an earlier call was cut off; a finished training of the same inputs is returned at once.

    Every rank computes, rank 0 writes. Raises RunError when every learning rate diverged, memory does not suffice even row by row,
    or the disk has no room for checkpoints.
    """
    key = training_key(settings, inputs)
    record_path = folder.train / "train.json"
    is_done = inputs.world.writes and stage_is_done(folder, "train", key)
    known = share_json(inputs.world, json.loads(record_path.read_text(encoding="utf-8")) if is_done else None)
    if known is not None:
        return _read_record(known)
    folder.train.mkdir(parents=True, exist_ok=True)
    with inputs.watch.setup():
        plan, optimiser = begin(make_plan(settings, inputs), inputs.world)
    predicted = _predicted(folder, plan, optimiser, inputs, key)
    probes = _search(settings, folder, inputs, plan, optimiser, key)
    wanted = replace(plan.fit, lr=settings.train.lr if settings.train.lr is not None else next(p.lr for p in probes if p.chosen))
    state = fit(
        plan.model,
        optimiser,
        inputs.train,
        inputs.dev,
        wanted,
        checkpoints=folder.train / "checkpoints",
        key=key,
        on_step=_reporter(inputs, wanted, folder),
        should_stop=inputs.should_stop,
        world=inputs.world,
        watch=inputs.watch,
    )
    with inputs.watch.save():
        _make_whole(plan, optimiser, inputs.world)
        if not inputs.world.writes:
            return _record(folder, inputs, wanted, state, probes, plan, predicted, weights=folder.root, weights_sha256="")
        target = folder.adapter if plan.trained.method.makes_adapter else folder.model
        weights = save_trained(plan.trained, target, base=inputs.model_path, base_info=inputs.model_info)
        sha256 = sha256_file(weights) if weights.is_file() else weights_sha256(weights, weight_files(weights))
    record = _record(folder, inputs, wanted, state, probes, plan, predicted, weights=weights, weights_sha256=sha256)
    atomic_write_json(record_path, asdict(record))
    finish_stage(folder, "train", key, [record_path, *sorted(p for p in target.iterdir() if p.is_file())])
    return record


def _make_whole(plan: Plan, optimiser: Optimiser, world: World) -> None:
    """Weights as they are stored: an adapter in fp32, a whole model as it computes. Sharded ones come together on rank 0."""
    is_adapter = plan.trained.method.makes_adapter
    if world.shards:
        put_together(plan.trained.model, optimiser, world, masters=is_adapter)
    elif is_adapter:
        with torch.no_grad():
            for name, param in optimiser.params.items():
                param.data = optimiser.masters[name].data


def _predicted(folder: RunFolder, plan: Plan, optimiser: Optimiser, inputs: TrainInputs, key: str) -> Predicted:
    """The forecast of this training: measured by the first call, read back by one that goes on."""
    path = folder.train / "forecast.json"
    known = json.loads(path.read_text(encoding="utf-8")) if inputs.world.writes and path.is_file() else {}
    known = share_json(inputs.world, known if known.get("key") == key else {})
    if known:
        predicted = Predicted(**known["predicted"])
        inputs.on_progress("forecast", 1, 1, forecast_words(predicted))
        return predicted
    predicted = measure_forecast(plan, optimiser, inputs, folder.root)
    if inputs.world.writes:
        require_free(
            folder.root, int(DISK_ROOM * predicted.disk_mib * 2**20), fix="free some space, or name a folder on another disk: --run-dir NEW"
        )
        atomic_write_json(path, {"key": key, "predicted": asdict(predicted)})
    return predicted


def _record(
    folder: RunFolder,
    inputs: TrainInputs,
    wanted: FitSettings,
    state: FitState,
    probes: tuple[Probe, ...],
    plan: Plan,
    predicted: Predicted,
    *,
    weights: Path,
    weights_sha256: str,
) -> TrainRecord:
    """What came of the training, for the run's record."""
    return TrainRecord(
        method=f"{plan.trained.method.words}, {predicted.num_trained_weights:,} weights",
        lr=wanted.lr,
        probes=probes,
        epochs=state.step / -(-len(inputs.train) // wanted.batch),
        updates=state.step,
        total_updates=wanted.total_updates,
        best_step=state.best_step,
        best_dev_loss=state.best_dev_loss,
        stopped_early=state.stopped_early,
        num_rows=len(inputs.train),
        tokens_per_s=steady_tokens_per_s(state.history),
        train_seconds=state.train_seconds,
        search_seconds=sum(p.seconds for p in probes),
        peak_mem_gib=peak_memory_gib(),
        peak_device_gib=peak_device_gib(plan.device),
        device=device_words(plan.device),
        precision=inputs.precision.reason,
        weights=str(weights),
        weights_sha256=weights_sha256,
        curve=tuple(_curve_step(step) for step in state.history),
        predicted=predicted,
        disk_mib=folder_bytes(folder.root) / 2**20,
        notes=(*plan.notes, *_skipped(state)),
    )


def training_key(settings: Settings, inputs: TrainInputs) -> str:
    """Digest of all that the trained weights depend on; how often to save, and in what pieces a batch is computed, are not part of it."""
    train = settings.train.model_dump(mode="json", exclude={"save_every", "micro_batch", "checkpoint_activations", "shard"})
    epochs, _ = choose_epochs(settings.train.epochs, len(inputs.train))
    rows = [[row.input_ids, row.is_label] for row in (*inputs.train, *inputs.dev)]
    where = rounds_otherwise(inputs.precision.device)
    return digest([train, settings.seed, epochs, inputs.model_info.sha256, str(inputs.precision.dtype), digest(rows), *where])


def _read_record(record: dict[str, Any]) -> TrainRecord:
    record["probes"] = tuple(Probe(**p) for p in record["probes"])
    record["curve"] = tuple(CurveStep(**c) for c in record["curve"])
    record["predicted"] = None if record["predicted"] is None else Predicted(**record["predicted"])
    record["notes"] = tuple(record["notes"])
    return TrainRecord(**record)


def _search(settings: Settings, folder: RunFolder, inputs: TrainInputs, plan: Plan, optimiser: Optimiser, key: str) -> tuple[Probe, ...]:
    """Probe the candidate learning rates; finished probes are read from their journal."""
    if not plan.rates:
        return ()
    journal = folder.train / "probes.jsonl"
    found = {str(r["lr"]): r for r in read(journal) if r["key"] == key} if inputs.world.writes and journal.exists() else {}
    known = {float(lr): r for lr, r in share_json(inputs.world, found).items()}
    for number, lr in enumerate(plan.rates):
        if lr in known:
            continue

        def tell(step: StepRecord, state: FitState, number: int = number, lr: float = lr) -> None:
            del state
            done, total = number * plan.probe_updates + step.step, len(plan.rates) * plan.probe_updates
            inputs.on_progress("learning rate", done, total, f"lr {lr:g}: loss {_show(step.loss)}")

        probe = probe_learning_rate(
            plan.model,
            optimiser,
            inputs.train,
            inputs.dev,
            plan.fit,
            lr,
            probe_updates=plan.probe_updates,
            on_step=tell,
            should_stop=inputs.should_stop,
            world=inputs.world,
            watch=inputs.watch,
        )
        known[lr] = {"key": key, **asdict(probe)}
        if inputs.world.writes:
            append(journal, known[lr])
    tried = [
        LrProbe(lr=r["lr"], dev_loss=r["dev_loss"], updates=r["updates"], seconds=r["seconds"]) for lr in plan.rates if (r := known[lr])
    ]
    best = best_learning_rate(tried)
    if best is None:
        raise RunError(
            "training diverged at every learning rate tried", where="train.lr_candidates", fix=f"--lr {min(plan.rates) / 10:g} --fresh"
        )
    return tuple(Probe(**asdict(p), chosen=p.lr == best) for p in tried)


def _show(loss: float | None) -> str:
    return "not finite, skipped" if loss is None else f"{loss:.3f}"


def _reporter(inputs: TrainInputs, wanted: FitSettings, folder: RunFolder) -> Callable[[StepRecord, FitState], None]:
    """Journal every update and show loss, tokens/s and dev loss."""
    recent: list[tuple[int, float]] = []

    def tell(step: StepRecord, state: FitState) -> None:
        if not inputs.world.writes:
            return
        append(folder.journal_steps, asdict(step))
        recent.append((step.num_row_tokens, step.seconds))
        del recent[:-20]
        tokens_per_s = sum(t for t, _ in recent) / max(1e-9, sum(s for _, s in recent))
        best = "" if state.best_dev_loss is None else f", best dev loss {state.best_dev_loss:.3f}"
        inputs.on_progress("fine-tune", step.step, wanted.total_updates, f"loss {_show(step.loss)}{best}, {tokens_per_s:,.0f} tokens/s")

    return tell


def steady_tokens_per_s(history: Sequence[StepRecord]) -> float | None:
    """Row tokens over time, the first two updates (warm-up of allocators and kernels) excluded; None below three updates."""
    steady = history[2:]
    return sum(s.num_row_tokens for s in steady) / sum(s.seconds for s in steady) if steady else None


def _curve_step(step: StepRecord) -> CurveStep:
    return CurveStep(
        step=step.step, loss=step.loss, dev_loss=step.dev_loss, lr=step.lr, tokens_per_s=step.num_row_tokens / step.seconds, note=step.note
    )


def _skipped(state: FitState) -> tuple[str, ...]:
    return (f"{state.skipped} updates were not finite and were skipped",) if state.skipped else ()
