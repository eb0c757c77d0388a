"""AdamW (arXiv 1711.05101) on a flat vector of weights, with everything an update does to them, in one pass over memory.

Operation by operation, scaling the gradient, the step, rounding the weights and clearing the gradient read and write each number
four times; an update of short rows spent a twentieth of its time so, one of all weights much more. Twin: `reference.adamw`.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.kernels.fused import array_of, compiled_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    """The numbers of one step; `update` counts from 1."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    update: int


def adamw(parts: Sequence[Tensor], weight_M: Tensor, grad_M: Tensor, mean_M: Tensor, square_M: Tensor, *, scale: float, adam: Adam) -> bool:
    """One step along `scale` * gradient; `parts` become the weights in their own dtype, the gradient becomes 0.

    `parts` stand for the pieces of the flat fp32 vectors, [M], one after another. Returns False, and has done nothing, where there is
    no compiled function for these tensors.
    """
    flat = (weight_M, grad_M, mean_M, square_M)
    compiled = compiled_for(*parts) if compiled_for(*flat) is not None and weight_M.dtype == torch.float32 else None
    if compiled is None:
        return False
    sizes = [part.numel() for part in parts]
    first, second = adam.betas
    correction, step = 1.0 / math.sqrt(1.0 - second**adam.update), adam.lr / (1.0 - first**adam.update)
    numbers = (scale, 1.0 - first, second, 1.0 - second, correction, adam.eps, step, 1.0 - adam.lr * adam.weight_decay)
    how = (ctypes.c_float * len(numbers))(*numbers)
    pointers = array_of([part.data_ptr() for part in parts])
    compiled["adamw"](
        pointers, array_of(sizes), len(sizes), *(vector.data_ptr() for vector in flat), ctypes.addressof(how), torch.get_num_threads()
    )
    return True
