"""On an NVIDIA GPU (`make test-gpu`): the numbers of the CPU, the twin's attention, resume, ranks, and no hidden wait.

Where there is none these are skipped; tests/invariant/test_device.py and tests/parity/test_flex_attention.py then check what can be
checked without one. Tolerances are for fp32 without TF32, which torch does not use unless told to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures.tiny_model import make_tiny_model
from tests.fixtures.workplace import make_workplace
from tests.invariant.test_training import SETTINGS, _model, _rows
from tests.parity.test_flex_attention import TREES, _mask
from torch import nn

from luthier.cli.main import main
from luthier.core.types import Sampling
from luthier.generate.decode import decode
from luthier.generate.rows import read_prefix
from luthier.kernels import flex_attention as flex
from luthier.kernels import reference, tree_attention
from luthier.kernels.device import CPU, numbers
from luthier.models.surgery import use_fast_kernels
from luthier.models.voices import Voices
from luthier.tokens.tree import tree_batch
from luthier.train import optim
from luthier.train.loop import FitState, StepRecord, fit
from luthier.train.objectives.sft import sft_loss
from luthier.train.optim import Optimiser, make_optimiser
from luthier.train.precision import choose_precision
from luthier.train.step import Pieces, train_step

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # torch's compiler looks, and it warns
    pytest.mark.filterwarnings("ignore::UserWarning:torch._inductor"),  # advice on TF32, autotuning and the like
]
GPU = torch.device("cuda", 0)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True, warn_only=True)  # scatter_add_ only warns; each row of it has one target
    yield
    torch.use_deterministic_algorithms(mode=False)


def _ready(folder: Path, device: torch.device, *, full: bool = False) -> tuple[nn.Module, Optimiser]:
    model = _model(folder)
    if full:
        model = model.get_base_model()  # type: ignore[operator]
        model.requires_grad_(requires_grad=True)
    model.to(device)
    optimiser = make_optimiser(model, weight_decay=0.01, compute_dtype=torch.float32)
    use_fast_kernels(model)
    return model, optimiser


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize(("num_prefix", "leaves"), TREES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_attention_equals_reference(num_prefix: int, leaves: list[int], dtype: torch.dtype) -> None:
    """The compiled kernel, forward and backward; in bf16 to its rounding."""
    tree, plan, _ = _mask(num_prefix, leaves)
    mask = flex.block_mask(flex.joined(plan).to(GPU), plan.part_counts_B.shape[0])
    gen = torch.Generator().manual_seed(2)
    inputs = [torch.randn(n, num_prefix + sum(leaves), 32, generator=gen).to(GPU, dtype).requires_grad_() for n in (6, 2, 2)]
    fast = flex.tree_flex_attention(torch.cat(inputs).transpose(0, 1), mask, num_query_heads=6, scaling=0.3).transpose(0, 1)
    slow = reference.tree_attention(*inputs, num_prefix=num_prefix, leaf_grid_RL=tree.leaf_grid_RL, scaling=0.3)
    near = {"atol": 1e-4, "rtol": 1e-3} if dtype == torch.float32 else {"atol": 3e-2, "rtol": 3e-2}
    torch.testing.assert_close(fast, slow, **near)
    weight = torch.randn(fast.shape, generator=torch.Generator().manual_seed(1)).to(GPU, dtype)
    got, want = (torch.autograd.grad((out * weight).sum(), inputs) for out in (fast, slow))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=10 * near["atol"], rtol=10 * near["rtol"])
    if num_prefix == 5 and dtype == torch.float32:
        blind = reference.tree_attention(*inputs, num_prefix=4, leaf_grid_RL=tree.leaf_grid_RL, scaling=0.3)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(fast, blind, **near)


# ---------------------------------------------------------------- the same numbers as on the CPU


@pytest.mark.parametrize("kind", ["flex", "short", "segment"])
@pytest.mark.parametrize("full", [False, True])
def test_loss_and_gradients_are_the_cpu_s(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, full: bool) -> None:
    rows = _rows(6)
    found: dict[str, tuple[float, dict[str, torch.Tensor]]] = {}
    for device in (CPU, GPU):
        model, _ = _ready(folder, device, full=full)
        if device == GPU:
            monkeypatch.setattr(tree_attention, "kind_of", lambda tree, device: kind)
        loss = sft_loss(model, tree_batch(rows).on(device)).sum
        loss.backward()
        found[device.type] = float(loss.detach()), {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
    (want_loss, want), (got_loss, got) = found["cpu"], found["cuda"]
    assert got_loss == pytest.approx(want_loss, rel=1e-5)
    assert got.keys() == want.keys() and len(got) > 10
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, atol=5e-4, rtol=2e-3)


def _fit(model: nn.Module, optimiser: Optimiser, checkpoints: Path | None, *, until: int = 12) -> FitState:
    state: list[FitState] = []

    def keep(record: StepRecord, now: FitState) -> None:
        del record
        state.append(now)

    args: dict[str, Any] = {"checkpoints": checkpoints, "key": "k", "on_step": keep, "should_stop": lambda: state[-1].step >= until}
    if until < SETTINGS.total_updates:
        with pytest.raises(KeyboardInterrupt):
            fit(model, optimiser, _rows(40), _rows(8, seed=1), SETTINGS, **args)
        return state[-1]
    return fit(model, optimiser, _rows(40), _rows(8, seed=1), SETTINGS, **{**args, "should_stop": lambda: False})


@pytest.mark.parametrize("full", [False, True])
def test_a_training_has_the_cpu_s_losses(folder: Path, full: bool) -> None:
    losses = {}
    for device in (CPU, GPU):
        losses[device.type] = [step.loss for step in _fit(*_ready(folder, device, full=full), None).history]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)
    assert losses["cuda"] != pytest.approx([loss * 1.002 for loss in losses["cpu"]], rel=1e-3)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
def test_resume_is_bit_equal(folder: Path, tmp_path: Path) -> None:
    """With torch's deterministic algorithms; without them sums made by atomic additions may differ in the last bit."""
    model, optimiser = _ready(folder, GPU)
    whole = _fit(model, optimiser, tmp_path / "whole")
    _fit(*_ready(folder, GPU), tmp_path / "cut", until=5)
    again, other = _ready(folder, GPU)
    resumed = _fit(again, other, tmp_path / "cut")
    assert [s.loss for s in resumed.history] == [s.loss for s in whole.history]
    assert torch.equal(optimiser.flat_M, other.flat_M)


