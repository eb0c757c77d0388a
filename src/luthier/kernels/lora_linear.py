"""A frozen linear layer with its low-rank adapter as one autograd function.

    y = x W^T + b + (scale * x A^T) B^T

Taken apart, autograd holds and walks over two more [tokens, out] tensors forward (the adapter's part, scaled) and as many backward.
Here the two are added inside the large matrix product: in fp32, before the sum is rounded. The other way round, a small adapter added to a
bf16 result would round away, always in the same direction. Plain twin: `reference.lora_linear`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.kernels import narrow, wide


class _LoraLinear(torch.autograd.Function):
    """With g = dL/dy, u = scale * x A^T and c = scale * g B:

    dx = g W + c A,   dA = c^T x,   dB = g^T u.   W and b are frozen: they get none.
    """

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
        u_TR = x_TI.new_empty(x_TI.shape[0], a_RI.shape[0])
        narrow.into_rank(x_TI, a_RI.T, scale=scale, out_TR=u_TR)
        y_TO = wide.product([(u_TR, b_OR.T), (x_TI, weight_OI.T)], bias_O=bias_O)
        ctx.save_for_backward(x_TI, u_TR, weight_OI, a_RI, b_OR)
        ctx.scale = scale
        return y_TO

    @staticmethod
    def backward(ctx: Any, g_TO: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TI, u_TR, weight_OI, a_RI, b_OR = ctx.saved_tensors
        c_TR = torch.empty_like(u_TR)
        narrow.into_rank(g_TO, b_OR, scale=ctx.scale, out_TR=c_TR)
        grad_x = wide.product([(c_TR, a_RI), (g_TO, weight_OI)]) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, narrow.outer(c_TR, x_TI), narrow.outer(u_TR, g_TO, transposed=True), None


def lora_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """[..., in] to [..., out]. All tensors of one dtype; no gradient for weight and bias."""
    flat_TI = x.reshape(-1, x.shape[-1])
    out_TO: Any = _LoraLinear.apply(flat_TI, weight_OI, bias_O, a_RI, b_OR, scale)
    return out_TO.view(*x.shape[:-1], weight_OI.shape[0])
