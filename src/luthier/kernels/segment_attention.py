"""Attention over a token tree with long leaves or a long prefix: leaf by leaf, in blocks of queries, as plain products.

CPU flash attention with a mask runs at a quarter of the speed of the products it is made of, and its padding to the longest leaf is
computed too: together more than a third of an update of long rows (docs/log.md). Here each leaf is as long as it is, a block of queries
sees only the keys before its end, and scores live for one block: nothing but q, k and v is kept for the backward pass, which computes
them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.kernels import fused

BLOCK_QUERIES = 192


class _SegmentAttention(torch.autograd.Function):
    """Per block, with W = softmax(scale * q k^T) and g = dL/dout:

    dv = W^T g,   dS = softmax'(g v^T),   dq = scale * dS k,   dk = scale * dS^T q.   Sums over leaves (the prefix) are kept in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, x_TSD: Tensor, segments: Sequence[tuple[int, int]], num_prefix: int, num_query_heads: int, scaling: float
    ) -> Tensor:
        q_KGTD, k_KTD, v_KTD = _heads(x_TSD, num_query_heads)
        out_THD = x_TSD.new_empty(x_TSD.shape[0], num_query_heads, x_TSD.shape[2])
        out_KGTD = _by_key_head(out_THD, k_KTD.shape[0])
        for keys, start, end in _blocks(segments, num_prefix):
            k_KCD, v_KCD = _seen(k_KTD, keys), _seen(v_KTD, keys)
            _, w_KQC = _weights(q_KGTD[:, :, start:end], k_KCD, scaling)
            out_KGTD[:, :, start:end] = torch.bmm(w_KQC, v_KCD).view(*q_KGTD.shape[:2], end - start, -1)
        ctx.save_for_backward(x_TSD)
        ctx.plan = (segments, num_prefix, num_query_heads, scaling)
        return out_THD

    @staticmethod
    def backward(ctx: Any, g_THD: Tensor) -> tuple[Tensor, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x_TSD,) = ctx.saved_tensors
        segments, num_prefix, num_query_heads, scaling = ctx.plan
        q_KGTD, k_KTD, v_KTD = _heads(x_TSD, num_query_heads)
        K, _, D = k_KTD.shape
        g_KGTD = _by_key_head(g_THD, K)
        dx_TSD = torch.empty_like(x_TSD)
        dq_KGTD = _by_key_head(dx_TSD[:, :num_query_heads], K)
        dk_KTD, dv_KTD = (torch.zeros(k_KTD.shape, dtype=torch.float32, device=k_KTD.device) for _ in range(2))
        for keys, start, end in _blocks(segments, num_prefix):
            k_KCD, v_KCD = _seen(k_KTD, keys), _seen(v_KTD, keys)
            q_KQD, w_KQC = _weights(q_KGTD[:, :, start:end], k_KCD, scaling)
            g_KQD = g_KGTD[:, :, start:end].reshape(K, -1, D)
            dw_KQC = torch.bmm(g_KQD, v_KCD.transpose(1, 2))
            ds_KQC = fused.softmax_backward_(dw_KQC, w_KQC, scale=scaling)
            dq_KGTD[:, :, start:end] = torch.bmm(ds_KQC, k_KCD).view(*q_KGTD.shape[:2], end - start, D)
            _add(dk_KTD, keys, torch.bmm(ds_KQC.transpose(1, 2), q_KQD))
            _add(dv_KTD, keys, torch.bmm(w_KQC.transpose(1, 2), g_KQD))
        dx_TSD[:, num_query_heads : num_query_heads + K] = dk_KTD.transpose(0, 1)
        dx_TSD[:, num_query_heads + K :] = dv_KTD.transpose(0, 1)
        return dx_TSD, None, None, None, None


def _heads(x_TSD: Tensor, num_query_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries by key head [K, G, T, D] as a view; keys and values [K, T, D], each in one piece of memory as products like it."""
    K = (x_TSD.shape[1] - num_query_heads) // 2
    q_THD, k_TKD, v_TKD = x_TSD.split([num_query_heads, K, K], dim=1)
    return _by_key_head(q_THD, K), k_TKD.transpose(0, 1).contiguous(), v_TKD.transpose(0, 1).contiguous()


def _by_key_head(x_THD: Tensor, key_heads: int) -> Tensor:
    """[T, H, D] seen as [K, G, T, D]."""
    return x_THD.unflatten(1, (key_heads, -1)).permute(1, 2, 0, 3)


Keys = tuple[tuple[int, int], ...]  # ranges of flat positions, in order


def _blocks(segments: Sequence[tuple[int, int]], num_prefix: int) -> Iterator[tuple[Keys, int, int]]:
    """What each block of queries sees: the prefix, and its own segment up to its own end."""
    for first, last in segments:
        before: Keys = ((0, num_prefix),) if first >= num_prefix > 0 else ()
        for start in range(first, last, BLOCK_QUERIES):
            end = min(start + BLOCK_QUERIES, last)
            yield (*before, (first, end)), start, end


def _seen(x_KTD: Tensor, keys: Keys) -> Tensor:
    """The keys or values of some ranges, [K, C, D]."""
    parts = [x_KTD[:, a:b] for a, b in keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _add(total_KTD: Tensor, keys: Keys, part_KCD: Tensor) -> None:
    at = 0
    for a, b in keys:
        total_KTD[:, a:b] += part_KCD[:, at : at + b - a]
        at += b - a


def _weights(q_KGMD: Tensor, k_KCD: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """The block's queries, those of the G heads of a key head one after another [K, G*M, D], and their weights [K, G*M, C].

    The last M keys are the queries' own: there, later ones are hidden.
    """
    K, G, M, D = q_KGMD.shape
    q_KQD = q_KGMD.reshape(K, G * M, D)
    return q_KQD, fused.softmax_(torch.bmm(q_KQD, k_KCD.transpose(1, 2)), scale=scaling, own=M)


def segment_attention(
    x_TSD: Tensor, segments: Sequence[tuple[int, int]], *, num_prefix: int, num_query_heads: int, scaling: float
) -> Tensor:
    """Attention of a flat tree, [T, H, D], from its S = H + 2K heads of queries, keys and values.

    `segments` are the ranges of the prefix, if any, and of every leaf; together all tokens. Plain twin: `reference.tree_attention`.
    """
    return _SegmentAttention.apply(x_TSD, segments, num_prefix, num_query_heads, scaling)  # pyright: ignore[reportReturnType]
