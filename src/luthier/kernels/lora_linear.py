"""A frozen linear layer with a low-rank adapter, y = x W^T + b + s (x A^T) B^T, as one autograd function.

Against the same in autograd's own steps: the adapter's product is accumulated into the large one (no [T, out] temporary, no extra
addition), the scale is applied to [T, r] instead of [T, out], and W and b get no gradient and no node. Plain twin: `reference.lora_linear`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _LoraLinear(torch.autograd.Function):
    """All gradients but those of W and b:

    dB = s dy^T (x A^T), dA = s (dy B)^T x, dx = dy W + s (dy B) A.
    """

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
        low_TR = (x_TI @ a_RI.T).mul_(scale)
        ctx.save_for_backward(x_TI, weight_OI, a_RI, b_OR, low_TR)
        ctx.scale = scale
        return F.linear(x_TI, weight_OI, bias_O).addmm_(low_TR, b_OR.T)

    @staticmethod
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TI, weight_OI, a_RI, b_OR, low_TR = ctx.saved_tensors
        grad_low_TR = (grad_TO @ b_OR).mul_(ctx.scale)
        grad_x = (grad_TO @ weight_OI).addmm_(grad_low_TR, a_RI) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_low_TR.T @ x_TI, (low_TR.T @ grad_TO).T, None  # the last one so: twice as fast as dy^T low


def lora_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """`[..., I] -> [..., O]`; all tensors of one dtype."""
    y_TO = _LoraLinear.apply(x.reshape(-1, x.shape[-1]), weight_OI, bias_O, a_RI, b_OR, scale)
    return y_TO.view(*x.shape[:-1], -1)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
