"""The training loop: `fit` -> `train_step` -> backward. No trainer class, no callbacks but one for progress."""

from __future__ import annotations

import gc
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from luthier.core.errors import RunError
from luthier.core.seeds import seed_for
from luthier.core.types import TokenRow
from luthier.kernels.device import free_cached_memory
from luthier.train.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from luthier.train.optim import Optimiser, Schedule, lr_at
from luthier.train.order import updates
from luthier.train.parallel import ALONE, World, any_rank, share_json
from luthier.train.sharded import checkpoint_blocks, read_rows
from luthier.train.step import Pieces, StepResult, evaluate_loss, train_step
from luthier.train.watchdog import UNWATCHED, Watchdog

MAX_SKIPPED_UPDATES = 3  # one after another
MEMORY_WORDS = ("can't allocate memory", "not enough memory", "DefaultCPUAllocator", "bad_alloc", "Cannot allocate memory")
# All it says when it has no memory for the code it writes, or to compute in. What it cannot do at all it says of a "primitive descriptor".
ONEDNN_WORDS = ("could not create a primitive", "could not execute a primitive", "could not create a memory object")
WATCHED_UPDATES = 100  # whose median says how long the next may take
T = TypeVar("T")


class Diverged(RunError):
    """Update after update was not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """What one training run depends on, besides model and rows."""

    lr: float
    batch: int
    micro_batch: int | None  # rows computed at once; None: as many as fit `step.micro_tokens`
    total_updates: int
    warmup_updates: int
    schedule: Schedule
    max_grad_norm: float
    eval_every: int  # updates; 0 = only at the end
    patience: int  # evaluations without a better dev loss before stopping; 0 = never stop early
    save_every: int  # updates; 0 = only at the end
    seed: int
    neftune_alpha: float = 0.0  # noise on the embeddings; 0 = none


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
    skipped_in_a_row: int = 0
    halvings: int = 0  # of the pieces an update is computed in, made when memory ran out
    stopped_early: bool = False
    train_seconds: float = 0.0
    history: list[StepRecord] = field(default_factory=list[StepRecord])


def _from_json(data: dict[str, Any]) -> FitState:
    state = FitState(**data)
    state.history = [StepRecord(**record) for record in data["history"]]
    return state


def _save(root: Path, optimiser: Optimiser, best: dict[str, Tensor], state: FitState, *, key: str, world: World) -> None:
    """Rank 0 writes a checkpoint. Where weights are sharded the others send it theirs."""
    blocks = checkpoint_blocks(optimiser, best, world) if world.shards else None
    if world.writes:
        named = {**optimiser.state(), **{f"best.{k}": v for k, v in best.items()}}
        on_host = blocks or {name: tensor.cpu() for name, tensor in named.items()}
        save_checkpoint(root, step=state.step, tensors=on_host, state=asdict(state), key=key)
    elif blocks is not None:
        deque(blocks.values, maxlen=0)


def _restore(root: Path | None, key: str, optimiser: Optimiser, best: dict[str, Tensor], world: World) -> FitState:
    """Rank 0 reads the newest valid checkpoint; the others are sent it, or their share of it, for they may not see the same disk."""
    found = latest_checkpoint(root, key=key) if root is not None and world.writes else None
    state = share_json(world, None if found is None else found.state)
    if state is None:
        return FitState()
    tensors = read_rows(found, optimiser, world) if world.shards else _read_whole(found, world)
    optimiser.load_state(tensors)
    best.update({name.removeprefix("best."): t for name, t in tensors.items() if name.startswith("best.")})
    return _from_json(state)


def _read_whole(found: Checkpoint | None, world: World) -> dict[str, Tensor]:
    tensors = {} if found is None else found.tensors
    shapes = {name: (list(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for name, tensor in tensors.items()}
    for name, (shape, dtype) in share_json(world, shapes).items():
        if name not in tensors:
            tensors[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
        world.share(tensors[name])
    return tensors


@contextmanager
def settled_objects() -> Generator[None]:
    """Python's search for unused objects passes by all that is there by now: a twentieth of the time of long rows (docs/log.md)."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@settled_objects()
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
    world: World = ALONE,
    watch: Watchdog = UNWATCHED,
) -> FitState:
    """Train until `total_updates`, early stopping or a stop request; leaves the best weights (by dev loss) in the model.

    Resumes from the newest valid checkpoint under `checkpoints` whose key matches; the continued run is bit-equal to an
    uninterrupted one, because data order depends on (seed, epoch) and random numbers on (seed, update, rank) alone.
    Raises Diverged after `MAX_SKIPPED_UPDATES` updates in a row that were not finite, RunError when memory does not suffice for a single
    row or another rank is gone, and KeyboardInterrupt when asked to stop (after saving).
    """
    best: dict[str, Tensor] = {}
    with watch.setup():
        state = _restore(checkpoints, key, optimiser, best, world)
    order = updates([len(row.input_ids) for row in train], batch=settings.batch, seed=settings.seed, start=state.step)
    model.train()
    while state.step < settings.total_updates and not state.stopped_early:
        started = time.perf_counter()
        rows = [train[i] for i in next(order)]
        before = [done.seconds for done in state.history[-WATCHED_UPDATES:]]
        with watch.update(before):
            record = _update(model, optimiser, rows, settings, state, started, world)
        if state.step == settings.total_updates or (settings.eval_every and state.step % settings.eval_every == 0):
            with watch.update(before, updates=max(1.0, len(dev) / settings.batch)):
                record = _evaluate(model, optimiser, dev, settings, state, best, record, world)
        state.train_seconds += time.perf_counter() - started
        state.history.append(record)
        on_step(record, state)
        stop = any_rank(world, should_stop())
        due = settings.save_every and state.step % settings.save_every == 0
        if checkpoints is not None and (due or stop or state.step == settings.total_updates or state.stopped_early):
            with watch.save():
                _save(checkpoints, optimiser, best, state, key=key, world=world)
        if stop:
            raise KeyboardInterrupt
    if state.best_step != state.step:
        optimiser.put_back(best)
    model.eval()
    return state


