"""The device that computes: chosen, described, measured. What moves tensors there, and what waits for it, is here and nowhere else.

Data and plans are made on the host; `to_device` takes them over, once a micro-batch. `numbers` brings numbers back and waits until they
are there: an update calls it once. Every other operation of an update is only queued, so that the device never waits for Python.
"""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch import Tensor, nn

from luthier.core.errors import ConfigError
from luthier.kernels.compiled import library

DeviceName = Literal["auto", "cpu", "cuda"]
CPU = torch.device("cpu")


def choose_device(name: DeviceName, *, settled: object = None) -> torch.device:
    """`auto` is CUDA where torch can use it. Of several GPUs, the one torchrun gives this process (LOCAL_RANK), else the first.

    `settled` is the kind ("cpu", "cuda") an earlier call of the same run computed on: `auto` stays there.
    Raises ConfigError where there is no such device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"unknown device {name!r}", where="model.device", fix="use auto, cpu or cuda")
    kind = str(settled) if name == "auto" and settled in ("cpu", "cuda") else name
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        why = "this build of torch is for CPUs only" if torch.version.cuda is None else "torch finds no NVIDIA GPU that it can use"
        asked = "found cuda" if name == "cuda" else "this run began on cuda"
        fix = "--device cpu" if name == "cuda" else "go on where the GPU is; or start over: --device cpu --fresh"
        raise ConfigError(f"{asked}, and {why}", where="model.device", fix=fix)
    index, count = int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
    if index >= count:
        problem = f"this is process {index} of this machine (LOCAL_RANK, counted from 0), and it has {count} GPUs"
        raise ConfigError(problem, where="model.device", fix=f"torchrun --nproc-per-node {count} …, or --device cpu")
    return torch.device("cuda", index)


def device_words(device: torch.device) -> str:
    """For people and for the record: "CPU", or which GPU."""
    return "CPU" if device.type == "cpu" else f"{torch.cuda.get_device_name(device)} ({device})"


def rounds_otherwise(device: torch.device) -> list[str]:
    """What of the device belongs into the digest of a result: its kind, and on a CPU whether the small operations are compiled."""
    if device.type != "cpu":
        return [device.type]
    return ["compiled"] if library() else []


def device_of(model: nn.Module) -> torch.device:
    """Where a model computes."""
    return next(model.parameters()).device


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A tensor made on the host, where the model computes. To a GPU it is copied from pinned memory, behind what is already queued."""
    if device.type == "cuda" and host.numel():
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def numbers(values_N: Tensor) -> list[float]:
    """Values as Python numbers. Waits until the device has computed them."""
    return values_N.tolist()


def wait_for(device: torch.device) -> None:
    """Return when all that is queued on the device is done; only for taking times."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_device_memory(device: torch.device) -> None:
    """Start a new peak of the device's memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_device_gib(device: torch.device) -> float | None:
    """Peak memory of tensors on the device in GiB, as torch counts it; None on a CPU, whose memory is the process's own."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def free_cached_memory() -> None:
    """Hand back to the GPU what torch keeps of freed tensors: after memory ran out it lies in pieces of the wrong sizes."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
