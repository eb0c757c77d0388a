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
    """Trainable parameters by name, their fp32 masters and AdamW's state: all the state an update changes."""

    params: dict[str, nn.Parameter]
    masters: dict[str, Tensor]
    adamw: torch.optim.AdamW

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on exactly, as named tensors."""
        out = {f"master.{name}": tensor.detach() for name, tensor in self.masters.items()}
        for name, tensor in self.masters.items():
            for key, value in self.adamw.state.get(tensor, {}).items():
                out[f"adamw.{key}.{name}"] = torch.as_tensor(value)
        return out

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        for name, master in self.masters.items():
            master.data.copy_(state[f"master.{name}"])
            self.params[name].data.copy_(master.data)
            moments = {
                key: state[f"adamw.{key}.{name}"].clone() for key in ("step", "exp_avg", "exp_avg_sq") if f"adamw.{key}.{name}" in state
            }
            if moments:
                self.adamw.state[master] = moments


def make_optimiser(model: nn.Module, *, weight_decay: float, compute_dtype: torch.dtype) -> Optimiser:
    """fp32 masters of all trainable parameters; the parameters themselves are cast to the compute dtype."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    masters = {name: p.detach().float().clone().requires_grad_() for name, p in params.items()}
    for p in params.values():
        p.data = p.data.to(compute_dtype)
    adamw = torch.optim.AdamW(list(masters.values()), lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, foreach=True)
    return Optimiser(params, masters, adamw)


def apply_update(optimiser: Optimiser, *, lr: float, max_grad_norm: float, weight: int) -> float:
    """Divide gradients by `weight`, check, clip, step; returns the gradient norm. Non-finite: nothing is applied.

    Raises FloatingPointError when the norm is not finite; the weights are as before.
    """
    grads: list[Tensor] = []
    for name, param in optimiser.params.items():
        grad = torch.zeros_like(optimiser.masters[name]) if param.grad is None else param.grad.float()
        grads.append(grad.div_(weight))
        param.grad = None
    norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads])))
    if not math.isfinite(norm):
        raise FloatingPointError(f"gradient norm is {norm}")
    if norm > max_grad_norm > 0:
        for grad in grads:
            grad.mul_(max_grad_norm / norm)
    for master, grad in zip(optimiser.masters.values(), grads, strict=True):
        master.grad = grad
    for group in optimiser.adamw.param_groups:
        group["lr"] = lr
    optimiser.adamw.step()
    for name, param in optimiser.params.items():
        param.data.copy_(optimiser.masters[name].data)
        optimiser.masters[name].grad = None
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
