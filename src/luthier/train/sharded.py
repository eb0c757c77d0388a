"""A model too large for one process: weights, gradients and moments divided among the ranks by PyTorch's FSDP2.

    layer 0 .. L-1    one FSDP2 unit each: gathered before it computes, freed after, forward and backward
    the rest          embeddings, final norm, output matrix: the root unit, whole while a loss is computed

Every rank holds rows `chunk(rank)` of each weight (dimension 0), frozen or trained alike: adapters are sharded with the layer they
belong to, so one gather brings both, one reduce-scatter takes their gradient, and no second mechanism is needed for 1 % of the weights.
The root's forward is the whole objective, because the loss reads the output matrix itself and not through a module.

Gradients are added up, not averaged: losses are sums, divided once by the weight of the update. FSDP2's own way to an average,
ReduceOp.AVG, must not be used between CPUs: gloo's reduce-scatter takes it and sums (pytorch issue 162338).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from luthier.core.errors import ModelError
from luthier.kernels.device import CPU
from luthier.models.backbone import body_and_head
from luthier.train.checkpoint import Blocks, Checkpoint, TensorFile
from luthier.train.optim import ALL, Optimiser, local
from luthier.train.parallel import World, share_json

FLAT = f"optimiser.{ALL}."


class ShardedModel(nn.Module):
    """The root FSDP2 unit around a model: within its forward the weights outside the layers are whole."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[nn.Module], Tensor]) -> Tensor:
        """`compute(model)`, a loss."""
        return compute(self.model)


