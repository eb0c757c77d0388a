"""Products with the large matrices of a layer, several summed into one: by `wide.h` where there are tiles (`tiles.h`), else torch's own.

Both compute the same to rounding (tests/parity/test_wide.py); with an adapter as one of the parts it is `reference.lora_linear`.
`wide.h` sums all parts in fp32 and rounds once. torch's way rounds after each part, so the small part comes first: added to a large one
that is already rounded to bf16, most of a small adapter would round away, always in the same direction. For the same reason the residual
is added last.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.kernels.compiled import library

FEW_TOKENS = 32  # up to here reading the matrices is all the work
MIN_TOKENS = 16  # of matrices that do not lie as the function for few tokens reads them
MAX_K = 4608  # of all parts: a panel of more than that does not stay in the second-level cache, and torch's products are faster,
LONG_TOKENS = 128  # but for so few tokens (measured with AVX-512 BF16: 1.3 times as fast at 56, level at 128), or where torch has none


def product(
    parts: Sequence[tuple[Tensor, Tensor]], *, bias_O: Tensor | None = None, residual_TO: Tensor | None = None, out_TO: Tensor | None = None
) -> Tensor:
    """x1 w1 + x2 w2 + ... + bias + residual, [T, O]. `parts`, small ones first: x [T, K] and w [K, O].

    A w may be the transpose of an [O, K], `out_TO` may be columns of a wider matrix.
    """
    x_TK, w_KO = parts[0]
    T, O = x_TK.shape[0], w_KO.shape[1]  # noqa: E741 - O, a width
    is_few = T <= FEW_TOKENS and all(map(_lies_in_rows, parts))
    is_wide = T >= MIN_TOKENS and (T <= LONG_TOKENS or sum(x.shape[1] for x, _ in parts) <= MAX_K or not multiplies(x_TK))
    compiled = library().tiles.get("few" if is_few else "wide" if is_wide else "")
    if compiled is None or not _suits(parts, bias_O, residual_TO, out_TO):
        return plain(parts, bias_O=bias_O, residual_TO=residual_TO, out_TO=out_TO)
    out_TO = x_TK.new_empty(T, O) if out_TO is None else out_TO
    numbers = [n for x, w in parts for n in (x.data_ptr(), x.stride(0), x.shape[1], w.data_ptr(), w.stride(0), w.stride(1))]
    compiled(
        (ctypes.c_int64 * len(numbers))(*numbers), len(parts), T, O, None if bias_O is None else bias_O.data_ptr(),
        None if residual_TO is None else residual_TO.data_ptr(), 0 if residual_TO is None else residual_TO.stride(0),
        out_TO.data_ptr(), out_TO.stride(0), torch.get_num_threads(),
    )  # fmt: skip
    return out_TO


def has_own(weight_OK: Tensor) -> bool:
    """Whether `wide.h` makes products with this matrix as it lies, for any number of tokens: no other order of it is worth its room."""
    return bool(library().tiles) and weight_OK.dtype == torch.bfloat16 and weight_OK.is_cpu and _lies_in_rows((weight_OK, weight_OK.T))


def _lies_in_rows(part: tuple[Tensor, Tensor]) -> bool:
    """Whether w is the transpose of an [O, K] of whole rows, K in thirty-twos."""
    return part[1].stride(0) == 1 and part[1].shape[0] % 32 == 0


def plain(
    parts: Sequence[tuple[Tensor, Tensor]], *, bias_O: Tensor | None = None, residual_TO: Tensor | None = None, out_TO: Tensor | None = None
) -> Tensor:
    """`product` by torch's own products, or in fp32 where torch has none of these numbers."""
    (x_TK, w_KO), *others = parts
    if not multiplies(x_TK):
        return _widened(parts, bias_O, residual_TO, out_TO)
    sum_TO = torch.mm(x_TK, w_KO) if out_TO is None else torch.mm(x_TK, w_KO, out=out_TO)
    for x, w in others:
        sum_TO.addmm_(x, w)
    if bias_O is not None:
        sum_TO.add_(bias_O)
    return sum_TO if residual_TO is None else sum_TO.add_(residual_TO)


def multiplies(x: Tensor) -> bool:
    """Whether torch has products of such numbers here. Without AVX-512 it takes bf16 ones apart: 100 times as slow as fp32."""
    return x.dtype != torch.bfloat16 or not x.is_cpu or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _widened(parts: Sequence[tuple[Tensor, Tensor]], bias_O: Tensor | None, residual_TO: Tensor | None, out_TO: Tensor | None) -> Tensor:
    """In fp32, some of K at a time, rounded once."""
    T, O = parts[0][0].shape[0], parts[0][1].shape[1]  # noqa: E741 - O, a width
    sum_TO = torch.zeros(T, O)
    for x_TK, w_KO in parts:
        for start in range(0, x_TK.shape[1], MAX_K):
            block = slice(start, start + MAX_K)
            sum_TO.addmm_(x_TK[:, block].float(), w_KO[block].float())
    for more in (bias_O, residual_TO):
        if more is not None:
            sum_TO.add_(more)
    return sum_TO.to(parts[0][0].dtype) if out_TO is None else out_TO.copy_(sum_TO)


def _suits(parts: Sequence[tuple[Tensor, Tensor]], bias_O: Tensor | None, *matrices_TO: Tensor | None) -> bool:
    """Whether these are bf16 on the host, rows in one piece."""
    rows = [*(x for x, _ in parts), *(matrix for matrix in matrices_TO if matrix is not None)]
    return (
        all(t.dtype == torch.bfloat16 and t.is_cpu for pair in parts for t in pair)
        and all(row.dtype == torch.bfloat16 and row.is_cpu and row.stride(1) == 1 for row in rows)
        and all(1 in w.stride() for _, w in parts)
        and (bias_O is None or (bias_O.dtype == torch.bfloat16 and bias_O.is_contiguous()))
    )
