"""Supervised fine-tuning: cross-entropy on response tokens only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.kernels.chunked_ce import chunked_cross_entropy
from luthier.kernels.device import to_device
from luthier.models.backbone import TreeLayout, body_and_head, wanted_states
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


def sft_loss(model: nn.Module, batch: TreeBatch, *, neftune_alpha: float = 0.0) -> LossSum:
    """Sum of -log p(target) over the N label tokens of a micro-batch; logits exist only where there are labels.

    `neftune_alpha` > 0 adds noise to the embeddings (`neftune_noise`); the batch must then have no shared prefix.
    """
    body, head_VE = body_and_head(model)
    noise_TE = neftune_noise(batch, head_VE.shape[1], alpha=neftune_alpha).to(head_VE.dtype) if neftune_alpha else None
    layout = TreeLayout(batch.tree, wanted_N=batch.source_N)
    h_NE = wanted_states(body, batch.input_ids_T, batch.position_ids_T, layout, noise_TE=noise_TE)
    total = chunked_cross_entropy(h_NE, head_VE, batch.target_N)
    return LossSum(total, batch.target_N.numel(), {})


def neftune_noise(batch: TreeBatch, hidden: int, *, alpha: float) -> Tensor:
    """Uniform noise in +-alpha / sqrt(L * hidden) for each token of a row of L tokens, [T, E] (NEFTune, arXiv 2310.05914, section 2).

    From torch's own generator, whose state is part of each checkpoint. Raises ValueError for rows that share a prefix: they
    would share its noise.
    """
    if batch.tree.num_prefix:
        raise ValueError("NEFTune needs rows without a shared prefix")
    grid_RL = batch.tree.leaf_grid_RL
    starts_R, T = grid_RL[:, 0], batch.position_ids_T.numel()
    ends_R = torch.cat([starts_R[1:], torch.tensor([T])])
    lengths_R = ends_R - starts_R
    scale_T = (alpha / torch.sqrt(lengths_R.float() * hidden)).repeat_interleave(lengths_R)
    device = batch.position_ids_T.device
    return (torch.rand(T, hidden, device=device) * 2 - 1) * to_device(scale_T, device)[:, None]
