"""One update, and one evaluation: the only places that call the model in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.core.types import TokenRow
from luthier.kernels.device import device_of, numbers
from luthier.tokens.tree import common_prefix_length, tree_batch
from luthier.train.objectives.sft import sft_loss
from luthier.train.optim import Optimiser, apply_update
from luthier.train.parallel import ALONE, World
from luthier.train.sharded import compute_loss

EVAL_TOKENS = 1024  # larger pieces only raise the peak of memory over that of training
MICRO_TOKENS = 1280  # computed at once: matrix products gain nothing from more, and what is kept for backward grows with it
GPU_TOKENS = 8192  # the same on a GPU, which small products leave idle; halved where its memory does not suffice


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

    def are_smallest(self, rows: Sequence[TokenRow], device: torch.device) -> bool:
        """Whether another halving would change nothing: every piece is one row."""
        return all(len(piece) == 1 for piece in self.of(rows, max_tokens=eval_tokens(device)))


def micro_tokens(device: torch.device) -> int:
    """How many tokens are computed at once in training."""
    return MICRO_TOKENS if device.type == "cpu" else GPU_TOKENS


def eval_tokens(device: torch.device) -> int:
    """The same without gradient."""
    return EVAL_TOKENS if device.type == "cpu" else GPU_TOKENS


def _by_tokens(rows: Sequence[TokenRow], max_tokens: int) -> list[Sequence[TokenRow]]:
    """As many rows as `max_tokens` hold, their shared prefix once.

    Every piece computes the prefix anew, so behind a long one its rows may have as many tokens as the prefix, up to `max_tokens`: a block
    of solved examples that fills a piece alone would else be computed for each row. Pieces are about equally large: 1,300 tokens are
    two of 650, not one of 1,280 and a crumb.
    """
    num_prefix = common_prefix_length([row.input_ids for row in rows])
    own = [len(row.input_ids) - num_prefix for row in rows]
    most = max(1, max_tokens - num_prefix, min(num_prefix, max_tokens))
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
    same weights, or to its share of them. Raises FloatingPointError, on every rank, if loss or gradient is not finite; then nothing
    was applied. Between the pieces nothing waits for the device: the losses are added up there, and looked at once, with the norm.
    """
    weight = sum(sum(row.is_label[1:]) for row in rows)
    device = optimiser.grad_M.device
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    for piece in _mine(lambda rank: pieces.of(rows[rank :: world.size], max_tokens=micro_tokens(device)), world):
        loss = _loss(model, piece, rows, device, neftune_alpha=neftune_alpha)
        loss_sum += loss.detach()
        with optimiser.collecting():
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
        optimiser.accumulate()
    world.add_up(loss_sum)
    if not world.shards:
        world.add_up(optimiser.grad_M)
    total, norm = apply_update(optimiser, loss_sum, lr=lr, max_grad_norm=max_grad_norm, weight=weight, world=world)
    return StepResult(total / weight, norm)


def _mine(pieces_of: Callable[[int], Sequence[Sequence[TokenRow]]], world: World) -> list[Sequence[TokenRow]]:
    """This rank's pieces; where weights are sharded, with empty ones up to as many as any rank has.

    Every pass then gathers weights from all ranks, so all must make the same number of passes.
    """
    mine = pieces_of(world.rank)
    most = max(len(pieces_of(rank)) for rank in range(world.size)) if world.shards else len(mine)
    return [*mine, *([()] * (most - len(mine)))]


def _loss(
    model: nn.Module, piece: Sequence[TokenRow], rows: Sequence[TokenRow], device: torch.device, *, neftune_alpha: float = 0.0
) -> Tensor:
    """The loss of a piece; of an empty one nothing, by a pass over the shortest row."""
    batch = tree_batch(piece or [min(rows, key=lambda row: len(row.input_ids))], share_prefix=neftune_alpha == 0).on(device)
    total = compute_loss(model, lambda whole: sft_loss(whole, batch, neftune_alpha=neftune_alpha).sum)
    return total if piece else total * 0.0


@torch.no_grad()
def evaluate_loss(model: nn.Module, rows: Sequence[TokenRow], *, pieces: Pieces, world: World = ALONE) -> float:
    """Mean loss over all label tokens of the rows, in order of length (less padding), the same for every batch size."""
    weight = sum(sum(row.is_label[1:]) for row in rows)
    device = device_of(model)
    parts = eval_pieces(rows, pieces, device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for piece in _mine(lambda rank: parts[rank :: world.size], world):
        total += _loss(model, piece, rows, device)
    world.add_up(total)
    return numbers(total[None])[0] / weight


def eval_pieces(rows: Sequence[TokenRow], pieces: Pieces, device: torch.device) -> list[Sequence[TokenRow]]:
    """The rows by length, in what is computed at once without gradient."""
    return pieces.of(sorted(rows, key=lambda row: (len(row.input_ids), row.example_id)), max_tokens=eval_tokens(device))
