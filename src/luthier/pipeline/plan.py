"""What a training will be: method, model, optimiser, updates; and what it will cost, measured on a few of its updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.core.console import duration
from luthier.core.types import TokenRow
from luthier.generate.local import peak_memory_gib
from luthier.kernels.device import CPU, peak_device_gib
from luthier.models.backbone import use_layout_attention
from luthier.models.load import ModelInfo, open_model
from luthier.models.lora import LoraSettings
from luthier.models.surgery import use_fast_kernels
from luthier.models.trainable import Method, Trainable, make_trainable
from luthier.pipeline.prepare import Prepared
from luthier.pipeline.record import Predicted
from luthier.pipeline.settings import Settings
from luthier.store.files import folder_bytes
from luthier.train.forecast import Forecast, forecast
from luthier.train.loop import FitSettings
from luthier.train.optim import Optimiser, make_optimiser
from luthier.train.parallel import World
from luthier.train.precision import Precision
from luthier.train.sharded import rows_of, shard_model
from luthier.train.watchdog import UNWATCHED, Watchdog

MAX_DEV_ROWS = 128  # rows of dev that the training loss is checked on; the arms are chosen on `arms.dev_items`
AUTO_EPOCH_ROWS = 3000  # rows seen, when the user names no number of epochs
MAX_AUTO_EPOCHS = 5
ADAPTER_RATES, WEIGHT_RATES = (5e-4, 1e-3, 2e-3), (3e-5, 1e-4, 3e-4)
KEPT_CHECKPOINTS = 2
JOURNAL_BYTES = 640  # of one update: journal line, curve, and history in each kept checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainInputs:
    """What the training depends on, and whom to tell."""

    model_path: Path
    model_info: ModelInfo
    precision: Precision
    train: Sequence[TokenRow]
    dev: Sequence[TokenRow]
    on_progress: Callable[[str, float, float, str], None]
    should_stop: Callable[[], bool]
    world: World
    watch: Watchdog = UNWATCHED

    @classmethod
    def of(
        cls,
        prepared: Prepared,
        on_progress: Callable[[str, float, float, str], None],
        should_stop: Callable[[], bool],
        world: World,
        watch: Watchdog,
    ) -> TrainInputs:
        """From what `prepare` returned."""
        return cls(
            model_path=prepared.model_path,
            model_info=prepared.info,
            precision=prepared.precision,
            train=prepared.train_rows,
            dev=prepared.dev_rows[:MAX_DEV_ROWS],
            on_progress=on_progress,
            should_stop=should_stop,
            world=world,
            watch=watch,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A training that is ready to begin. `fit` has no learning rate yet where it is still to be found."""

    trained: Trainable
    model: nn.Module  # what computes: `trained.model`, or its sharded form
    make_optimiser: Callable[[], Optimiser]
    dtype: torch.dtype  # that the model computes in
    device: torch.device  # where it computes
    fit: FitSettings
    rates: tuple[float, ...]  # to be tried; empty where the learning rate is set
    probe_updates: int
    notes: tuple[str, ...]


def method_of(settings: Settings) -> Method:
    """The method the settings name."""
    train = settings.train
    name = train.method
    if name == "full":
        return Method(name=name)
    if name == "freeze":
        return Method(name=name, last_layers=train.last_layers)
    lora = LoraSettings(
        r=train.lora_r,
        alpha=train.lora_alpha,
        dropout=train.lora_dropout,
        use_rslora=train.lora_rslora,
        use_dora=name == "dora",
        init=train.lora_init,
    )
    return Method(name=name, lora=lora)


def choose_epochs(named: float | None, num_rows: int) -> tuple[float, str]:
    """The number of epochs and why."""
    if named is not None:
        return named, f"{named:g} epochs: set by you"
    epochs = min(MAX_AUTO_EPOCHS, max(1, round(AUTO_EPOCH_ROWS / num_rows)))
    return float(
        epochs
    ), f"{epochs} epochs: about {AUTO_EPOCH_ROWS:,} rows seen, at most {MAX_AUTO_EPOCHS} times each; early stopping on dev loss"


