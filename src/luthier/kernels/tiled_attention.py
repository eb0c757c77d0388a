"""Attention over a token tree of any shape in one call, forward and backward: `tiled_attention.cpp`, on processors with tiles (`tiles.h`).

`leaf_attention` is for prompts that are read behind a prefix whose keys and values were kept. Nothing but q, k and v is kept for the
backward pass. Shapes: T flat tokens of S = H + 2K heads each (queries, keys, values, in this order), D head size. Plain twin:
`reference.tree_attention`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.kernels.compiled import library

Segments = Sequence[tuple[int, int]]


def suits(x_D: Tensor) -> bool:
    """Whether heads like these, [..., D], can be computed here."""
    return bool(library().tiles) and x_D.is_cpu and x_D.dtype == torch.bfloat16 and x_D.shape[-1] % 32 == 0


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TSD: Tensor, segments: Segments, num_prefix: int, num_query_heads: int, scaling: float) -> Tensor:
        x_TSD = x_TSD.contiguous()
        out_THD = x_TSD.new_empty(x_TSD.shape[0], num_query_heads, x_TSD.shape[2])
        ctx.save_for_backward(x_TSD)
        ctx.plan = (segments, num_prefix, num_query_heads, scaling)
        library().tiles["tree_attention"](*_arguments(x_TSD, *ctx.plan), out_THD.data_ptr(), torch.get_num_threads())
        return out_THD

    @staticmethod
    def backward(ctx: Any, g_THD: Tensor) -> tuple[Tensor, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x_TSD,) = ctx.saved_tensors
        dx_TSD, g_THD = torch.empty_like(x_TSD), g_THD.contiguous()
        library().tiles["tree_attention_backward"](
            *_arguments(x_TSD, *ctx.plan), g_THD.data_ptr(), dx_TSD.data_ptr(), torch.get_num_threads()
        )
        return dx_TSD, None, None, None, None


def _arguments(x_TSD: Tensor, segments: Segments, num_prefix: int, num_query_heads: int, scaling: float) -> tuple[Any, ...]:
    _, S, D = x_TSD.shape
    ends = (ctypes.c_int64 * (2 * len(segments)))(*(end for segment in segments for end in segment))
    return x_TSD.data_ptr(), ends, len(segments), num_prefix, num_query_heads, (S - num_query_heads) // 2, D, scaling


def tiled_attention(x_TSD: Tensor, segments: Segments, *, num_prefix: int, num_query_heads: int, scaling: float) -> Tensor:
    """Attention of a flat tree, [T, H, D]. `segments` are the ranges of the prefix, if any, and of every leaf; together all tokens."""
    return _TiledAttention.apply(x_TSD, segments, num_prefix, num_query_heads, scaling)  # pyright: ignore[reportReturnType]


def leaf_attention(x_XSD: Tensor, prefix_2PKD: Tensor | None, *, rows: int, num_query_heads: int, scaling: float) -> Tensor:
    """Attention of `rows` equally long rows of tokens, one behind another, each behind the same prefix, if any: [X, H, D]. No gradient.

    A token sees the prefix whole and its own row up to itself. What a row answers depends on no other row. Plain twin:
    `reference.tree_attention`.
    """
    X, S, D = x_XSD.shape
    length, key_heads = X // rows, (S - num_query_heads) // 2
    x_XSD, prefix_2PKD = x_XSD.contiguous(), None if prefix_2PKD is None else prefix_2PKD.contiguous()
    out_XHD = x_XSD.new_empty(X, num_query_heads, D)
    ends = (ctypes.c_int64 * (2 * rows))(*(end for row in range(rows) for end in (row * length, (row + 1) * length)))
    prefix, num_prefix = (None, 0) if prefix_2PKD is None else (prefix_2PKD.data_ptr(), prefix_2PKD.shape[1])
    library().tiles["leaf_attention"](
        x_XSD.data_ptr(), ends, rows, prefix, num_prefix, num_query_heads, key_heads, D, scaling, out_XHD.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return out_XHD
