"""Several processes as one training, started by torchrun: NCCL between GPUs, gloo between CPUs and for what is said on the host.

Every rank computes its share of each update's rows. As it stands, it holds the whole model and adds up one flat fp32 gradient with the
others. That is data parallelism as DDP does it, with one exchange for each update instead of one for each layer's bucket: the trainable
weights of an adapter are few, and micro-batches need no exchange of their own. With `shards` weights, gradients and moments are
divided among the ranks (`sharded.py`). Order of rows, divisor, learning rate and clipping are functions of what every rank knows, so
ranks cannot drift apart, and a checkpoint fits any number of ranks.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from luthier.core.errors import ConfigError, RunError
from luthier.kernels.device import CPU

TIMEOUT_S = 1800.0  # of the first exchange, while one rank may still read data; a rank that dies is noticed at once
DIED = "another process of this training ended or can no longer be reached"


@dataclass(frozen=True, slots=True)
class World:
    """Which of how many processes this is. Rank 0 alone writes. `shards`: each holds its share of every weight, not all of them."""

    rank: int = 0
    size: int = 1
    shards: bool = False

    @property
    def writes(self) -> bool:
        """Whether this process writes to the run folder and speaks to the user."""
        return self.rank == 0

    def add_up(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over all ranks."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def share(self, tensor: Tensor) -> None:
        """Replace `tensor` by rank 0's."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)


ALONE = World()


def sum_over_ranks(world: World, value: float) -> float:
    """The sum of a number over all ranks, in fp64."""
    if world.size == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64)
    world.add_up(total)
    return float(total)


def any_rank(world: World, flag: bool) -> bool:
    """Whether the flag is up on any rank: a signal may reach only some of them, and all must stop at the same update."""
    return flag if world.size == 1 else sum_over_ranks(world, float(flag)) > 0


def share_json(world: World, value: Any) -> Any:
    """Rank 0's JSON value, on every rank."""
    if world.size == 1:
        return value
    data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8) if world.rank == 0 else torch.zeros(0, dtype=torch.uint8)
    length = torch.tensor([data.numel()])
    world.share(length)
    if world.rank != 0:
        data = torch.zeros(int(length), dtype=torch.uint8)
    world.share(data)
    return json.loads(bytes(data.tolist()))


def refuse_several(command: str) -> None:
    """Raise ConfigError if torchrun started this process beside others: `command` works alone."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            f"{command} measures with one process, WORLD_SIZE is {os.environ['WORLD_SIZE']}",
            where="environment",
            fix=f"start {command} without torchrun; what `torchrun … -m luthier train` has trained with the same options is taken over",
        )


def open_group(device: torch.device) -> None:
    """Meet the other processes. Tensors on a GPU go by NCCL, those on the host by gloo."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=TIMEOUT_S))


@contextmanager
def join_world(*, shards: bool = False, device: torch.device = CPU) -> Generator[World]:
    """The processes torchrun started (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), or this one alone, which has nothing to shard.

    Raises ConfigError for half of those variables, RunError where the others cannot be reached, then or later in the block.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    found = [name for name in names if os.environ.get(name)]
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    if len(found) < len(names):
        raise ConfigError(
            f"{', '.join(found)} are set, {', '.join(sorted(set(names) - set(found)))} are not",
            where="environment",
            fix="start it with torchrun --nproc-per-node 2 -m luthier train …, or unset WORLD_SIZE",
        )
    try:
        open_group(device)
        try:
            yield World(dist.get_rank(), dist.get_world_size(), shards)
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(name in str(error) for name in ("gloo", "NCCL")):
            raise
        first = str(error).splitlines()[0][:200]
        raise RunError(f"{DIED}: {first}", where="torchrun", fix="repeat the same command: it goes on from the last checkpoint") from error
