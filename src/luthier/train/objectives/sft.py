"""Supervised fine-tuning: cross-entropy on response tokens only."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from luthier.kernels.chunked_ce import chunked_cross_entropy
from luthier.models.backbone import TreeLayout, body_and_head, hidden_states
from luthier.tokens.tree import TreeBatch


@dataclass(frozen=True, slots=True)
class LossSum:
    """What every objective returns: a sum and the weight it is to be divided by, once, over the whole update.

    With the division left to `step`, a batch of 8 in one piece, in two, or on two ranks is the same update; a mean of means
    is impossible by type.
    """

    sum: Tensor
    weight: int
    logs: dict[str, float]


def sft_loss(model: nn.Module, batch: TreeBatch) -> LossSum:
    """Sum of -log p(target) over the N label tokens of a micro-batch; logits exist only where there are labels."""
    body, head_VE = body_and_head(model)
    h_TE = hidden_states(body, batch.input_ids_T[None], batch.position_ids_T[None], TreeLayout(batch.tree))[0]
    total = chunked_cross_entropy(h_TE.index_select(0, batch.source_N), head_VE, batch.target_N)
    return LossSum(total, batch.target_N.numel(), {})
