"""One dtype policy, no autocast: bf16 where the device multiplies bf16 faster, by measurement, else fp32."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace
from typing import Literal

import torch

from luthier.core.errors import ConfigError
from luthier.kernels import wide
from luthier.kernels.compiled import library
from luthier.kernels.device import CPU, wait_for

DtypeName = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True, slots=True)
class Precision:
    """The compute dtype, why it was chosen, and the device. Adapter master weights and optimiser moments are always fp32."""

    dtype: torch.dtype
    reason: str
    device: torch.device = CPU

    @property
    def name(self) -> str:
        """ "bfloat16" or "float32"."""
        return str(self.dtype).removeprefix("torch.")


def _gemm_gflop_per_s(dtype: torch.dtype, device: torch.device, *, repeats: int = 5) -> float:
    """Best of `repeats` square-ish products shaped like a feed-forward layer: a small model's, on a GPU that of a model of 8 billion."""
    size = 768 if device.type == "cpu" else 4096
    a, b = torch.ones(size, size, dtype=dtype, device=device), torch.ones(size * 2, size, dtype=dtype, device=device)
    best = float("inf")
    wide.product([(a, b.T)])
    for _ in range(repeats):
        wait_for(device)
        start = time.perf_counter()
        wide.product([(a, b.T)])
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size * size * size * 2 / best / 1e9


@functools.cache
def _measured(device: torch.device) -> tuple[float, float]:
    return _gemm_gflop_per_s(torch.bfloat16, device), _gemm_gflop_per_s(torch.float32, device)


def choose_precision(name: DtypeName, *, device: torch.device = CPU, settled: object = None) -> Precision:
    """`auto` measures both for a few milliseconds: bf16 must be at least 1.3 times as fast to be worth its rounding. On a processor whose
    bf16 products are those of `kernels/tiles.h`, 0.6 times is enough: it takes half of the memory, and answers are written twice as fast.

    `settled` is what an earlier call of the same run chose: measured again under another load it might come out otherwise.
    """
    chosen = _choose(name, device, settled)
    return replace(chosen, reason=f"{chosen.reason}; small operations: {library().words}") if device.type == "cpu" else chosen


def _choose(name: DtypeName, device: torch.device, settled: object) -> Precision:
    if name == "auto" and settled in ("bfloat16", "float32"):
        return Precision(getattr(torch, str(settled)), f"{settled}: chosen when this run began", device)
    if name != "auto":
        dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
        if name not in dtypes:
            raise ConfigError(f"unknown dtype {name!r}", where="model.dtype", fix="use auto, bfloat16 or float32")
        return Precision(dtypes[name], f"{name}: set by you", device)
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision(torch.float32, "float32: this GPU does not multiply bf16", device)
    bf16, fp32 = _measured(device)
    numbers = f"matrix products measured here: bf16 {bf16:.0f}, fp32 {fp32:.0f} GFLOP/s"
    enough = 0.6 if device.type == "cpu" and library().tiles else 1.3
    if bf16 >= enough * fp32:
        return Precision(torch.bfloat16, f"bfloat16: {numbers}", device)
    return Precision(torch.float32, f"float32: {numbers}; bf16 is not {enough} times as fast", device)
