"""Optimisers on fp32 master copies of the trainable weights, and the learning-rate schedule.

The model computes with bf16 copies (no casts in the forward pass); the optimiser sees fp32. Small updates would be lost in
bf16: at lr 1e-3 most of them are below one bf16 unit in the last place of the weight. Gradients of micro-batches add up in
fp32 too, so that how an update is cut into pieces costs no precision.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from luthier.core.errors import RunError
from luthier.kernels.adamw import Adam, adamw
from luthier.kernels.device import CPU, numbers
from luthier.kernels.fused import add_to_flat, copy_from_flat
from luthier.train.parallel import ALONE, World

Schedule = Literal["linear", "cosine", "constant", "wsd"]
OptimiserName = Literal["adamw", "adafactor", "muon"]
WSD_DECAY_SHARE = 0.2  # of the updates; 10 to 20 % is what "warmup-stable-decay" runs use (arXiv 2404.06395, section 4)
ALL = "all"
EARLY_WEIGHTS = 2**24  # from so many on gradients are added up and freed while the backward pass goes on


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory: all, unless the weights are sharded (`sharded.py`)."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@dataclass(slots=True)
class Optimiser:
    """Trainable parameters by name, their fp32 masters, gradients and optimiser state: all the state an update changes.

    `masters` are views into `flat_M`, the M trainable weights one after another, and `grad_M` is their gradient: norm, clipping
    and AdamW are then one operation each instead of one for each of several hundred small tensors, and ranks exchange one tensor.
    Where weights are sharded, all of these are this rank's share: masters, gradients and moments of the rows it holds.
    """

    params: dict[str, nn.Parameter]
    masters: dict[str, Tensor]
    flat_M: Tensor
    grad_M: Tensor
    torch_optimisers: tuple[torch.optim.Optimizer, ...]
    owned: dict[str, Tensor]  # what the torch optimisers update, by name: the flat tensor as "all", or master by master
    keeps_masters: bool  # whether the result is the masters (an adapter, stored in fp32), or the weights as they compute

    @contextmanager
    def collecting(self) -> Generator[None]:
        """Around a backward pass: many gradients are not kept until its end. What comes of it is the same to the bit.

        Sharded gradients are FSDP2's until the pass is over; a few million of an adapter are not worth a call for each of its weights.
        """
        if self.flat_M.numel() < EARLY_WEIGHTS or any(isinstance(p, DTensor) for p in self.params.values()):
            yield
            return
        parts = self.grad_M.split([master.numel() for master in self.masters.values()])
        handles = [p.register_post_accumulate_grad_hook(partial(_take, part)) for p, part in zip(self.params.values(), parts, strict=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def accumulate(self) -> None:
        """Add the gradients of one backward pass to `grad_M`, in fp32, and clear them."""
        parts = [None if param.grad is None else local(param.grad) for param in self.params.values()]
        add_to_flat(self.grad_M, parts, [master.numel() for master in self.masters.values()])
        for param in self.params.values():
            param.grad = None

    def drop_gradients(self) -> None:
        """Forget what was accumulated."""
        self.grad_M.zero_()
        for param in self.params.values():
            param.grad = None

    def result(self) -> dict[str, Tensor]:
        """The trained weights as they are handed over, by name: not a copy, the next update changes them."""
        return self.masters if self.keeps_masters else {name: local(p.detach()) for name, p in self.params.items()}

    def copy_result(self) -> dict[str, Tensor]:
        """The same as a copy, on the host, in one block of memory: hundreds of small ones would break up what is free of it."""
        if self.keeps_masters:
            return _views(self.flat_M.detach().to("cpu", copy=True), self.masters)
        result = self.result()
        copied = _views(torch.empty(self.flat_M.numel(), dtype=next(iter(result.values())).dtype), result)
        for name, tensor in result.items():
            copied[name].copy_(tensor)
        return copied

    @torch.no_grad()
    def put_back(self, result: Mapping[str, Tensor]) -> None:
        """Masters and weights as they were when `copy_result` was called."""
        for name, tensor in result.items():
            self.masters[name].copy_(tensor)
            local(self.params[name]).copy_(tensor)

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on exactly, as named tensors."""
        out = {f"master.{name}": tensor for name, tensor in self.masters.items()}
        for optimiser in self.torch_optimisers:
            for name, tensor in self.owned.items():
                for key, value in optimiser.state.get(tensor, {}).items():
                    out[f"optimiser.{name}.{key}"] = torch.as_tensor(value)
        return out

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(state[f"master.{name}"])
                local(self.params[name]).copy_(master)
        for optimiser in self.torch_optimisers:
            mine = {id(p): bool(group.get("fused")) for group in optimiser.param_groups for p in group["params"]}
            for name, tensor in self.owned.items():
                start = f"optimiser.{name}."
                found = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
                if id(tensor) in mine and found:
                    # torch keeps the count of updates on the host, unless it is an operand of a fused update
                    at = {key: tensor.device if mine[id(tensor)] or key != "step" else CPU for key in found}
                    optimiser.state[tensor] = {key: value.to(at[key], copy=True) for key, value in found.items()}

    @property
    def num_weights(self) -> int:
        """Trained weights, over all ranks."""
        return sum(p.numel() for p in self.params.values())

    def forget(self) -> None:
        """Drop gradients and moments, as if no update had been made."""
        self.drop_gradients()
        for optimiser in self.torch_optimisers:
            optimiser.state.clear()


