"""Products one side of which is the rank of an adapter: by `narrow.h` where the processor has tiles (`tiles.h`), else torch's own.

Both compute the same to rounding (tests/parity/test_narrow.py); the formulas are those of `reference.lora_linear`. Shapes: T tokens,
K or O the width of a layer, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.kernels import wide
from luthier.kernels.compiled import library


def into_rank(x_TK: Tensor, weight_KR: Tensor, *, scale: float, out_TR: Tensor) -> None:
    """scale * x w, into `out_TR`, which may be columns of a wider matrix. `weight_KR` may be the transpose of an [R, K]."""
    narrow = library().tiles.get("narrow")
    K, R = weight_KR.shape
    if narrow is None or K % 32 or R % 16 or not _are_rows(x_TK, out_TR) or 1 not in weight_KR.stride():
        wide.plain([(x_TK, weight_KR)], out_TO=out_TR).mul_(scale)
        return
    narrow(
        x_TK.data_ptr(), x_TK.stride(0), x_TK.shape[0], K, weight_KR.data_ptr(), weight_KR.stride(0), weight_KR.stride(1), R, scale,
        out_TR.data_ptr(), out_TR.stride(0), torch.get_num_threads(),
    )  # fmt: skip


def outer(
    u_TR: Tensor, g_TO: Tensor, *, transposed: bool = False, token_scale_T1: Tensor | None = None, scale_O: Tensor | None = None
) -> Tensor:
    """u^T g, [R, O], or transposed [O, R]; tokens and columns scaled by fp32 numbers for each token, and by a row as `g_TO` is."""
    compiled = library().tiles.get("outer")
    (T, R), width = u_TR.shape, g_TO.shape[1]
    is_scaled_alike = scale_O is None or (scale_O.dtype == g_TO.dtype and not transposed)
    if compiled is None or R % 16 or not is_scaled_alike or not _are_rows(u_TR, g_TO):
        u_TR = u_TR if token_scale_T1 is None else (u_TR * token_scale_T1).to(u_TR.dtype)
        out_RO = wide.plain([(u_TR.T, g_TO)])
        out_RO = out_RO if scale_O is None else out_RO.mul_(scale_O)
        return out_RO.T if transposed else out_RO
    out = g_TO.new_empty((width, R) if transposed else (R, width))
    strides = (1, R) if transposed else (width, 1)
    compiled(
        u_TR.data_ptr(), u_TR.stride(0), None if token_scale_T1 is None else token_scale_T1.data_ptr(), R, g_TO.data_ptr(), g_TO.stride(0),
        T, width, None if scale_O is None else scale_O.data_ptr(), out.data_ptr(), *strides, torch.get_num_threads(),
    )  # fmt: skip
    return out


def _are_rows(first: Tensor, second: Tensor) -> bool:
    """Whether these are bf16 matrices on the host whose rows are in one piece each."""
    return first.dtype == second.dtype == torch.bfloat16 and first.is_cpu and second.is_cpu and first.stride(1) == second.stride(1) == 1
