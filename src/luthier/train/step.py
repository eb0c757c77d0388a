"""One update, and one evaluation: the only places that call the model in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from luthier.core.types import TokenRow
from luthier.tokens.tree import common_prefix_length, tree_batch
from luthier.train.objectives.sft import sft_loss
from luthier.train.optim import Optimiser, apply_update
from luthier.train.parallel import ALONE, World, sum_over_ranks

EVAL_TOKENS = 1024  # larger pieces only raise the peak of memory over that of training
MICRO_TOKENS = 1280  # computed at once: matrix products gain nothing from more, and what is kept for backward grows with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """How an update is cut into what is computed at once: so many rows, or (None) as many as a number of tokens hold.

    Each halving, made when memory ran out, halves either. The update is the same, to rounding.
    """

    micro_batch: int | None = None
    halvings: int = 0

    def of(self, rows: Sequence[TokenRow], *, max_tokens: int) -> list[Sequence[TokenRow]]:
        """The rows in pieces, in their order."""
        if self.micro_batch is None:
            return _by_tokens(rows, max_tokens >> self.halvings)
        size = max(1, self.micro_batch >> self.halvings)
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def are_smallest(self, rows: Sequence[TokenRow]) -> bool:
        """Whether another halving would change nothing: every piece is one row."""
        return all(len(piece) == 1 for piece in self.of(rows, max_tokens=EVAL_TOKENS))


def _by_tokens(rows: Sequence[TokenRow], max_tokens: int) -> list[Sequence[TokenRow]]:
    """As many rows as `max_tokens` hold, their shared prefix once.

    Pieces are about equally large: 1,300 tokens are two of 650, not one of 1,280 and a crumb.
    """
    num_prefix = common_prefix_length([row.input_ids for row in rows])
    own = [len(row.input_ids) - num_prefix for row in rows]
    most = max(1, max_tokens - num_prefix)
    fair = sum(own) / -(-sum(own) // most) if rows else 0
    out: list[list[TokenRow]] = []
    filled = 0
    for row, size in zip(rows, own, strict=True):
        if not out or filled + size > most or filled >= fair:
            out.append([])
            filled = 0
        out[-1].append(row)
        filled += size
    return [*out]


@dataclass(frozen=True, slots=True)
class StepResult:
    """One update: mean loss over its label tokens, and gradient norm before clipping."""

    loss: float
    grad_norm: float


def train_step(
    model: nn.Module,
    optimiser: Optimiser,
    rows: Sequence[TokenRow],
    *,
    pieces: Pieces,
    lr: float,
    max_grad_norm: float,
    neftune_alpha: float = 0.0,
    world: World = ALONE,
) -> StepResult:
    """Forward and backward over this rank's share of the rows, then one update by the weight of all of them.

    Every rank knows all rows of the update, so the divisor needs no communication, and every rank applies the same update to the
    same weights. Raises FloatingPointError, on every rank, if loss or gradient is not finite; then nothing was applied.
    """
    weight = sum(sum(row.is_label[1:]) for row in rows)
    loss_sum = 0.0
    mine = rows[world.rank :: world.size]
    for piece in pieces.of(mine, max_tokens=MICRO_TOKENS):
        loss = sft_loss(model, tree_batch(piece, share_prefix=neftune_alpha == 0), neftune_alpha=neftune_alpha)
        value = float(loss.sum.detach())
        loss_sum += value
        if not math.isfinite(value):
            break  # the other ranks are told by the sum
        loss.sum.backward()  # pyright: ignore[reportUnknownMemberType]
        optimiser.accumulate()
    loss_sum = sum_over_ranks(world, loss_sum)
    if not math.isfinite(loss_sum):
        optimiser.drop_gradients()
        raise FloatingPointError(f"loss is {loss_sum}")
    world.add_up(optimiser.grad_M)
    norm = apply_update(optimiser, lr=lr, max_grad_norm=max_grad_norm, weight=weight)
    return StepResult(loss_sum / weight, norm)


@torch.no_grad()
def evaluate_loss(model: nn.Module, rows: Sequence[TokenRow], *, pieces: Pieces, world: World = ALONE) -> float:
    """Mean loss over all label tokens of the rows, in order of length (less padding), the same for every batch size."""
    weight = sum(sum(row.is_label[1:]) for row in rows)
    mine = eval_pieces(rows, pieces)[world.rank :: world.size]
    total = sum(float(sft_loss(model, tree_batch(piece)).sum) for piece in mine)
    return sum_over_ranks(world, total) / weight


def eval_pieces(rows: Sequence[TokenRow], pieces: Pieces) -> list[Sequence[TokenRow]]:
    """The rows by length, in what is computed at once without gradient."""
    return pieces.of(sorted(rows, key=lambda row: (len(row.input_ids), row.example_id)), max_tokens=EVAL_TOKENS)