def _take(part_M: Tensor, param: Tensor) -> None:
    if param.grad is not None:
        part_M.add_(param.grad.reshape(-1))
        param.grad = None


def make_optimiser(
    model: nn.Module, *, weight_decay: float, compute_dtype: torch.dtype, name: OptimiserName = "adamw", keeps_masters: bool = True
) -> Optimiser:
    """fp32 masters of all trainable parameters; the parameters themselves are cast to the compute dtype (sharded ones have it).

    `keeps_masters`: see `Optimiser`.
    """
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    held = {name: local(p.detach()) for name, p in params.items()}
    flat_M = torch.cat([p.float().reshape(-1) for p in held.values()])
    masters = _views(flat_M.detach(), held)
    for p in params.values():
        if p.dtype != compute_dtype:
            p.data = p.data.to(compute_dtype)
    owned = {ALL: flat_M.requires_grad_()} if name == "adamw" else masters
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    is_matrix = {name: p.ndim == 2 and id(p) not in embeddings for name, p in params.items()}
    made = _torch_optimisers(name, owned, is_matrix, weight_decay)
    return Optimiser(params, masters, flat_M, torch.zeros_like(flat_M), made, owned, keeps_masters)


def _views(flat_M: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The flat tensor cut into the shapes of `like`, by name; no copies."""
    pieces = flat_M.split([tensor.numel() for tensor in like.values()])
    return {name: piece.view(tensor.shape) for (name, tensor), piece in zip(like.items(), pieces, strict=True)}


def _torch_optimisers(
    name: OptimiserName, owned: Mapping[str, Tensor], is_matrix: Mapping[str, bool], weight_decay: float
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon orthogonalises matrices; embeddings, norms and biases go to AdamW beside it, as its authors do."""
    if name == "adafactor":
        return (torch.optim.Adafactor(list(owned.values()), lr=0.0, weight_decay=weight_decay),)
    if name == "adamw":
        return (_adamw(list(owned.values()), weight_decay),)
    matrices = [tensor for key, tensor in owned.items() if is_matrix[key]]
    others = [tensor for key, tensor in owned.items() if not is_matrix[key]]
    # match_rms_adamw: the same learning rates then serve as for AdamW (arXiv 2502.16982, section 2.2)
    muon = torch.optim.Muon(matrices, lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return (muon, _adamw(others, weight_decay)) if others else (muon,)


def _adamw(tensors: list[Tensor], weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(tensors, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=True)


def apply_update(
    optimiser: Optimiser, loss_sum: Tensor, *, lr: float, max_grad_norm: float, weight: int, world: World = ALONE
) -> tuple[float, float]:
    """Divide the accumulated gradient by `weight`, check, clip, step; returns the loss (fp64, over all ranks already) and the norm.

    The one place of an update that waits for the device: both numbers must be known before anything is applied.
    Raises FloatingPointError when loss, learning rate or norm is not finite; nothing is applied, the weights are as before.
    RunError when the optimiser failed half-way.
    """
    norm_squared = torch.linalg.vector_norm(optimiser.grad_M).double().square()
    if world.shards:
        world.add_up(norm_squared)
    loss, squared = numbers(torch.stack([loss_sum, norm_squared]))
    norm = math.sqrt(squared) / weight
    for what, value in (("loss", loss), ("gradient norm", norm), ("learning rate", lr)):
        if not math.isfinite(value):
            optimiser.drop_gradients()
            raise FloatingPointError(f"{what} is {value}")
    _step(optimiser, lr=lr, scale=(max_grad_norm / norm if norm > max_grad_norm > 0 else 1.0) / weight)
    return loss, norm


@torch.no_grad()
def _step(optimiser: Optimiser, *, lr: float, scale: float) -> None:
    """Masters, moments and weights one step further along `scale` * gradient, which becomes 0."""
    parts = [local(param) for param in optimiser.params.values()]
    if _step_at_once(optimiser, parts, lr=lr, scale=scale):
        return
    grad_M = optimiser.grad_M.mul_(scale)
    by_name = {ALL: grad_M} if ALL in optimiser.owned else _views(grad_M, optimiser.masters)
    for name, tensor in optimiser.owned.items():
        tensor.grad = by_name[name]
    _step_by_torch(optimiser, lr)
    for tensor in optimiser.owned.values():
        tensor.grad = None
    copy_from_flat(parts, optimiser.flat_M)
    grad_M.zero_()


def _step_at_once(optimiser: Optimiser, parts: list[Tensor], *, lr: float, scale: float) -> bool:
    """AdamW in one pass, where there is a compiled function; the first step is torch's, which makes the moments."""
    state = optimiser.torch_optimisers[0].state.get(optimiser.flat_M) if ALL in optimiser.owned else None
    if not state or not optimiser.flat_M.is_cpu:  # a GPU's own count of updates would have to be waited for
        return False
    group, flat_M = optimiser.torch_optimisers[0].param_groups[0], optimiser.flat_M
    update = int(state["step"]) + 1
    adam = Adam(lr=lr, betas=group["betas"], eps=group["eps"], weight_decay=group["weight_decay"], update=update)
    if not adamw(parts, flat_M.detach(), optimiser.grad_M, state["exp_avg"], state["exp_avg_sq"], scale=scale, adam=adam):
        return False
    state["step"].fill_(update)
    group["lr"] = lr
    return True


def _step_by_torch(optimiser: Optimiser, lr: float) -> None:
    """Move the masters. An error behind which the same update may be made again passes; else RunError.

    AdamW moves its one tensor last of all, and at learning rate 0 nothing moves; the others go from matrix to matrix, with memory for each.
    """
    try:
        for torch_optimiser in optimiser.torch_optimisers:
            for group in torch_optimiser.param_groups:
                group["lr"] = lr
            torch_optimiser.step()
    except (MemoryError, RuntimeError) as error:
        if ALL in optimiser.owned or lr == 0:
            raise
        raise RunError(
            f"the optimiser failed ({type(error).__name__}: {error}) when some weights may have moved: this update cannot be made again",
            where="training, update of the weights",
            fix="the same command again, with more memory free: it goes on from the last checkpoint",
        ) from error


def lr_at(update: int, *, peak: float, total_updates: int, warmup_updates: int, schedule: Schedule) -> float:
    """Learning rate of the `update`-th update, counted from 0: linear warm-up, then the schedule down to 0 (or constant)."""
    if update < warmup_updates:
        return peak * (update + 1) / warmup_updates
    done = (update - warmup_updates) / max(1, total_updates - warmup_updates)
    if schedule == "linear":
        return peak * (1 - done)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "wsd":
        return peak * min(1.0, (total_updates - update) / max(1, round(WSD_DECAY_SHARE * total_updates)))
    return peak
