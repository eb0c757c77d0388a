"""silu(gate) * up as one autograd function: silu(gate) is computed again in the backward pass instead of being kept.

The activation of Llama-like feed-forward layers (Shazeer, arXiv 2002.05202). Plain twin: `reference.swiglu`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_TF, up_TF)
        return F.silu(gate_TF).mul_(up_TF)

    @staticmethod
    def backward(ctx: Any, g_TF: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate_TF, up_TF = ctx.saved_tensors
        grad_up = F.silu(gate_TF).mul_(g_TF)
        return torch.ops.aten.silu_backward(g_TF * up_TF, gate_TF), grad_up


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """silu(gate) * up, [..., T, F]."""
    return _Swiglu.apply(gate_TF, up_TF)  # pyright: ignore[reportReturnType]
