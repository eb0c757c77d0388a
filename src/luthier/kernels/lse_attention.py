"""Attention that also tells the log-sum-exp of its scores, so that parts of one softmax can be computed apart and joined.

With out_i = softmax(s_i) v_i and l_i = logsumexp(s_i), softmax over both parts is out_1 + sigmoid(l_2 - l_1) * (out_2 - out_1)
(as in FlashAttention, arXiv 2205.14135). Plain twin: `reference.attention_lse`, which also runs where there is no such kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.kernels import reference


def attention_lse(
    q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, *, bias: Tensor | None = None, is_causal: bool = False, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attention [B, H, T, D] and log-sum-exp [B, H, T] in fp32; `bias` is added to the scores [B, H, T, S]."""
    if q_BHTD.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_BHTD, k_BHSD, v_BHSD, 0.0, is_causal, attn_mask=bias, scale=scaling
        )
    return reference.attention_lse(q_BHTD, k_BHSD, v_BHSD, bias=bias, is_causal=is_causal, scaling=scaling)


def join_parts(out_1: Tensor, lse_1: Tensor, out_2: Tensor, lse_2: Tensor) -> Tensor:
    """Attention over both parts, of the shape of `out_1`."""
    return torch.lerp(out_1, out_2, torch.sigmoid(lse_2 - lse_1).to(out_1.dtype)[..., None])
