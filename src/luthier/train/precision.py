"""One dtype policy, no autocast: bf16 where this machine multiplies bf16 faster, by measurement, else fp32."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Literal

import torch

from luthier.core.errors import ConfigError

DtypeName = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True, slots=True)
class Precision:
    """The compute dtype and why it was chosen. Adapter master weights and optimiser moments are always fp32."""

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        """ "bfloat16" or "float32"."""
        return str(self.dtype).removeprefix("torch.")


def _gemm_gflop_per_s(dtype: torch.dtype, *, size: int = 768, repeats: int = 5) -> float:
    """Best of `repeats` square-ish products shaped like a small model's feed-forward layer."""
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size * 2, size, dtype=dtype)
    best = float("inf")
    torch.nn.functional.linear(a, b)
    for _ in range(repeats):
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * size * size * size * 2 / best / 1e9


@functools.cache
def _measured() -> tuple[float, float]:
    return _gemm_gflop_per_s(torch.bfloat16), _gemm_gflop_per_s(torch.float32)


def choose_precision(name: DtypeName, *, settled: object = None) -> Precision:
    """`auto` measures both for a few milliseconds; bf16 must be at least 1.3 times as fast to be worth its rounding.

    `settled` is what an earlier call of the same run chose: measured again under another load it might come out otherwise.
    """
    if name == "auto" and settled in ("bfloat16", "float32"):
        return Precision(getattr(torch, str(settled)), f"{settled}: chosen when this run began")
    if name != "auto":
        dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
        if name not in dtypes:
            raise ConfigError(f"unknown dtype {name!r}", where="model.dtype", fix="use auto, bfloat16 or float32")
        return Precision(dtypes[name], f"{name}: set by you")
    bf16, fp32 = _measured()
    numbers = f"matrix products measured here: bf16 {bf16:.0f}, fp32 {fp32:.0f} GFLOP/s"
    if bf16 >= 1.3 * fp32:
        return Precision(torch.bfloat16, f"bfloat16: {numbers}")
    return Precision(torch.float32, f"float32: {numbers}; bf16 is not 1.3 times as fast")
