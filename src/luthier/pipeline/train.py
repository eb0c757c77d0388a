"""`luthier train`: fine-tune only, on one process or on several started by torchrun; `luthier estimate`: only forecast it."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from luthier.core.console import Progress, quiet
from luthier.core.errors import ConfigError
from luthier.core.stop import stop_on_signals
from luthier.kernels.device import choose_device, device_words
from luthier.pipeline.data import write_data_files
from luthier.pipeline.plan import TrainInputs, begin, forecast_words, make_plan, measure_forecast
from luthier.pipeline.prepare import Prepared, prepare
from luthier.pipeline.record import Predicted, TrainRecord
from luthier.pipeline.settings import Settings
from luthier.pipeline.tune import tune
from luthier.store.layout import RunFolder, open_run
from luthier.train.parallel import ALONE, World, join_world, refuse_several, share_json
from luthier.train.precision import choose_precision
from luthier.train.watchdog import UNWATCHED, Watchdog

GIB_IN_GB = 2**30 / 1e9
MIB_IN_MB = 2**20 / 1e6


def train(settings: Settings, progress: Progress) -> dict[str, object]:
    """Read, check, split, train. Returns lines for people and one JSON object; killed anywhere, the same call goes on.

    Of several processes only rank 0 writes to the run folder and has anything to say.
    """
    device = choose_device(settings.model.device)
    joined = join_world(shards=settings.train.shard, device=device)
    with stop_on_signals() as should_stop, joined as world, _folder(settings, world) as folder:
        watch = Watchdog.from_environment(folder.stacks if world.writes else None)
        with watch.setup():
            prepared = _agreed(prepare(settings, folder, progress), world)
        write_data_files(folder, prepared.data)
        told = progress if world.writes else quiet
        record = tune(settings, folder, TrainInputs.of(prepared, told, should_stop, world, watch))
        return _outcome(folder, record) if world.writes else {}


def estimate(settings: Settings, progress: Progress) -> dict[str, object]:
    """What `train` would need, from a few of its updates. Nothing is left behind."""
    refuse_several("luthier estimate")
    with stop_on_signals() as should_stop, _scratch_folder(settings) as folder:
        prepared = prepare(settings, folder, progress)
        write_data_files(folder, prepared.data)
        inputs = TrainInputs.of(prepared, progress, should_stop, ALONE, UNWATCHED)
        plan = make_plan(settings, inputs)
        plan, optimiser = begin(plan, ALONE)
        predicted = measure_forecast(plan, optimiser, inputs, folder.root)
        lines = [
            f"{plan.trained.method.words}; {len(inputs.train):,} rows; {device_words(plan.device)}, {prepared.precision.reason}",
            forecast_words(predicted),
            *plan.notes,
        ]
        return {"lines": lines, "json": {"predicted": _predicted_json(predicted)}}


@contextmanager
def _folder(settings: Settings, world: World) -> Generator[RunFolder]:
    """The run folder for rank 0; a folder that goes away for the others."""
    with open_run(Path(settings.run_dir), settings) if world.writes else _scratch_folder(settings) as folder:
        yield folder


@contextmanager
def _scratch_folder(settings: Settings) -> Generator[RunFolder]:
    with tempfile.TemporaryDirectory(prefix="luthier-") as name, open_run(Path(name), settings) as folder:
        yield folder


def _agreed(prepared: Prepared, world: World) -> Prepared:
    """All ranks compute in rank 0's number format: each measured its own machine. Raises ConfigError if only some have a GPU."""
    precision = prepared.precision
    name, kind = share_json(world, [precision.name, precision.device.type])
    if kind != precision.device.type:
        problem = f"process {world.rank} computes on {precision.device.type}, the first one on {kind}"
        raise ConfigError(problem, where="model.device", fix="--device cpu")
    return prepared if name == precision.name else replace(prepared, precision=choose_precision(name, device=precision.device))


def _predicted_json(predicted: Predicted) -> dict[str, object]:
    return {
        "trained_weights": predicted.num_trained_weights,
        "updates": predicted.updates,
        "row_tokens": predicted.row_tokens,
        "seconds": predicted.seconds,
        "search_seconds": predicted.search_seconds,
        "peak_rss_gb": None if predicted.peak_mem_gib is None else predicted.peak_mem_gib * GIB_IN_GB,
        "peak_device_gb": None if predicted.peak_device_gib is None else predicted.peak_device_gib * GIB_IN_GB,
        "disk_mb": predicted.disk_mib * MIB_IN_MB,
    }


def _outcome(folder: RunFolder, record: TrainRecord) -> dict[str, object]:
    """For people and for programs."""
    found: dict[str, object] = {
        "tokens_per_s": record.tokens_per_s,
        "peak_rss_gb": None if record.peak_mem_gib is None else record.peak_mem_gib * GIB_IN_GB,
        "peak_device_gb": None if record.peak_device_gib is None else record.peak_device_gib * GIB_IN_GB,
        "device": record.device,
        "disk_mb": None if record.disk_mib is None else record.disk_mib * MIB_IN_MB,
        "predicted": None if record.predicted is None else _predicted_json(record.predicted),
        "losses": [step.loss for step in record.curve],
        "dev_losses": [[step.step, step.dev_loss] for step in record.curve if step.dev_loss is not None],
        "notes": [[step.step, step.note] for step in record.curve if step.note],
        "lr": record.lr,
        "epochs": record.epochs,
        "best_step": record.best_step,
        "stopped_early": record.stopped_early,
        "train_seconds": record.train_seconds,
        "search_seconds": record.search_seconds,
        "method": record.method,
        "adapter": record.weights if record.weights.endswith(".safetensors") else None,
        "model": None if record.weights.endswith(".safetensors") else record.weights,
        "run_dir": str(folder.root),
    }
    best = "not measured" if record.best_dev_loss is None else f"{record.best_dev_loss:.4f} at update {record.best_step}"
    speed = "not measured (too few updates)" if record.tokens_per_s is None else f"{record.tokens_per_s:,.0f} tokens/s"
    lines = [
        f"{record.method}; {record.num_rows:,} rows, {record.updates} of {record.total_updates} updates",
        f"learning rate {record.lr:g}, best dev loss {best}" + (", stopped early" if record.stopped_early else ""),
        f"{record.train_seconds:.0f} s, {speed}; {record.device}, {record.precision}",
        *([] if record.predicted is None else [f"forecast had been: {forecast_words(record.predicted)}"]),
        f"weights: {record.weights}",
    ]
    return {"lines": lines, "json": found}
