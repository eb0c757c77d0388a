"""The slow, plain twin of each fast path: what the fast one must equal (tests/parity), written as the formula reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(h_NE: Tensor, weight_VE: Tensor, target_N: Tensor) -> Tensor:
    """All logits at once, in fp32; the sum over N label tokens."""
    return F.cross_entropy(F.linear(h_NE, weight_VE).float(), target_N, reduction="sum")


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """In fp32, rounded once."""
    return F.linear(x.float(), weight_OI.float(), None if bias_O is None else bias_O.float()).to(x.dtype)


def visible(num_tokens: int, num_prefix: int, leaf_grid_RL: Tensor) -> Tensor:
    """Token t sees s if s is in the prefix or the same leaf, and not after t: [T, T], on the host."""
    leaf_T = torch.full((num_tokens,), -1)
    for r, positions in enumerate(leaf_grid_RL.tolist()):
        leaf_T[positions] = r
    same = leaf_T[:, None] == leaf_T[None, :]
    in_prefix = (torch.arange(num_tokens) < num_prefix)[None, :]
    return (same | in_prefix) & torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()


def tree_attention(q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, *, num_prefix: int, leaf_grid_RL: Tensor, scaling: float) -> Tensor:
    """One [T, T] mask, `visible`. Returns [H, T, D]."""
    visible_TT = visible(q_HTD.shape[1], num_prefix, leaf_grid_RL).to(q_HTD.device)
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


def decoder_layer(
    x_TE: Tensor,
    norms: tuple[tuple[Tensor, float], tuple[Tensor, float]],
    linears: dict[str, tuple[Tensor, Tensor | None, Tensor, Tensor, float]],
    cos_TD: Tensor,
    sin_TD: Tensor,
    *,
    num_prefix: int,
    leaf_grid_RL: Tensor,
) -> Tensor:
    """A Llama layer with adapters, one operation after another. `linears` by q, k, v, o, gate, up, down: what `lora_linear` takes."""
    h_TE = rms_norm(x_TE, *norms[0])
    size = cos_TD.shape[1]
    q, k, v = (lora_linear(h_TE, *linears[name]).unflatten(1, (-1, size)).transpose(0, 1) for name in ("q", "k", "v"))
    q, k = (heads * cos_TD + _half_turned(heads) * sin_TD for heads in (q, k))
    out_HTD = tree_attention(q, k, v, num_prefix=num_prefix, leaf_grid_RL=leaf_grid_RL, scaling=size**-0.5)
    x1_TE = x_TE + lora_linear(out_HTD.transpose(0, 1).flatten(1), *linears["o"])
    h_TE = rms_norm(x1_TE, *norms[1])
    return x1_TE + lora_linear(swiglu(lora_linear(h_TE, *linears["gate"]), lora_linear(h_TE, *linears["up"])), *linears["down"])


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def attention_lse(
    q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, *, bias: Tensor | None = None, is_causal: bool = False, scaling: float
) -> tuple[Tensor, Tensor]:
    """Twin of `lse_attention.attention_lse`."""
    scores = (q_BHTD @ k_BHSD.transpose(-1, -2)).float() * scaling
    if bias is not None:
        scores = scores + bias
    if is_causal:
        T, S = scores.shape[-2:]
        scores = scores.masked_fill(torch.ones(T, S, dtype=torch.bool, device=scores.device).triu(1), float("-inf"))
    return torch.softmax(scores, dim=-1).to(q_BHTD.dtype) @ v_BHSD, torch.logsumexp(scores, dim=-1)


def adamw(
    weight_M: Tensor,
    grad_M: Tensor,
    mean_M: Tensor,
    square_M: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    update: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and both moments after one step of AdamW (arXiv 1711.05101, algorithm 2), in the dtype given."""
    mean_M = betas[0] * mean_M + (1 - betas[0]) * grad_M
    square_M = betas[1] * square_M + (1 - betas[1]) * grad_M**2
    step_M = (mean_M / (1 - betas[0] ** update)) / ((square_M / (1 - betas[1] ** update)).sqrt() + eps)
    return weight_M - lr * weight_decay * weight_M - lr * step_M, mean_M, square_M
