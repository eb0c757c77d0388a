"""Weights sharded over ranks by FSDP2: the same training as one process, less memory for each rank, one form of checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.e2e.test_parallel import _command, _env, _go, _result
from tests.fixtures.workplace import make_workplace

LARGE = bool(os.environ.get("LUTHIER_LARGE"))
PIECES = ("--set", "train.micro_batch=1")  # ranks then have different numbers of pieces; the last update has fewer rows than ranks
CASES = {
    "lora": (4, PIECES),
    "full": (2, ("--method", "full")),
    **({
        "dora": (4, ("--method", "dora")),
        "freeze": (2, ("--method", "freeze")),
        "pissa": (4, ("--set", "train.lora_init=pissa")),
        "recomputed": (4, ("--method", "full", "--set", "train.checkpoint_activations=true")),
        "searched": (2, ("--set", "train.lr=null", "--set", "train.lr_candidates=[1e-3, 5e-3]", "--set", "train.lr_probe_steps=4")),
    } if LARGE else {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("sharded"))


def _weights(result: dict) -> dict[str, torch.Tensor]:
    return load_file(result["adapter"] or Path(result["model"]) / "model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_shares_ranks_and_one_process_make_the_same_training(place: Path, case: str) -> None:
    ranks, more = CASES[case]
    alone, whole, sharded = (
        _result(_go([*_command(place, f"{case}-{name}", ranks=n, epochs=1), "--lr", "2e-3", *more, *shard]))
        for name, n, shard in (("alone", 1, ()), ("whole", ranks, ()), ("sharded", ranks, ("--shard",)))
    )
    want = _weights(alone)
    for got in (whole, sharded):
        assert got["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert [loss for _, loss in got["dev_losses"]] == pytest.approx([loss for _, loss in alone["dev_losses"]], rel=1e-5)
        found = _weights(got)
        assert {n: (t.shape, t.dtype) for n, t in found.items()} == {n: (t.shape, t.dtype) for n, t in want.items()}
        for name, tensor in want.items():
            torch.testing.assert_close(found[name], tensor, atol=2e-4, rtol=1e-3)
    assert sharded["method"] == alone["method"]  # the number of trained weights is that of all ranks
    if sharded["model"]:
        config = json.loads((Path(sharded["model"]) / "config.json").read_text(encoding="utf-8"))
        assert config["architectures"] == ["LlamaForCausalLM"]


# argv: model folder, method, folder to go on from, folder to write to. Three updates unless there is a checkpoint to go on from.
CHILD = """
import json, sys
from pathlib import Path
import torch
from luthier.cli.main import leave
from luthier.core.types import TokenRow
from luthier.models.backbone import use_layout_attention
from luthier.models.load import open_model
from luthier.models.lora import LoraSettings
from luthier.models.trainable import Method, make_trainable
from luthier.train.loop import _restore, _save
from luthier.train.optim import local, make_optimiser
from luthier.train.parallel import join_world
from luthier.train.sharded import shard_model
from luthier.train.step import Pieces, train_step
path, method, read, write = sys.argv[1:]
lora = LoraSettings(r=3, alpha=6, dropout=0.0) if method == "lora" else None
rows = [TokenRow(example_id=str(i), input_ids=(5, 6, 7 + i, 8 + 2 * i), is_label=(False, False, True, True)) for i in range(9)]
with join_world(shards=True) as world:
    trained = make_trainable(open_model(Path(path), dtype=torch.float32), Method(name=method, lora=lora), seed=0)
    use_layout_attention(trained.causal)
    model = shard_model(trained.model, world) if world.shards else trained.model
    optimiser = make_optimiser(trained.model, weight_decay=0.0, compute_dtype=torch.float32)
    best = {}
    state = _restore(Path(read), "k", optimiser, best, world)
    if state.step == 0:
        for _ in range(3):
            train_step(model, optimiser, rows, pieces=Pieces(micro_batch=2), lr=1e-2, max_grad_norm=1.0, world=world)
        state.step = 3
        best = {name: tensor.clone() for name, tensor in optimiser.masters.items()}
    _save(Path(write), optimiser, best, state, key="k", world=world)
    held = {
        "weights": sum(local(p).numel() for p in trained.model.parameters()),
        "trained": optimiser.flat_M.numel(),
        "gradients": optimiser.grad_M.numel(),
        "moments": sum(t.numel() for t in optimiser.state().values()) - optimiser.flat_M.numel() - 1,
    }
    (Path(write).parent / f"{Path(write).name}-{world.rank}.json").write_text(json.dumps(held), encoding="utf-8")
