"""The small operations between the large products of a layer, each in one pass over memory where a compiler was found.

Each function has two ways that compute the same to rounding: the compiled one of `fused.cpp`, on a CPU, for bf16 and fp32, and the plain
one in torch below it, which is its twin (tests/parity/test_fused.py), and which a GPU, another number format, or a machine without a
compiler takes. The formulas stand in `reference.rms_norm`, `reference.swiglu` and `reference.cross_entropy`.
Compiled, everything between reading and writing is fp32, and a row's result depends on no other row.

Shapes: T tokens, E hidden, S heads of size D, F feed-forward width; rows X of C scores; N labels of V words.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.compiled import Function, library


def compiled_for(*tensors: Tensor) -> Mapping[str, Function] | None:
    """The compiled functions for these tensors; None where they are not all of one kind that there are functions for."""
    found, dtype = library(), tensors[0].dtype
    if not found:
        return None
    for tensor in tensors:
        if not tensor.is_cpu or tensor.dtype != dtype or not tensor.is_contiguous():
            return None
    return found.bf16 if dtype == torch.bfloat16 else found.f32 if dtype == torch.float32 else None


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """w * r * x with r = 1 / sqrt(mean(x^2) + eps), and r, [..., T, 1] in fp32."""
    compiled = compiled_for(x_TE, weight_E)
    if compiled is None:
        length_T1 = torch.linalg.vector_norm(x_TE, dim=-1, keepdim=True, dtype=torch.float32)
        r_T1 = length_T1.square_().div_(x_TE.shape[-1]).add_(eps).rsqrt_()
        return (x_TE * r_T1).to(x_TE.dtype).mul_(weight_E), r_T1
    out_TE, E = torch.empty_like(x_TE), x_TE.shape[-1]
    r_T1 = x_TE.new_empty((*x_TE.shape[:-1], 1), dtype=torch.float32)
    rows, threads = r_T1.numel(), torch.get_num_threads()
    compiled["rms_norm"](x_TE.data_ptr(), weight_E.data_ptr(), out_TE.data_ptr(), r_T1.data_ptr(), rows, E, eps, threads)
    return out_TE, r_T1


def rms_norm_backward(g_TE: Tensor, x_TE: Tensor, weight_E: Tensor, r_T1: Tensor, residual_TE: Tensor | None = None) -> Tensor:
    """With u = g * w:  dx = r * (u - x * r^2 * mean(u * x)) + residual."""
    compiled = compiled_for(g_TE, x_TE, weight_E) if residual_TE is None else compiled_for(g_TE, x_TE, weight_E, residual_TE)
    if compiled is None:
        u_TE = g_TE.float() * weight_E
        x32_TE = x_TE.float()
        along_T1 = torch.linalg.vecdot(u_TE, x32_TE)[..., None].mul_(r_T1.square()).div_(-x_TE.shape[-1])
        dx_TE = u_TE.addcmul_(x32_TE, along_T1).mul_(r_T1).to(x_TE.dtype)
        return dx_TE if residual_TE is None else dx_TE.add_(residual_TE)
    dx_TE, rows = torch.empty_like(x_TE), r_T1.numel()
    residual = None if residual_TE is None else residual_TE.data_ptr()
    compiled["rms_norm_backward"](
        g_TE.data_ptr(), x_TE.data_ptr(), weight_E.data_ptr(), r_T1.data_ptr(), residual, dx_TE.data_ptr(), rows, x_TE.shape[-1],
        torch.get_num_threads(),
    )  # fmt: skip
    return dx_TE


def rotate(x_TSD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor, *, values: int, back: bool = False) -> Tensor:
    """Turn all heads but the last `values`, which are copied: (a, b) becomes (a cos - b sin, b cos + a sin), or the other way."""
    x_TSD = x_TSD.contiguous()  # a gradient comes as the attention kernel laid it out
    T, S, D = x_TSD.shape
    compiled = compiled_for(x_TSD, cos_T1D, sin_T1D) if D % 2 == 0 else None
    out_TSD = torch.empty_like(x_TSD)
    if compiled is None:
        turned, half = S - values, D // 2
        x, out = x_TSD[:, :turned], out_TSD[:, :turned]
        torch.mul(x, cos_T1D, out=out)
        sign = -1 if back else 1
        out[..., :half].addcmul_(x[..., half:], sin_T1D[..., :half], value=-sign)
        out[..., half:].addcmul_(x[..., :half], sin_T1D[..., half:], value=sign)
        out_TSD[:, turned:] = x_TSD[:, turned:]
        return out_TSD
    compiled["rotate"](
        x_TSD.data_ptr(), cos_T1D.data_ptr(), sin_T1D.data_ptr(), out_TSD.data_ptr(), T, S, S - values, D, -1.0 if back else 1.0,
        torch.get_num_threads(),
    )  # fmt: skip
    return out_TSD


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """silu(gate) * up; they may be the halves of one matrix."""
    are_halves = gate_TF.dim() == 2 and gate_TF.stride() == up_TF.stride() and gate_TF.stride(1) == 1
    compiled = compiled_for(gate_TF[:1], up_TF[:1]) if are_halves else compiled_for(gate_TF, up_TF)
    if compiled is None:
        return F.silu(gate_TF).mul_(up_TF)
    out_TF = gate_TF.new_empty(gate_TF.shape)
    width = gate_TF.shape[-1]
    rows, stride = gate_TF.numel() // width, gate_TF.stride(0) if are_halves else width
    compiled["swiglu"](gate_TF.data_ptr(), up_TF.data_ptr(), out_TF.data_ptr(), rows, width, stride, torch.get_num_threads())
    return out_TF


def swiglu_backward(ds_TF: Tensor, gate_TF: Tensor, up_TF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate and up, and silu(gate) * up once more. `ds_TF` is used up."""
    compiled = compiled_for(ds_TF, gate_TF, up_TF)
    if compiled is None:
        silu_TF = F.silu(gate_TF)
        out_TF = silu_TF * up_TF
        d_up = silu_TF.mul_(ds_TF)
        return torch.ops.aten.silu_backward(ds_TF.mul_(up_TF), gate_TF), d_up, out_TF
    d_gate, d_up = torch.empty_like(gate_TF), torch.empty_like(gate_TF)
    width = gate_TF.shape[-1]
    compiled["swiglu_backward"](
        ds_TF.data_ptr(), gate_TF.data_ptr(), up_TF.data_ptr(), d_gate.data_ptr(), d_up.data_ptr(), gate_TF.numel() // width, width,
        torch.get_num_threads(),
    )  # fmt: skip
    return d_gate, d_up, ds_TF


