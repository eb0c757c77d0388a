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

EVAL_TOKENS = 2048  # nothing is kept for a backward pass, and the shared prefix serves more rows
MICRO_TOKENS = 1280  # computed at once: matrix products gain nothing from more, and what is kept for backward grows with it


@dataclass(frozen=True, slots=True)
class StepResult:
    """One update: mean loss over its label tokens, and gradient norm before clipping."""

    loss: float
    grad_norm: float


def micro_batches(rows: Sequence[TokenRow], micro_batch: int | None, *, max_tokens: int = MICRO_TOKENS) -> list[Sequence[TokenRow]]:
    """The rows in pieces that are computed at once: so many rows, or (None) as many as `max_tokens` hold, their shared prefix once.

    Pieces of the second kind are about equally large: 1,300 tokens are two of 650, not one of 1,280 and a crumb.
    """
    if micro_batch is not None:
        return [rows[i : i + micro_batch] for i in range(0, len(rows), micro_batch)]
    num_prefix = common_prefix_length([row.input_ids for row in rows])
    own = [len(row.input_ids) - num_prefix for row in rows]
    most = max(1, max_tokens - num_prefix)
    fair = sum(own) / -(-sum(own) // most)
    out: list[list[TokenRow]] = []
    filled = 0
    for row, size in zip(rows, own, strict=True):
        if not out or filled + size > most or filled >= fair:
            out.append([])
            filled = 0
        out[-1].append(row)
        filled += size
    return [*out]


def train_step(
    model: nn.Module, optimiser: Optimiser, rows: Sequence[TokenRow], *, micro_batch: int | None, lr: float, max_grad_norm: float
) -> StepResult:
    """Forward and backward over micro-batches, then one update by the global weight.

    Raises FloatingPointError if loss or gradient is not finite; then nothing was applied.
    """
    batches = [tree_batch(piece) for piece in micro_batches(rows, micro_batch)]
    weight = sum(batch.target_N.numel() for batch in batches)
    loss_sum = 0.0
    for batch in batches:
        loss = sft_loss(model, batch)
        value = float(loss.sum.detach())
        if not math.isfinite(value):
            for param in optimiser.params.values():
                param.grad = None
            raise FloatingPointError(f"loss is {value}")
        loss.sum.backward()  # pyright: ignore[reportUnknownMemberType]
        loss_sum += value
    norm = apply_update(optimiser, lr=lr, max_grad_norm=max_grad_norm, weight=weight)
    return StepResult(loss_sum / weight, norm)


@torch.no_grad()
def evaluate_loss(model: nn.Module, rows: Sequence[TokenRow], *, micro_batch: int | None) -> float:
    """Mean loss over all label tokens of the rows, in order of length (less padding), the same for every batch size."""
    ordered = sorted(rows, key=lambda row: (len(row.input_ids), row.example_id))
    total, weight = 0.0, 0
    for piece in micro_batches(ordered, micro_batch, max_tokens=EVAL_TOKENS):
        loss = sft_loss(model, tree_batch(piece))
        total, weight = total + float(loss.sum), weight + loss.weight
    return total / weight
