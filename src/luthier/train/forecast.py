"""What a training will cost, from a few of its own updates: time, memory, disk.

1. The update that holds the largest piece of the whole run is computed first: pieces, not updates, make the peak of memory. It warms up
   kernels and allocators too.
2. The weights are copied where the run will hold a copy (of its best ones, or of the first ones while learning rates are tried), and two
   pieces of the dev rows, the largest one of them, are timed without gradient.
3. Three updates, of the first quarter, the middle and the end of all sizes, are timed; time is taken as proportional to the tokens that
   are really computed (a shared prefix once). The largest comes again because memory between the blocks of a look at dev is not
   used twice: the peak of a run is seen only after one.
Learning rate 0: no weight moves, and the moments are forgotten afterwards. Nothing is added to the peak that is measured: a run needs no
more memory for a thousand updates than for its largest (docs/log.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from luthier.core.types import TokenRow
from luthier.kernels.device import device_of, wait_for
from luthier.tokens.tree import common_prefix_length
from luthier.train.loop import FitSettings, FitState, attempt_update
from luthier.train.optim import Optimiser
from luthier.train.order import updates
from luthier.train.parallel import ALONE, World, sum_over_ranks
from luthier.train.step import Pieces, eval_pieces, evaluate_loss, micro_tokens
from luthier.train.watchdog import UNWATCHED, Watchdog

TIMED_SHARES = (0.25, 0.5, 1.0)  # of the updates by size


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What the training will need. Early stopping may end it sooner."""

    num_trained_weights: int
    updates: int
    row_tokens: int  # of all updates, as tokens/s counts them
    seconds: float  # of the final training, looks at dev included
    search_seconds: float  # of the search for a learning rate
    checkpoint_bytes: int  # of the tensors in one checkpoint
    best_bytes: int  # of these the best weights so far, which a checkpoint before the first look at dev has not


def forecast(
    model: nn.Module,
    optimiser: Optimiser,
    train: Sequence[TokenRow],
    dev: Sequence[TokenRow],
    settings: FitSettings,
    *,
    searched_rates: int,
    probe_updates: int,
    world: World = ALONE,
    watch: Watchdog = UNWATCHED,
) -> Forecast:
    """Measure as the module says and add up. The model and the optimiser are left as they were; torch's random state moves.

    Raises RunError when memory does not suffice for the largest update, even row by row.
    """
    state = FitState()
    plan = planned_updates(train, settings)
    pieces = [_pieces_tokens(rows, settings.micro_batch, device_of(model)) for rows in plan]
    sizes = [sum(tokens) for tokens in pieces]
    order = sorted(range(len(plan)), key=lambda i: sizes[i])
    model.train()
    with watch.update([]):
        first_s = _time_update(model, optimiser, plan[max(order, key=lambda i: max(pieces[i]))], settings, state, world)
    holds_copy = searched_rates > 0 or optimiser.keeps_masters or 0 < settings.eval_every < settings.total_updates
    best = optimiser.copy_result() if holds_copy else optimiser.result()
    timed = [order[round(share * (len(order) - 1))] for share in TIMED_SHARES]
    with watch.update([first_s], updates=len(timed)):
        look_s = _time_look(model, dev, settings, state, world)
        spent = sum(_time_update(model, optimiser, plan[i], settings, state, world) for i in timed)
    s_per_token = spent / sum(sizes[i] for i in timed)
    best_bytes, state_bytes = (_bytes(tensors.values(), world) for tensors in (best, optimiser.state()))
    optimiser.forget()
    looks = -(-settings.total_updates // settings.eval_every) if settings.eval_every else 1
    mean_update_s = s_per_token * sum(sizes) / len(sizes)
    return Forecast(
        num_trained_weights=optimiser.num_weights,
        updates=settings.total_updates,
        row_tokens=sum(len(row.input_ids) for rows in plan for row in rows),
        seconds=s_per_token * sum(sizes) + looks * look_s,
        search_seconds=searched_rates * (probe_updates * mean_update_s + look_s),
        checkpoint_bytes=best_bytes + state_bytes,
        best_bytes=best_bytes,
    )


def _bytes(tensors: Iterable[Tensor], world: World) -> int:
    """Of these tensors, over all ranks where they are sharded."""
    mine = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return int(sum_over_ranks(world, mine)) if world.shards else mine


def planned_updates(train: Sequence[TokenRow], settings: FitSettings) -> list[list[TokenRow]]:
    """The rows of every update of the run, in order."""
    order = updates([len(row.input_ids) for row in train], batch=settings.batch, seed=settings.seed)
    return [[train[i] for i in batch] for batch in islice(order, settings.total_updates)]


def _pieces_tokens(rows: Sequence[TokenRow], micro_batch: int | None, device: torch.device) -> list[int]:
    """Tokens that go through the model at once, for each piece of one update: its shared prefix counts once."""
    return [_piece_tokens(piece) for piece in Pieces(micro_batch=micro_batch).of(rows, max_tokens=micro_tokens(device))]


def _time_update(
    model: nn.Module, optimiser: Optimiser, rows: Sequence[TokenRow], settings: FitSettings, state: FitState, world: World
) -> float:
    """Seconds of one update at learning rate 0. A loss that is not finite is the training's to report."""
    started = time.perf_counter()
    try:
        attempt_update(model, optimiser, rows, settings, state, world, lr=0.0)
    except FloatingPointError:
        optimiser.drop_gradients()
    wait_for(optimiser.grad_M.device)
    return time.perf_counter() - started


def _time_look(model: nn.Module, dev: Sequence[TokenRow], settings: FitSettings, state: FitState, world: World) -> float:
    """Seconds of one dev loss, from its largest piece and the one in the middle."""
    if not dev:
        return 0.0
    model.eval()
    pieces = Pieces(micro_batch=settings.micro_batch, halvings=state.halvings)
    parts = sorted(eval_pieces(dev, pieces, device_of(model)), key=_piece_tokens)
    some = [parts[-1], *parts[len(parts) // 2 : len(parts) // 2 + 1]]
    started = time.perf_counter()
    for part in some:
        evaluate_loss(model, part, pieces=pieces, world=world)
    seconds = time.perf_counter() - started
    model.train()
    return seconds * sum(map(_piece_tokens, parts)) / sum(map(_piece_tokens, some))


def _piece_tokens(piece: Sequence[TokenRow]) -> int:
    num_prefix = common_prefix_length([row.input_ids for row in piece])
    return num_prefix + sum(len(row.input_ids) - num_prefix for row in piece)
