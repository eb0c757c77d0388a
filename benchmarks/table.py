"""The tables of README.md, and what every result says about the machine."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from luthier.core.environment import describe_environment
from luthier.kernels import wide

# What this machine multiplies fastest. Where torch has no bf16 products, one takes half a minute.
FASTEST = torch.bfloat16 if wide.multiplies(torch.empty(0, dtype=torch.bfloat16)) else torch.float32
PRODUCT = f"{'bf16' if torch.bfloat16 == FASTEST else 'fp32'} product GFLOP/s"
README = Path(__file__).resolve().parent / "README.md"


def environment() -> dict[str, Any]:
    """Hardware, versions, and the speed of its products now: other work on the machine shows in it."""
    wanted = ("python", "cpu", "cpu_flags", "cores", "memory_gib", "torch", "transformers", "peft", "git_revision")
    found = {k: v for k, v in describe_environment().items() if k in wanted}
    return {**found, PRODUCT: f"{gemm_gflop_per_s(FASTEST):.0f}"}


def kind_of(about: dict[str, Any]) -> str:
    """What multiplies bf16 on the machine an environment tells of: the kind of its processor, or its GPU."""
    if "gpu" in about:
        return str(about["gpu"]).partition(" (")[0]
    flags = about["cpu_flags"].split()
    kinds = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "avx2": "AVX2"}
    return next((kind for flag, kind in kinds.items() if flag in flags), "no bf16 products")


def machine(about: dict[str, Any]) -> str:
    """A name for the machine an environment tells of: processors of several kinds call themselves "AMD EPYC"."""
    return f"{about['cpu']} ({kind_of(about)})"


def gemm_gflop_per_s(dtype: torch.dtype) -> float:
    """Best of ten large products."""
    a, b = torch.ones(2048, 2048, dtype=dtype), torch.ones(2048, 2048, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best / 1e9


def median(runs: list[dict[str, Any]], key: str) -> float | None:
    values = [run[key] for run in runs if run.get(key) is not None]
    return statistics.median(values) if values else None


def shown(runs: list[dict[str, Any]], key: str, form: str) -> str:
    """Median, range and number; or why there is none."""
    values = sorted(run[key] for run in runs if run.get(key) is not None)
    if not values:
        return next((run["failed"] for run in runs if "failed" in run), "not measured")
    return f"{statistics.median(values):{form}} ({values[0]:{form}} to {values[-1]:{form}}, n = {len(values)})"


def replace_table(name: str, lines: list[str]) -> None:
    """Put `lines` between the markers <!-- name --> and <!-- /name -->."""
    whole = README.read_text(encoding="utf-8")
    before, rest = whole.split(f"<!-- {name} -->\n")
    text = "\n".join([f"<!-- {name} -->", *lines, f"<!-- /{name} -->"])
    README.write_text(before + text + rest.split(f"<!-- /{name} -->")[1], encoding="utf-8")
