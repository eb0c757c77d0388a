"""silu(gate) * up as one autograd function: silu(gate) is computed again in the backward pass instead of being kept.

The activation of Llama-like feed-forward layers (Shazeer, arXiv 2002.05202). Plain twin: `reference.swiglu`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.kernels import fused


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_TF, up_TF)
        return fused.swiglu(gate_TF, up_TF)

    @staticmethod
    def backward(ctx: Any, g_TF: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate_TF, up_TF = ctx.saved_tensors
        grad_gate, grad_up, _ = fused.swiglu_backward(g_TF.clone(), gate_TF, up_TF)
        return grad_gate, grad_up


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """silu(gate) * up, [..., T, F]."""
    return _Swiglu.apply(gate_TF, up_TF)  # pyright: ignore[reportReturnType]