leave(0)
"""


def _child(place: Path, ranks: int, method: str, read: str, write: str) -> list[dict[str, int]]:
    """Run `CHILD`; what each rank held."""
    script = place / "child.py"
    script.write_text(CHILD, encoding="utf-8")
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    command = [sys.executable, *(start if ranks > 1 else ()), str(script), str(place / "model"), method, str(place / read)]
    done = subprocess.run([*command, str(place / write)], capture_output=True, text=True, env=_env(), timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads((place / f"{write}-{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]


def _holds_its_share(alone: dict[str, int], held: list[dict[str, int]], most: float) -> None:
    for what, whole in alone.items():
        assert sum(rank[what] for rank in held) == whole, what
        assert max(rank[what] for rank in held) <= (most if what != "weights" else 0.26) * whole, what
    assert alone["moments"] == 2 * alone["trained"] and alone["trained"] == alone["gradients"]


def test_a_checkpoint_fits_every_number_of_ranks_bit_for_bit(place: Path) -> None:
    """Written by 4 ranks, read and written again by 2, by 1 (in its own way), and by 4: the same tensors, and none of them pickled.

    Each rank of 4 holds a quarter of weights, gradients and moments.
    """
    chain = [(4, "from-4"), (2, "from-2"), (1, "from-1"), (4, "from-4-again")]
    read, held = "none", {}
    for ranks, write in chain:
        held[ranks] = _child(place, ranks, "full", read, write)
        read = write
    files = [place / write / "step-000003" / "state.safetensors" for _, write in chain]
    first = load_file(files[0])
    assert {"master.model.norm.weight", "best.model.norm.weight", "optimiser.all.exp_avg", "optimiser.all.step"} <= set(first)
    assert all(bool(tensor.any()) for tensor in first.values())
    for file in files[1:]:
        other = load_file(file)
        assert other.keys() == first.keys() and all(torch.equal(other[name], tensor) for name, tensor in first.items()), file
    assert {path.name for path in files[0].parent.iterdir()} == {"state.safetensors", "state.json", "manifest.json"}
    _holds_its_share(held[1][0], held[4], most=0.26)


def test_adapters_and_the_frozen_weights_below_them_are_shared_out(place: Path) -> None:
    """Rank 3 does not divide by 4: of such an adapter three ranks hold a row each."""
    [alone] = _child(place, 1, "lora", "none", "lora-1")
    _holds_its_share(alone, _child(place, 4, "lora", "none", "lora-4"), most=0.34)


def test_the_rows_of_a_rank_are_those_of_fsdp() -> None:
    from luthier.train.parallel import World
    from luthier.train.sharded import rows_of

    for num_rows in range(12):
        whole = torch.arange(3 * num_rows).view(num_rows, 3)
        for size in (1, 2, 3, 4, 8):
            chunks = [*torch.chunk(whole, size), *[whole[:0]] * size][:size]
            assert all(torch.equal(rows_of(whole, World(rank, size, True)), chunks[rank]) for rank in range(size))


def test_shares_are_refused_where_an_update_needs_whole_matrices(place: Path) -> None:
    done = _go([*_command(place, "muon", ranks=1), "--shard", "--set", "train.optimiser=muon"])
    assert done.returncode == 2 and "train.shard" in done.stderr and "--set train.optimiser=adamw" in done.stderr


def test_whole_and_sharded_are_one_training(place: Path) -> None:
    """Sharding is no part of what a run is: the same folder goes on with it or without."""
    first = _result(_go(_command(place, "switched", ranks=1, epochs=1)))
    assert _result(_go([*_command(place, "switched", ranks=2, epochs=1), "--shard"]))["losses"] == first["losses"]


def test_the_file_of_blocks_is_what_safetensors_writes(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from luthier.train.checkpoint import Blocks

    tensors = {"a": torch.randn(5, 3), "b": torch.tensor(7), "c": torch.randn(4).bfloat16(), "empty": torch.zeros(0, 2)}
    header = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    halves = [part for tensor in tensors.values() for part in (tensor.split(2) if tensor.ndim else [tensor])]
    Blocks(header, iter(halves)).write(tmp_path / "ours")
    save_file(tensors, tmp_path / "theirs")
    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], t) and ours[n].dtype == t.dtype for n, t in theirs.items())