def softmax_(scores_XC: Tensor, *, scale: float, bias_YC: Tensor | None = None, own: int = 0) -> Tensor:
    """softmax(scale * scores + bias) over the last dimension, in place; row x takes row x mod Y of the bias.

    Without a bias, the last `own` keys (if any) are the queries' own, and row x, of query x mod `own`, sees none behind itself.
    """
    C = scores_XC.shape[-1]
    compiled = compiled_for(scores_XC) if bias_YC is None else compiled_for(scores_XC, bias_YC)
    if compiled is None:
        scores_XC.mul_(scale)
        if bias_YC is not None:
            scores_XC.view(-1, *bias_YC.shape).add_(bias_YC)
        elif own:
            later = torch.ones(own, own, dtype=torch.bool, device=scores_XC.device).triu(1)
            scores_XC.view(-1, own, C)[..., C - own :].masked_fill_(later, float("-inf"))
        return scores_XC.copy_(torch.softmax(scores_XC, dim=-1))
    bias, bias_rows = (None, 1) if bias_YC is None else (bias_YC.data_ptr(), bias_YC.numel() // C)
    compiled["softmax"](scores_XC.data_ptr(), bias, scores_XC.numel() // C, C, bias_rows, own, scale, torch.get_num_threads())
    return scores_XC


def softmax_backward_(dw_XC: Tensor, w_XC: Tensor, *, scale: float) -> Tensor:
    """scale * w * (dw - sum(dw * w)), in place of dw."""
    compiled = compiled_for(dw_XC, w_XC)
    if compiled is None:
        return torch.ops.aten._softmax_backward_data(dw_XC, w_XC, -1, w_XC.dtype).mul_(scale)
    C = dw_XC.shape[-1]
    compiled["softmax_backward"](dw_XC.data_ptr(), w_XC.data_ptr(), dw_XC.numel() // C, C, scale, torch.get_num_threads())
    return dw_XC


def cross_entropy(logits_NV: Tensor, target_N: Tensor, *, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """-log softmax(logits)[target] of each row in fp32, and softmax - onehot in the dtype of the logits, which are used up.

    One buffer goes from logits over exponentials to their gradient: a temporary of this size costs more than the arithmetic.
    """
    compiled = compiled_for(logits_NV)
    N, V = logits_NV.shape
    if compiled is None:
        logits, target_N1 = logits_NV.float(), target_N[:, None]
        top_N1 = logits.amax(dim=-1, keepdim=True)
        target_logit_N1 = logits.gather(1, target_N1) - top_N1
        exp_NV = logits.sub_(top_N1).exp_()
        z_N1 = exp_NV.sum(dim=-1, keepdim=True)
        loss_N = (z_N1.log() - target_logit_N1)[:, 0]
        if not with_gradient:
            return loss_N, None
        return loss_N, exp_NV.div_(z_N1).scatter_add_(1, target_N1, torch.full_like(z_N1, -1.0)).to(logits_NV.dtype)
    loss_N = logits_NV.new_empty(N, dtype=torch.float32)
    target_N = target_N.contiguous()
    compiled["cross_entropy"](
        logits_NV.data_ptr(), target_N.data_ptr(), loss_N.data_ptr(), N, V, int(with_gradient), torch.get_num_threads()
    )
    return loss_N, logits_NV if with_gradient else None


def gather_rows(x_XD: Tensor, index_N: Tensor) -> Tensor:
    """Rows of a matrix by number."""
    gather = library().gather
    if gather is None or x_XD.device.type != "cpu" or not x_XD.is_contiguous():
        return x_XD.index_select(0, index_N)
    out_ND = x_XD.new_empty(index_N.numel(), x_XD.shape[1])
    size = x_XD.shape[1] * x_XD.element_size()
    gather(x_XD.data_ptr(), index_N.data_ptr(), out_ND.data_ptr(), index_N.numel(), size, torch.get_num_threads())
    return out_ND


def add_to_flat(flat_M: Tensor, parts: Sequence[Tensor | None], sizes: Sequence[int]) -> None:
    """Add tensors that stand for pieces of a flat fp32 vector, one after another, to it; None adds nothing to its piece."""
    given = [part for part in parts if part is not None]
    compiled = compiled_for(*given) if given and flat_M.dtype == torch.float32 and flat_M.device.type == "cpu" else None
    if compiled is None:
        at = 0
        for part, size in zip(parts, sizes, strict=True):
            if part is not None:
                flat_M[at : at + size].add_(part.reshape(-1))
            at += size
        return
    pointers = [0 if part is None else part.data_ptr() for part in parts]
    compiled["add_to_flat"](array_of(pointers), array_of(sizes), len(sizes), flat_M.data_ptr(), torch.get_num_threads())


def copy_from_flat(parts: Sequence[Tensor], flat_M: Tensor) -> None:
    """The pieces of a flat fp32 vector, rounded to the parts' dtype."""
    compiled = compiled_for(*parts) if flat_M.dtype == torch.float32 and flat_M.device.type == "cpu" else None
    sizes = [part.numel() for part in parts]
    if compiled is None:
        for part, piece in zip(parts, flat_M.split(sizes), strict=True):
            part.copy_(piece.view(part.shape))
        return
    pointers = array_of([part.data_ptr() for part in parts])
    compiled["copy_from_flat"](pointers, array_of(sizes), len(sizes), flat_M.data_ptr(), torch.get_num_threads())


def array_of(numbers: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    """For a function that takes an array of numbers or addresses."""
    return (ctypes.c_int64 * len(numbers))(*numbers)