def test_decoding_writes_what_the_cpu_writes(folder: Path) -> None:
    written = []
    drawn = [Sampling()] * 3 + [Sampling(1.0, 7)]
    for device in (CPU, GPU):
        voices = Voices(_model(folder).to(device).eval(), {"tuned": "default"})
        prefix = read_prefix(voices, [1, 2, 3, 4], voice="tuned")
        prompts = [[5, 6, 7], [8], [9, 10], list(range(20, 60))]
        written.append(
            decode(
                voices,
                prefix,
                prompts,
                max_new_tokens=[12, 3, 20, 20],
                eos_ids=frozenset({2}),
                sampling=drawn,
            )
        )
    assert written[0] == written[1] and max(map(len, written[0])) > 3


# ---------------------------------------------------------------- speed is not given away


def test_an_update_waits_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch raises at any synchronising call; only the one in `apply_update` is let through."""
    model, optimiser = _ready(folder, GPU)

    def step() -> None:
        train_step(model, optimiser, _rows(8), pieces=Pieces(micro_batch=3), lr=1e-3, max_grad_norm=1.0)

    step()  # compiles
    waits: list[int] = []

    def allowed(values_N: torch.Tensor) -> list[float]:
        torch.cuda.set_sync_debug_mode("default")
        waits.append(len(values_N))
        found = numbers(values_N)
        torch.cuda.set_sync_debug_mode("error")
        return found

    monkeypatch.setattr(optim, "numbers", allowed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        with pytest.raises(RuntimeError, match="synchroniz"):
            float(optimiser.flat_M.sum())  # the check can fail
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waits == [2]


def test_bf16_is_measured_and_chosen() -> None:
    chosen = choose_precision("auto", device=GPU)
    assert chosen.device == GPU and "GFLOP/s" in chosen.reason


# ---------------------------------------------------------------- the command, and ranks


def test_the_command_trains_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    place = make_workplace(tmp_path / "place")
    words = ["train", str(place / "train.jsonl"), "--instruction", "Name the kind.", "--input", "text", "--output", "category"]
    words += [
        "--model",
        str(place / "model"),
        "--epochs",
        "1",
        "--lr",
        "5e-3",
        "--device",
        "cuda",
        "--run-dir",
        str(tmp_path / "run"),
        "--json",
    ]
    monkeypatch.setattr(sys, "argv", ["luthier", *words])
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    assert left.value.code in (0, None), err
    found = json.loads(out.strip().splitlines()[-1])
    assert torch.cuda.get_device_name(0) in found["device"]
    assert found["peak_device_gb"] == pytest.approx(found["predicted"]["peak_device_gb"], rel=0.15)


ONE_RANK = """
import torch, sys
import torch.distributed as dist
from pathlib import Path
from tests.gpu.test_gpu import GPU, _ready, _rows
from luthier.kernels.device import CPU
from luthier.train.optim import make_optimiser
from luthier.train.parallel import World, open_group
from luthier.train.sharded import checkpoint_blocks, shard_model
from luthier.train.step import Pieces, train_step
open_group(GPU)
for device, dtype in ((CPU, torch.float64), (GPU, torch.float64), (GPU, torch.float32)):
    x = torch.ones(3, dtype=dtype, device=device)
    dist.all_reduce(x)
    dist.broadcast(x, src=0)
    assert x.tolist() == [1, 1, 1]
losses = {}
for shards in (False, True):
    model, optimiser = _ready(Path(sys.argv[1]), CPU if shards else GPU)
    world = World(0, 1, shards)
    if shards:
        model = shard_model(model, world, GPU)
        optimiser = make_optimiser(model, weight_decay=0.01, compute_dtype=torch.float32)
    give = dict(pieces=Pieces(micro_batch=3), lr=1e-2, max_grad_norm=1.0, world=world)
    losses[shards] = [train_step(model, optimiser, _rows(8), **give).loss for _ in range(3)]
    if shards:
        assert all(block.device == CPU for block in checkpoint_blocks(optimiser, {}, world).values)
assert max(abs(a - b) for a, b in zip(*losses.values())) < 1e-4, losses
dist.destroy_process_group()
print("equal")
"""


def test_one_rank_over_nccl_whole_and_sharded(folder: Path) -> None:
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_RANK, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr[-3000:]


def test_memory_is_the_gpu_s(folder: Path) -> None:
    model, optimiser = _ready(folder, GPU)
    torch.cuda.reset_peak_memory_stats(GPU)
    before = torch.cuda.max_memory_allocated(GPU)
    train_step(model, optimiser, _rows(8), pieces=Pieces(), lr=1e-3, max_grad_norm=1.0)
    assert torch.cuda.max_memory_allocated(GPU) > before