def _update(
    model: nn.Module,
    optimiser: Optimiser,
    rows: Sequence[TokenRow],
    settings: FitSettings,
    state: FitState,
    started: float,
    world: World,
) -> StepRecord:
    """One update; a non-finite one is skipped, recorded as such, and ends the run when it keeps happening."""
    lr = lr_at(
        state.step,
        peak=settings.lr,
        total_updates=settings.total_updates,
        warmup_updates=settings.warmup_updates,
        schedule=settings.schedule,
    )
    halvings_before = state.halvings
    state.step += 1
    loss, grad_norm, note = None, None, ""
    try:
        result = attempt_update(model, optimiser, rows, settings, state, world, lr=lr)
        loss, grad_norm, state.skipped_in_a_row = result.loss, result.grad_norm, 0
    except FloatingPointError as error:
        state.skipped += 1
        state.skipped_in_a_row += 1
        note = str(error)
        if state.skipped_in_a_row > MAX_SKIPPED_UPDATES:
            raise Diverged(
                f"{state.skipped_in_a_row} updates in a row were not finite ({error}); the weights are as before them",
                where=f"training, update {state.step}",
                fix="lower the learning rate: --lr " + format(settings.lr / 4, ".1e") + " --fresh",
            ) from error
    smaller = "memory ran out: computed in smaller pieces from here on" if state.halvings > halvings_before else ""
    return StepRecord(
        step=state.step,
        loss=loss,
        lr=lr,
        grad_norm=grad_norm,
        num_row_tokens=sum(len(row.input_ids) for row in rows),
        num_label_tokens=sum(row.num_labels for row in rows),
        seconds=time.perf_counter() - started,
        note="; ".join(part for part in (note, smaller) if part),
    )


