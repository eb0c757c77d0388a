"""The training loop: `fit` -> `train_step` -> backward. No trainer class, no callbacks but one for progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import RunError
from luthier.core.types import TokenRow
from luthier.train.checkpoint import latest_checkpoint, save_checkpoint
from luthier.train.optim import Optimiser, Schedule, lr_at
from luthier.train.order import epoch_batches
from luthier.train.step import evaluate_loss, train_step

MAX_SKIPPED_UPDATES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """What one training run depends on, besides model and rows."""

    lr: float
    batch: int
    micro_batch: int | None  # rows computed at once; None: as many as fit `step.MICRO_TOKENS`
    total_updates: int
    warmup_updates: int
    schedule: Schedule
    max_grad_norm: float
    eval_every: int  # updates; 0 = only at the end
    patience: int  # evaluations without a better dev loss before stopping; 0 = never stop early
    save_every: int  # updates; 0 = only at the end
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One line of the training journal. `loss` is None for an update that was skipped because it was not finite."""

    step: int
    loss: float | None
    lr: float
    grad_norm: float | None
    num_row_tokens: int
    num_label_tokens: int
    seconds: float
    dev_loss: float | None = None
    note: str = ""


@dataclass(slots=True)
class FitState:
    """All that changes during training besides the optimiser; written with each checkpoint."""

    step: int = 0
    best_dev_loss: float | None = None
    best_step: int = 0
    evaluations_without_gain: int = 0
    skipped: int = 0
    stopped_early: bool = False
    train_seconds: float = 0.0
    history: list[StepRecord] = field(default_factory=list[StepRecord])


def _to_json(state: FitState) -> dict[str, Any]:
    return asdict(state)


def _from_json(data: dict[str, Any]) -> FitState:
    state = FitState(**data)
    state.history = [StepRecord(**record) for record in data["history"]]
    return state


def _tensors(optimiser: Optimiser, best: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**optimiser.state(), **{f"best.{k}": v for k, v in best.items()}, "rng": torch.get_rng_state()}


def _restore(root: Path | None, key: str, optimiser: Optimiser, best: dict[str, Tensor]) -> FitState:
    found = latest_checkpoint(root, key=key) if root is not None else None
    if found is None:
        return FitState()
    optimiser.load_state(found.tensors)
    best.update({name.removeprefix("best."): t for name, t in found.tensors.items() if name.startswith("best.")})
    torch.set_rng_state(found.tensors["rng"])
    return _from_json(found.state)


def fit(
    model: nn.Module,
    optimiser: Optimiser,
    train: Sequence[TokenRow],
    dev: Sequence[TokenRow],
    settings: FitSettings,
    *,
    checkpoints: Path | None,
    key: str,
    on_step: Callable[[StepRecord, FitState], None],
    should_stop: Callable[[], bool],
) -> FitState:
    """Train until `total_updates`, early stopping or a stop request; leaves the best weights (by dev loss) in the model.

    Resumes from the newest valid checkpoint under `checkpoints` whose key matches; the continued run is bit-equal to an
    uninterrupted one, because data order depends on (seed, epoch) alone and all random state is restored.
    Raises RunError after `MAX_SKIPPED_UPDATES` updates that were not finite, and KeyboardInterrupt when asked to stop
    (after saving).
    """
    lengths = [len(row.input_ids) for row in train]
    best: dict[str, Tensor] = {}
    state = _restore(checkpoints, key, optimiser, best)
    per_epoch = -(-len(train) // settings.batch)
    epoch, batches = -1, ()
    model.train()
    while state.step < settings.total_updates and not state.stopped_early:
        started = time.perf_counter()
        if state.step // per_epoch != epoch:
            epoch = state.step // per_epoch
            batches = epoch_batches(lengths, batch=settings.batch, seed=settings.seed, epoch=epoch)
        rows = [train[i] for i in batches[state.step % per_epoch]]
        record = _update(model, optimiser, rows, settings, state, started)
        if state.step == settings.total_updates or (settings.eval_every and state.step % settings.eval_every == 0):
            record = _evaluate(model, optimiser, dev, settings, state, best, record)
        state.train_seconds += time.perf_counter() - started
        state.history.append(record)
        on_step(record, state)
        stop = should_stop()
        due = settings.save_every and state.step % settings.save_every == 0
        if checkpoints is not None and (due or stop or state.step == settings.total_updates or state.stopped_early):
            save_checkpoint(checkpoints, step=state.step, tensors=_tensors(optimiser, best), state=_to_json(state), key=key)
        if stop:
            raise KeyboardInterrupt
    for name, tensor in best.items():
        optimiser.masters[name].data.copy_(tensor)
        optimiser.params[name].data.copy_(tensor)
    model.eval()
    return state


def _update(
    model: nn.Module, optimiser: Optimiser, rows: Sequence[TokenRow], settings: FitSettings, state: FitState, started: float
) -> StepRecord:
    """One update; a non-finite one is skipped, recorded as such, and ends the run when it keeps happening."""
    lr = lr_at(
        state.step,
        peak=settings.lr,
        total_updates=settings.total_updates,
        warmup_updates=settings.warmup_updates,
        schedule=settings.schedule,
    )
    tokens, labels = sum(len(row.input_ids) for row in rows), sum(row.num_labels for row in rows)
    state.step += 1
    try:
        result = train_step(model, optimiser, rows, micro_batch=settings.micro_batch, lr=lr, max_grad_norm=settings.max_grad_norm)
    except FloatingPointError as error:
        state.skipped += 1
        if state.skipped > MAX_SKIPPED_UPDATES:
            raise RunError(
                f"{state.skipped} updates were not finite ({error}); the weights are as before them",
                where=f"training, update {state.step}",
                fix="lower the learning rate: --lr " + format(settings.lr / 4, ".1e") + " --fresh",
            ) from error
        seconds = time.perf_counter() - started
        return StepRecord(
            step=state.step,
            loss=None,
            lr=lr,
            grad_norm=None,
            num_row_tokens=tokens,
            num_label_tokens=labels,
            seconds=seconds,
            note=str(error),
        )
    return StepRecord(
        step=state.step,
        loss=result.loss,
        lr=lr,
        grad_norm=result.grad_norm,
        num_row_tokens=tokens,
        num_label_tokens=labels,
        seconds=time.perf_counter() - started,
    )


def _evaluate(
    model: nn.Module,
    optimiser: Optimiser,
    dev: Sequence[TokenRow],
    settings: FitSettings,
    state: FitState,
    best: dict[str, Tensor],
    record: StepRecord,
) -> StepRecord:
    """Dev loss, the best weights so far, and early stopping."""
    model.eval()
    dev_loss = evaluate_loss(model, dev, micro_batch=settings.micro_batch)
    model.train()
    if not math.isfinite(dev_loss):
        state.evaluations_without_gain += 1
        state.stopped_early = 0 < settings.patience <= state.evaluations_without_gain
        return replace(record, note="; ".join(part for part in (record.note, f"dev loss is {dev_loss}") if part))
    if state.best_dev_loss is None or dev_loss < state.best_dev_loss:
        state.best_dev_loss, state.best_step, state.evaluations_without_gain = dev_loss, state.step, 0
        best.update({name: tensor.detach().clone() for name, tensor in optimiser.masters.items()})
    else:
        state.evaluations_without_gain += 1
        state.stopped_early = 0 < settings.patience <= state.evaluations_without_gain
    return replace(record, dev_loss=dev_loss)
