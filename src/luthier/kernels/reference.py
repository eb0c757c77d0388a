"""The slow, plain twin of each fast path: what the fast one must equal. Used by parity tests and by `--reference`-style checks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(h_NE: Tensor, weight_VE: Tensor, target_N: Tensor) -> Tensor:
    """All logits at once, in fp32; the sum over N label tokens."""
    return F.cross_entropy(F.linear(h_NE, weight_VE).float(), target_N, reduction="sum")


def tree_attention(q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, *, num_prefix: int, leaf_grid_RL: Tensor, scaling: float) -> Tensor:
    """One [T, T] mask: token t sees s if s is in the prefix or the same leaf, and not after t. Returns [H, T, D]."""
    T = q_HTD.shape[1]
    leaf_T = torch.full((T,), -1, device=q_HTD.device)
    for r, positions in enumerate(leaf_grid_RL.tolist()):
        leaf_T[positions] = r
    same = leaf_T[:, None] == leaf_T[None, :]
    in_prefix = (torch.arange(T, device=q_HTD.device) < num_prefix)[None, :]
    visible_TT = (same | in_prefix) & torch.ones(T, T, dtype=torch.bool, device=q_HTD.device).tril()
    groups = q_HTD.shape[0] // k_KTD.shape[0]
    k_HTD, v_HTD = k_KTD.repeat_interleave(groups, 0), v_KTD.repeat_interleave(groups, 0)
    scores = (q_HTD.float() @ k_HTD.float().transpose(-1, -2)) * scaling
    return (torch.softmax(scores.masked_fill(~visible_TT, float("-inf")), dim=-1) @ v_HTD.float()).to(q_HTD.dtype)
