"""A linear layer by `wide.product`, forward and backward, for numbers that torch cannot multiply here (`wide.multiplies`): bf16 on
processors without AVX-512, where its own products are a hundred times as slow as fp32.

Plain twin: `reference.linear`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from luthier.kernels import wide


class _Linear(torch.autograd.Function):
    """y = x W^T + b; with g = dL/dy: dx = g W, dW = g^T x, db = sum of g."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_TI, weight_OI)
        return wide.product([(x_TI, weight_OI.T)], bias_O=bias_O)

    @staticmethod
    def backward(ctx: Any, g_TO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TI, weight_OI = ctx.saved_tensors
        g_TO = g_TO.contiguous()
        return (
            wide.product([(g_TO, weight_OI)]) if ctx.needs_input_grad[0] else None,
            wide.product([(g_TO.T, x_TI)]) if ctx.needs_input_grad[1] else None,
            g_TO.float().sum(0).to(g_TO.dtype) if ctx.needs_input_grad[2] else None,
        )


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """[..., in] to [..., out]. All tensors of one dtype."""
    out_TO: Any = _Linear.apply(x.reshape(-1, x.shape[-1]), weight_OI, bias_O)
    return out_TO.view(*x.shape[:-1], weight_OI.shape[0])


def use_own_linears(model: nn.Module) -> int:
    """Give every plain linear layer whose numbers torch cannot multiply here the forward of this file; how many there were."""
    layers: list[Any] = [module for module in model.modules() if type(module) is nn.Linear and not wide.multiplies(module.weight)]
    for layer in layers:
        layer.forward = partial(_forward, layer)
    return len(layers)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)
