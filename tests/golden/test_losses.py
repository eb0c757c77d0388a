"""The losses of 40 updates, number by number: a change of data order, labels, loss, optimiser or schedule cannot pass unseen.

On the kind of machine they were written on, to the last bit; on another, to rounding. After an intended change:

    OMP_NUM_THREADS=1 python -m tests.golden.test_losses        writes losses.json anew; say why in docs/log.md
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures.tiny_model import make_tiny_model

from luthier.core.types import TokenRow
from luthier.kernels.compiled import library
from luthier.models.backbone import use_layout_attention
from luthier.models.load import open_model
from luthier.models.lora import LoraSettings, add_lora
from luthier.models.surgery import use_fast_kernels
from luthier.train.loop import FitSettings, FitState, StepRecord, fit
from luthier.train.optim import make_optimiser

GOLDEN = Path(__file__).with_name("losses.json")
UPDATES = 40


def _rows(n: int) -> list[TokenRow]:
    """Rows of a rule: after a shared header, the answer repeats the first two of three to eight tokens, then ends."""
    rows: list[TokenRow] = []
    for i in range(n):
        body = tuple(20 + (37 * i + 11 * j) % 300 for j in range(3 + i % 6))
        ids = (10, 11, 12, *body, 13, *body[:2], 2)
        rows.append(TokenRow(example_id=str(i), input_ids=ids, is_label=(False,) * (len(ids) - 3) + (True,) * 3))
    return rows


def _machine() -> str:
    """What the last bit of a sum depends on: processor, its instructions as torch uses them, torch, and who made the small operations."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, {library().words}"


def _train(folder: Path, *, lr: float = 1e-2) -> dict[str, Any]:
    model = add_lora(open_model(folder, dtype=torch.float32), LoraSettings(r=4, alpha=8, dropout=0.0), seed=3)
    use_layout_attention(model.get_base_model())
    settings = FitSettings(
        lr=lr, batch=8, micro_batch=4, total_updates=UPDATES, warmup_updates=2, schedule="linear", max_grad_norm=1.0, eval_every=10,
        patience=0, save_every=0, seed=5,
    )  # fmt: skip
    records: list[StepRecord] = []

    def keep(record: StepRecord, state: FitState) -> None:
        del state
        records.append(record)

    optimiser = make_optimiser(model, weight_decay=0.01, compute_dtype=torch.float32)
    use_fast_kernels(model)
    rows = _rows(96)
    fit(model, optimiser, rows[:80], rows[80:], settings, checkpoints=None, key="", on_step=keep, should_stop=lambda: False)
    dev = [record.dev_loss for record in records if record.dev_loss is not None]
    return {"machine": _machine(), "losses": [record.loss for record in records], "dev_losses": dev}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_tiny_model(tmp_path_factory.mktemp("golden") / "model")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Any]:
    return _train(folder)


def test_losses_of_a_training(trained: dict[str, Any], folder: Path) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(trained["losses"]) == len(golden["losses"]) == UPDATES and len(golden["dev_losses"]) == 4
    for key in ("losses", "dev_losses"):
        assert trained[key] == pytest.approx(golden[key], rel=2e-4)
    assert _train(folder, lr=1.01e-2)["losses"] != pytest.approx(golden["losses"], rel=2e-4)  # the tolerance can fail


def test_losses_are_bit_equal_on_one_kind_of_machine(trained: dict[str, Any], folder: Path) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert trained == _train(folder)
    if golden["machine"] == trained["machine"]:
        assert trained == golden


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        GOLDEN.write_text(json.dumps(_train(make_tiny_model(Path(root) / "model")), indent=1) + "\n", encoding="utf-8")
