"""The slow, plain twin of each fast path: what the fast one must equal (tests/parity), written as the formula reads."""

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


def lora_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """Base layer plus scaled adapter, one operation after another, as peft computes it."""
    return F.linear(x, weight_OI, bias_O) + F.linear(F.linear(x, a_RI), b_OR) * scale


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """As transformers' LlamaRMSNorm computes it."""
    x32 = x_TE.float()
    return weight_E * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)).to(x_TE.dtype)


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """silu(gate) * up."""
    return F.silu(gate_TF) * up_TF
