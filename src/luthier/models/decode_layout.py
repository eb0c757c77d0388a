"""Attention while text is generated: prompts entering behind a shared prefix, then one token a row a step.

A query sees the shared prefix and its row's own tokens. Each part is computed on its own, the prefix once for all rows that share it,
and the two are joined by their log-sum-exp (kernels/lse_attention.py).

Shapes: R rows, H query heads, K key heads (H = K * G), T new tokens a row, D head size, P prefix tokens, C columns, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.kernels.lse_attention import attention_lse, join_parts
from luthier.kernels.step_attention import step_attention
from luthier.kernels.tiled_attention import leaf_attention, suits


def _over_prefix(q_RKQD: Tensor, kv_2PKD: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Queries of all rows over one prefix, in one product a key head: [R, K, Q, D], [R, K, Q]."""
    R, K, Q, D = q_RKQD.shape
    q_1KXD = q_RKQD.transpose(0, 1).reshape(1, K, R * Q, D)
    k, v = (part.transpose(0, 1)[None] for part in kv_2PKD)
    out, lse = attention_lse(q_1KXD, k, v, scaling=scaling)
    return out.reshape(K, R, Q, D).transpose(0, 1), lse.reshape(K, R, Q).transpose(0, 1)


@dataclass(slots=True)
class EnterLayout:
    """T new tokens of each row behind one prefix, [L, 2, P, K, D], if any. Rows are left-aligned: what stands behind a row's last token
    is seen by none of its tokens."""

    prefix_kv: Tensor | None = None
    fresh: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict[int, tuple[Tensor, Tensor]])

    def attend(self, layer: int, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scaling: float) -> Tensor:
        """Keeps K and V; own tokens causally, the prefix whole."""
        self.fresh[layer] = (k_BKTD, v_BKTD)
        B, H, T, D = q_BHTD.shape
        if suits(q_BHTD):
            x_BTSD = torch.cat([part.transpose(1, 2) for part in (q_BHTD, k_BKTD, v_BKTD)], dim=2)
            prefix_2PKD = None if self.prefix_kv is None else self.prefix_kv[layer]
            out_XHD = leaf_attention(x_BTSD.flatten(0, 1), prefix_2PKD, rows=B, num_query_heads=H, scaling=scaling)
            return out_XHD.view(B, T, H, D).transpose(1, 2)
        K = k_BKTD.shape[1]
        k, v = (part.repeat_interleave(H // K, dim=1) if H > K else part for part in (k_BKTD, v_BKTD))
        own, lse = attention_lse(q_BHTD, k, v, is_causal=T > 1, scaling=scaling)
        if self.prefix_kv is None:
            return own
        out, lse_shared = _over_prefix(q_BHTD.reshape(B, K, -1, D), self.prefix_kv[layer], scaling)
        return join_parts(own, lse, out.reshape(B, H, T, D), lse_shared.reshape(B, H, T))

    def stacked(self) -> Tensor:
        """All layers' keys and values, [L, 2, B, T, K, D]."""
        return torch.stack([torch.stack([part.transpose(1, 2) for part in self.fresh[layer]]) for layer in sorted(self.fresh)])


@dataclass(frozen=True, slots=True)
class Shared:
    """A prefix, [L, 2, P, K, D], and the rows that stand behind it; None: all."""

    kv: Tensor
    rows: Tensor | None


@dataclass(slots=True)
class StepLayout:
    """One new token a row, T = 1. `store` [L, 2, rows, C, K, D] gets its keys and values at flat place `slot_R` of (rows, C)."""

    store: Tensor
    num_rows: int
    filled: int
    slot_R: Tensor
    bias_R11C: Tensor | None  # -inf behind the end of a row; None where all rows are equally long
    shared: tuple[Shared, ...] = ()

    def attend(self, layer: int, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scaling: float) -> Tensor:
        """Append, then attend over (prefix, own)."""
        R, H, _, D = q_BHTD.shape
        K = k_BKTD.shape[1]
        keys, values = self.store[layer]
        q_RKGD = q_BHTD.reshape(R, K, H // K, D)
        made = step_attention(q_BHTD[:, :, 0], k_BKTD[:, :, 0], v_BKTD[:, :, 0], keys, values, self.slot_R, scaling=scaling)
        if made is not None:
            own, lse = made[0].view(R, K, H // K, D), made[1].view(R, K, H // K)
        else:
            keys.view(-1, K, D).index_copy_(0, self.slot_R, k_BKTD[:, :, 0])
            values.view(-1, K, D).index_copy_(0, self.slot_R, v_BKTD[:, :, 0])
            k, v = (part[:R, : self.filled].transpose(1, 2) for part in (keys, values))
            own, lse = attention_lse(q_RKGD, k, v, bias=self.bias_R11C, scaling=scaling)
        for group in self.shared:
            if group.rows is None:
                own = join_parts(own, lse, *_over_prefix(q_RKGD, group.kv[layer], scaling))
            else:
                rows = group.rows
                out, lse_shared = _over_prefix(q_RKGD[rows], group.kv[layer], scaling)
                own[rows] = join_parts(own[rows], lse[rows], out, lse_shared)
        return own.reshape(R, H, 1, D)