def shard_model(model: nn.Module, world: World, device: torch.device = CPU) -> ShardedModel:
    """Divide the weights of `model` among the ranks, in place. Raises ModelError for a model without a list of layers.

    Each rank computes on its `device`, to which one layer after another is moved, so that the whole model is never there. Every weight
    of a unit must already be in the dtype it computes in. bf16 gradients are added up over the ranks in fp32.
    """
    layers = getattr(body_and_head(model)[0], "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError("has no list of layers, so its weights cannot be sharded", fix="leave --shard out")
    mesh = init_device_mesh(device.type, (world.size,))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    root = ShardedModel(model)
    for module in (*layers, root):
        unit = fully_shard(module, mesh=mesh, mp_policy=policy)
        unit.set_force_sum_reduction_for_comms(enable=True)
        unit.set_gradient_divide_factor(1.0)
    return root


def compute_loss(model: nn.Module, compute: Callable[[nn.Module], Tensor]) -> Tensor:
    """`compute(model)`, by way of the root unit where the weights are sharded."""
    if not isinstance(model, ShardedModel):
        return compute(model)
    total: Tensor = model(compute)
    if not torch.is_grad_enabled() and isinstance(model, FSDPModule):
        model.reshard()  # the root waits for a backward pass to free its weights: none comes
    return total


def rows_of(whole: Tensor, world: World) -> Tensor:
    """This rank's rows of a tensor, as FSDP2 divides it: equal chunks of dimension 0, the last ones smaller or empty."""
    first, end = _bounds(whole.shape[0], world.rank, world.size)
    return whole[first:end]


def _bounds(num_rows: int, rank: int, size: int) -> tuple[int, int]:
    chunk = -(-num_rows // size)
    return min(num_rows, rank * chunk), min(num_rows, (rank + 1) * chunk)


def gather(mine: Tensor, shape: torch.Size, world: World) -> Tensor | None:
    """The whole tensor on rank 0's host, None on the others. All ranks must call it."""
    mine = mine.cpu()  # it goes to a file next, and a GPU has room for its share only
    padded = mine.new_zeros(-(-shape[0] // world.size), *shape[1:])
    padded[: mine.shape[0]] = mine
    parts = [torch.empty_like(padded) for _ in range(world.size)] if world.writes else None
    dist.gather(padded, parts, dst=0)
    return torch.cat(parts)[: shape[0]] if parts is not None else None


def scatter(whole: Tensor | None, shape: torch.Size, dtype: torch.dtype, world: World) -> Tensor:
    """This rank's rows of rank 0's `whole`. All ranks must call it."""
    mine = torch.zeros(-(-shape[0] // world.size), *shape[1:], dtype=dtype)
    parts: list[Tensor] | None = None
    if whole is not None:
        parts = []
        for rank in range(world.size):
            first, end = _bounds(shape[0], rank, world.size)
            parts.append(torch.zeros_like(mine))
            parts[-1][: end - first] = whole[first:end]
    dist.scatter(mine, parts, src=0)
    first, end = _bounds(shape[0], world.rank, world.size)
    return mine[: end - first]


def checkpoint_blocks(optimiser: Optimiser, best: Mapping[str, Tensor], world: World) -> Blocks:
    """What one process would write, gathered on rank 0 a block at a time. The others must go through the blocks too."""
    shapes = {name: p.shape for name, p in optimiser.params.items()}
    sharded = {f"master.{name}": (tensor, shapes[name]) for name, tensor in optimiser.masters.items()}
    sharded |= {f"best.{name}": (tensor, shapes[name]) for name, tensor in best.items()}
    state = {name: tensor for name, tensor in optimiser.state().items() if name.startswith(FLAT)}
    header = {name: (mine.dtype, tuple(shape)) for name, (mine, shape) in sharded.items()}
    header |= {name: (t.dtype, (optimiser.num_weights,) if t.ndim else ()) for name, t in state.items()}

    def blocks() -> Iterator[Tensor]:
        for mine, shape in sharded.values():
            yield from _on_rank_0(gather(mine, shape, world))
        for tensor in state.values():
            if tensor.ndim == 0:
                yield from _on_rank_0(tensor.cpu() if world.writes else None)
                continue
            pieces = tensor.split([master.numel() for master in optimiser.masters.values()])
            for (name, master), piece in zip(optimiser.masters.items(), pieces, strict=True):
                yield from _on_rank_0(gather(piece.view(master.shape), shapes[name], world))

    return Blocks(header, blocks())


def _on_rank_0(whole: Tensor | None) -> Iterator[Tensor]:
    if whole is not None:
        yield whole


def read_rows(found: Checkpoint | None, optimiser: Optimiser, world: World) -> dict[str, Tensor]:
    """This rank's share of the checkpoint that rank 0 found (None on the others), in the form of `Optimiser.state` and `best.NAME`."""
    shapes = {name: p.shape for name, p in optimiser.params.items()}
    with found.open() if found is not None else nullcontext() as file:
        header: dict[str, tuple[list[int], str]] = share_json(world, {} if file is None else file.header())
        out: dict[str, Tensor] = {}
        for name, (shape, dtype_name) in header.items():
            dtype: torch.dtype = getattr(torch, dtype_name)
            if not shape:
                out[name] = torch.zeros((), dtype=dtype) if file is None else file.read(name)
                world.share(out[name])
            elif name.startswith(FLAT):
                out[name] = torch.cat(list(_flat_rows(name, file, shapes, dtype, world)))
            else:
                out[name] = scatter(None if file is None else file.read(name), torch.Size(shape), dtype, world)
    return out


def _flat_rows(name: str, file: TensorFile | None, shapes: Mapping[str, torch.Size], dtype: torch.dtype, world: World) -> Iterator[Tensor]:
    """The moments of all weights are one tensor, weight after weight: this rank's rows of each of them."""
    at = 0
    for shape in shapes.values():
        whole = None if file is None else file.read(name, at, at + shape.numel()).view(shape)
        yield scatter(whole, shape, dtype, world).reshape(-1)
        at += shape.numel()


@torch.no_grad()
def put_together(model: nn.Module, optimiser: Optimiser, world: World, *, masters: bool) -> None:
    """Give rank 0 whole weights to be saved: the fp32 masters of what was trained alone (an adapter), or all in the dtype they compute in.

    All ranks must call it. The model computes nothing afterwards.
    """
    whole: dict[int, nn.Parameter] = {}
    for name, param in model.named_parameters():
        if masters and name not in optimiser.masters:
            continue
        found = gather(optimiser.masters[name] if masters else local(param), param.shape, world)
        if found is not None:
            whole[id(param)] = nn.Parameter(found, requires_grad=False)
    for module in model.modules():  # a matrix that is both embedding and output is replaced in both places
        for name, param in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(param) in whole:
                setattr(module, name, whole[id(param)])
