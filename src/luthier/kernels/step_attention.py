"""Attention of one new token a row over the row's own tokens: `step_attention.cpp`, on processors with tiles (`tiles.h`).

Elsewhere `attention_lse` computes the same, to rounding, after two copies (models/decode_layout.py). Plain twin: `reference.attention_lse`.
Shapes: R rows, H query heads, K key heads, D head size, C columns of the store.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.kernels.compiled import library


def step_attention(
    q_RHD: Tensor, k_RKD: Tensor, v_RKD: Tensor, keys_RCKD: Tensor, values_RCKD: Tensor, slot_R: Tensor, *, scaling: float
) -> tuple[Tensor, Tensor] | None:
    """Attention [R, H, D] and log-sum-exp [R, H] in fp32; None where it cannot be made here.

    New keys and values go to place `slot_R` of (row, column) in the store; a row's tokens are those in the columns up to there.
    """
    compiled = library().tiles.get("step_attention")
    (R, H, D), (_, C, K, _) = q_RHD.shape, keys_RCKD.shape
    given = (q_RHD, k_RKD, v_RKD)
    if (
        compiled is None
        or D % 32
        or any(t.dtype != torch.bfloat16 or not t.is_cpu for t in (*given, keys_RCKD, values_RCKD))
        or not all(_lies_in_rows(t, q_RHD.stride(0)) for t in given)
        or not (keys_RCKD.is_contiguous() and values_RCKD.is_contiguous())
    ):
        return None
    out_RHD, lse_RH = q_RHD.new_empty(R, H, D), q_RHD.new_empty(R, H, dtype=torch.float32)
    compiled(
        q_RHD.data_ptr(), k_RKD.data_ptr(), v_RKD.data_ptr(), q_RHD.stride(0), keys_RCKD.data_ptr(), values_RCKD.data_ptr(),
        slot_R.data_ptr(), R, C, H, K, D, scaling, out_RHD.data_ptr(), lse_RH.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out_RHD, lse_RH


def _lies_in_rows(heads_RHD: Tensor, row: int) -> bool:
    """Whether heads lie one behind another, rows `row` numbers apart. Of one row or head alone torch may say any distance."""
    wanted = (row, heads_RHD.shape[2], 1)
    return all(size == 1 or stride == want for size, stride, want in zip(heads_RHD.shape, heads_RHD.stride(), wanted, strict=True))