def attempt_update(
    model: nn.Module, optimiser: Optimiser, rows: Sequence[TokenRow], settings: FitSettings, state: FitState, world: World, *, lr: float
) -> StepResult:
    """One update at a learning rate, in pieces that fit into memory. Raises as `train_step` and `with_room` do."""
    return with_room(
        lambda pieces: train_step(
            model,
            optimiser,
            rows,
            pieces=pieces,
            lr=lr,
            max_grad_norm=settings.max_grad_norm,
            neftune_alpha=settings.neftune_alpha,
            world=world,
        ),
        optimiser,
        rows,
        settings,
        state,
        world,
    )


def with_room(
    compute: Callable[[Pieces], T], optimiser: Optimiser, rows: Sequence[TokenRow], settings: FitSettings, state: FitState, world: World
) -> T:
    """`compute`, in pieces half as large whenever memory runs out; nothing of the failed attempt is kept.

    Random numbers start anew for each attempt, from a stream named for update and rank. Raises RunError when single rows do not fit, or
    when there are other ranks, which would wait for this one.
    """
    is_fresh = not any(torch_optimiser.state for torch_optimiser in optimiser.torch_optimisers)
    while True:
        torch.manual_seed(seed_for(settings.seed, f"update/{state.step}/{world.rank}"))  # dropout draws from torch's own stream
        pieces = Pieces(micro_batch=settings.micro_batch, halvings=state.halvings)
        try:
            return compute(pieces)
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not ran_out_of_memory(error):
                raise
            optimiser.drop_gradients()
            if is_fresh:
                optimiser.forget()  # moments of the first update that were made in part
            if pieces.are_smallest(rows, optimiser.grad_M.device) or world.size > 1:
                raise out_of_memory(f"training, update {state.step}", error) from error
            state.halvings += 1
        free_cached_memory()  # here, where the error no longer holds the tensors of the failed attempt


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch says so by type on a GPU and only by its words on a CPU, or in those of oneDNN and C++."""
    said = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or said in ONEDNN_WORDS or any(word in said for word in MEMORY_WORDS)


def out_of_memory(where: str, error: BaseException) -> RunError:
    """The error when not even one row fits."""
    return RunError(
        f"there is not enough memory to compute a single row ({type(error).__name__}); no update was lost or counted twice",
        where=where,
        fix="--max-length 256 --fresh; or --set train.checkpoint_activations=true --fresh; or a smaller model",
    )


def _evaluate(
    model: nn.Module,
    optimiser: Optimiser,
    dev: Sequence[TokenRow],
    settings: FitSettings,
    state: FitState,
    best: dict[str, Tensor],
    record: StepRecord,
    world: World,
) -> StepRecord:
    """Dev loss, the best weights so far, and early stopping."""
    model.eval()
    dev_loss = with_room(lambda pieces: evaluate_loss(model, dev, pieces=pieces, world=world), optimiser, dev, settings, state, world)
    model.train()
    if not math.isfinite(dev_loss):
        state.evaluations_without_gain += 1
        state.stopped_early = 0 < settings.patience <= state.evaluations_without_gain
        return replace(record, note="; ".join(part for part in (record.note, f"dev loss is {dev_loss}") if part))
    if state.best_dev_loss is None or dev_loss < state.best_dev_loss:
        state.best_dev_loss, state.best_step, state.evaluations_without_gain = dev_loss, state.step, 0
        # the last weights of all need no copy, unless a checkpoint would hold the masters under two names
        goes_on = state.step < settings.total_updates or optimiser.keeps_masters
        best.clear()  # before there is another copy: one is enough
        best.update(optimiser.copy_result() if goes_on else optimiser.result())
    else:
        state.evaluations_without_gain += 1
        state.stopped_early = 0 < settings.patience <= state.evaluations_without_gain
    return replace(record, dev_loss=dev_loss)