def fit_settings(settings: Settings, num_rows: int, epochs: float, lr: float) -> FitSettings:
    """The loop's settings, with what follows from the number of rows worked out."""
    per_epoch = -(-num_rows // settings.train.batch)
    total = max(1, round(per_epoch * epochs))
    return FitSettings(
        lr=lr,
        batch=settings.train.batch,
        micro_batch=settings.train.micro_batch,
        total_updates=total,
        warmup_updates=round(total * settings.train.warmup_ratio),
        schedule=settings.train.schedule,
        max_grad_norm=settings.train.max_grad_norm,
        eval_every=max(5, total // 5) if settings.train.eval_every is None else settings.train.eval_every,
        patience=settings.train.patience,
        save_every=settings.train.save_every,
        seed=settings.seed,
        neftune_alpha=settings.train.neftune_alpha,
    )


def make_plan(settings: Settings, inputs: TrainInputs) -> Plan:
    """Open the model and set up everything, without computing an update."""
    train = settings.train
    device = CPU if inputs.world.shards else inputs.precision.device  # a whole model may not fit on a GPU that holds its share
    base = open_model(inputs.model_path, dtype=inputs.precision.dtype, device=device)
    trained = make_trainable(base, method_of(settings), seed=settings.seed)
    use_layout_attention(trained.causal)
    if train.checkpoint_activations:
        causal: Any = trained.causal
        enable = getattr(causal, "activation_checkpointing_enable", None) or causal.gradient_checkpointing_enable  # its name before 5.23
        enable({"use_reentrant": False})
    epochs, why_epochs = choose_epochs(train.epochs, len(inputs.train))
    rates = () if train.lr is not None else train.lr_candidates or (ADAPTER_RATES if trained.method.makes_adapter else WEIGHT_RATES)
    wanted = fit_settings(settings, len(inputs.train), epochs, lr=train.lr or 0.0)
    return Plan(
        trained=trained,
        model=trained.model,
        make_optimiser=partial(
            make_optimiser,
            trained.model,
            weight_decay=train.weight_decay,
            compute_dtype=inputs.precision.dtype,
            name=train.optimiser,
            keeps_masters=trained.method.makes_adapter,
        ),
        dtype=inputs.precision.dtype,
        device=inputs.precision.device,
        fit=wanted,
        rates=rates,
        probe_updates=min(train.lr_probe_steps, wanted.total_updates),
        notes=(why_epochs,),
    )


def begin(plan: Plan, world: World) -> tuple[Plan, Optimiser]:
    """An optimiser, and the model in the dtype it computes in, with fast kernels where they fit, and sharded where that is wanted."""
    model = plan.trained.model
    if not world.shards:
        optimiser = plan.make_optimiser()
        use_fast_kernels(model)
        return plan, optimiser
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    starts = {name: rows_of(p.detach(), world).clone() for name, p in trained.items() if p.dtype != plan.dtype}  # adapters start in fp32
    for p in trained.values():
        p.data = p.data.to(plan.dtype)
    use_fast_kernels(model)
    plan = replace(plan, model=shard_model(model, world, plan.device))
    optimiser = plan.make_optimiser()
    for name, start in starts.items():
        optimiser.masters[name].copy_(start)
    return plan, optimiser


def measure_forecast(plan: Plan, optimiser: Optimiser, inputs: TrainInputs, folder: Path) -> Predicted:
    """Run a few updates without effect and add up; `folder` holds what was written so far."""
    inputs.on_progress("forecast", 0, 1, "a few updates without effect, the largest first")
    found = forecast(
        plan.model,
        optimiser,
        inputs.train,
        inputs.dev,
        plan.fit,
        searched_rates=len(plan.rates),
        probe_updates=plan.probe_updates,
        world=inputs.world,
        watch=inputs.watch,
    )
    predicted = Predicted(
        num_trained_weights=found.num_trained_weights,
        updates=found.updates,
        row_tokens=found.row_tokens,
        seconds=found.seconds,
        search_seconds=found.search_seconds,
        peak_mem_gib=peak_memory_gib(),
        peak_device_gib=peak_device_gib(plan.device),
        disk_mib=(folder_bytes(folder) + _written_bytes(plan, found)) / 2**20,
    )
    inputs.on_progress("forecast", 1, 1, forecast_words(predicted))
    return predicted


def _written_bytes(plan: Plan, found: Forecast) -> int:
    """What the training will write: checkpoints, result, journal."""
    save_every = plan.fit.save_every
    saves = found.updates // save_every + bool(found.updates % save_every) if save_every else 1
    weights = 4 if plan.trained.method.makes_adapter else next(plan.trained.model.parameters()).element_size()
    all_weights = sum(p.numel() for p in plan.trained.model.parameters())
    started_from = sum(a.numel() + b.numel() for a, b in (plan.trained.pissa or {}).values())  # stored beside the trained ones
    result = weights * (found.num_trained_weights + started_from if plan.trained.method.makes_adapter else all_weights)
    kept = min(saves, KEPT_CHECKPOINTS)
    checkpoints = kept * found.checkpoint_bytes
    if kept > 1 and not 0 < plan.fit.eval_every <= (found.updates - 1) // save_every * save_every:
        checkpoints -= found.best_bytes  # the last but one was written before any look at dev
    return checkpoints + result + JOURNAL_BYTES * found.updates


def forecast_words(predicted: Predicted) -> str:
    """The forecast in a line."""
    search = f" after {duration(predicted.search_seconds)} of search for a learning rate" if predicted.search_seconds else ""
    memory = "not measured" if predicted.peak_mem_gib is None else f"{predicted.peak_mem_gib:.1f} GiB"
    memory += "" if predicted.peak_device_gib is None else f", on the GPU {predicted.peak_device_gib:.1f} GiB"
    return (
        f"{predicted.num_trained_weights:,} weights trained, {predicted.row_tokens:,} tokens in {predicted.updates:,} updates: "
        f"about {duration(predicted.seconds)}{search}, peak memory {memory}, {predicted.disk_mib:,.0f} MiB on disk"
    )
