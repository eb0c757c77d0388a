"""AdamW on fp32 master copies of the trainable weights, and the learning-rate schedule.

The model computes with bf16 copies (no casts in the forward pass); the optimiser sees fp32. Small updates would be lost in
bf16: at lr 1e-3 most of them are below one bf16 unit in the last place of the weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Schedule = Literal["linear", "cosine", "constant"]


@dataclass(slots=True)
class Optimiser:
    """Trainable parameters by name, their fp32 masters and AdamW's state: all the state an update changes.

    `masters` are views into `flat_M`, the M trainable weights one after another: AdamW, norm and clipping are then one
    operation each instead of one for each of several hundred small tensors.
    """

    params: dict[str, nn.Parameter]
    masters: dict[str, Tensor]
    flat_M: Tensor
    adamw: torch.optim.AdamW

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on exactly, as named tensors."""
        out = {f"master.{name}": tensor for name, tensor in self.masters.items()}
        for key, value in self.adamw.state.get(self.flat_M, {}).items():
            out[f"adamw.{key}"] = torch.as_tensor(value)
        return out

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        for name, master in self.masters.items():
            master.copy_(state[f"master.{name}"])
            self.params[name].data.copy_(master)
        moments = {key: state[f"adamw.{key}"].clone() for key in ("step", "exp_avg", "exp_avg_sq") if f"adamw.{key}" in state}
        if moments:
            self.adamw.state[self.flat_M] = moments


def make_optimiser(model: nn.Module, *, weight_decay: float, compute_dtype: torch.dtype) -> Optimiser:
    """fp32 masters of all trainable parameters; the parameters themselves are cast to the compute dtype."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    flat_M = torch.cat([p.detach().float().reshape(-1) for p in params.values()]).requires_grad_()
    pieces = flat_M.detach().split([p.numel() for p in params.values()])
    masters = {name: piece.view(p.shape) for (name, p), piece in zip(params.items(), pieces, strict=True)}
    for p in params.values():
        p.data = p.data.to(compute_dtype)
    adamw = torch.optim.AdamW([flat_M], lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=True)
    return Optimiser(params, masters, flat_M, adamw)


def apply_update(optimiser: Optimiser, *, lr: float, max_grad_norm: float, weight: int) -> float:
    """Divide gradients by `weight`, check, clip, step; returns the gradient norm. Non-finite: nothing is applied.

    Raises FloatingPointError when the norm is not finite; the weights are as before.
    """
    params = list(optimiser.params.values())
    grad_M = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in params]).float().div_(weight)
    for param in params:
        param.grad = None
    norm = float(torch.linalg.vector_norm(grad_M))
    if not math.isfinite(norm):
        raise FloatingPointError(f"gradient norm is {norm}")
    if norm > max_grad_norm > 0:
        grad_M.mul_(max_grad_norm / norm)
    for group in optimiser.adamw.param_groups:
        group["lr"] = lr
    optimiser.flat_M.grad = grad_M
    optimiser.adamw.step()
    optimiser.flat_M.grad = None
    with torch.no_grad():
        for param, master in zip(params, optimiser.masters.values(), strict=True):
            param.copy_(master)
    return norm


def lr_at(update: int, *, peak: float, total_updates: int, warmup_updates: int, schedule: Schedule) -> float:
    """Learning rate of the `update`-th update, counted from 0: linear warm-up, then the schedule down to 0 (or constant)."""
    if update < warmup_updates:
        return peak * (update + 1) / warmup_updates
    done = (update - warmup_updates) / max(1, total_updates - warmup_updates)
    if schedule == "linear":
        return peak * (1 - done)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak
