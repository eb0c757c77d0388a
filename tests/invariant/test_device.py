"""Nothing of a training or of decoding is left on the host, and nothing waits for the device but what must.

tests/fixtures/fake_device.py says how this is seen without a GPU, and what it cannot see. tests/gpu checks the numbers on one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.errors import ConfigError
from luthier.kernels import device
from luthier.train.precision import choose_precision

ROOT = Path(__file__).resolve().parents[2]
TRAININGS = [
    "lora", "lora, flex", "lora, short", "lora, segment", "full", "full, short", "full, segment", "freeze", "dora", "dropout",
    "neftune", "muon",
]  # fmt: skip
PIECES = 9  # of two updates, of 8 and 4 rows in pieces of 3, and of two looks at 6 rows
READ = 2 * 2 + 2  # loss and norm of each update, the loss of each look


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "tests.fixtures.fake_device"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("case", TRAININGS)
def test_an_update_stays_on_the_device(found: dict[str, Any], case: str) -> None:
    assert "error" not in found[case], found[case]
    counts = found[case]["counts"]
    assert counts["numbers"] == READ
    assert counts["copies to the host"] == 1  # the best weights so far, of the one look that was better than none


def test_a_micro_batch_is_copied_once(found: dict[str, Any]) -> None:
    """Ids, positions and labels in one piece; FlexAttention's mask in another."""
    assert found["lora, segment"]["counts"]["copies to the device"] == PIECES
    assert found["lora, flex"]["counts"]["copies to the device"] == found["lora"]["counts"]["copies to the device"] == 2 * PIECES


def test_the_fast_kernels_are_used(found: dict[str, Any]) -> None:
    assert found["lora"]["replaced"] == {"lora_linear": 14, "rms_norm": 5, "swiglu": 2, "decoder_layer": 2}


def test_a_checkpoint_goes_over_the_host_and_comes_back(found: dict[str, Any]) -> None:
    assert "error" not in found["resume"], found["resume"]


def test_decoding_reads_one_row_of_tokens_a_step(found: dict[str, Any]) -> None:
    """Three rows of 3, 1 and 4 tokens: 3 + 2 + 2 + 1 numbers, as rows leave the batch; and two rows of two voices, one each."""
    assert "error" not in found["decode"], found["decode"]
    assert found["decode"]["counts"]["likeliest"] == 8 + 2


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("a host tensor in the batch", "mixes the device with a host tensor"),
        ("a number read too early", "waits for it"),
        ("a constant without a device", "mixes the device with a host tensor"),
        ("a copy of its own", "not to_device's"),
    ],
)
def test_a_mistake_would_be_seen(found: dict[str, Any], mistake: str, message: str) -> None:
    assert message in found[f"planted: {mistake}"].get("error", "nothing was noticed")


# ---------------------------------------------------------------- the choice


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda which: f"GPU {which.index}")


@pytest.mark.usefixtures("two_gpus")
def test_auto_is_the_gpu_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.choose_device("auto") == torch.device("cuda", 0)
    assert device.choose_device("cpu") == device.CPU
    assert device.choose_device("auto", settled="cpu") == device.CPU  # a run that began on a CPU stays there
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device.device_words(device.choose_device("auto")) == "GPU 1 (cuda:1)"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="has 2 GPUs") as caught:
        device.choose_device("cuda")
    assert "--nproc-per-node 2" in caught.value.fix


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu() -> None:
    assert device.choose_device("auto") == device.CPU and device.device_words(device.CPU) == "CPU"
    with pytest.raises(ConfigError, match="found cuda") as caught:
        device.choose_device("cuda")
    assert caught.value.fix == "--device cpu"
    with pytest.raises(ConfigError, match="began on cuda"):
        device.choose_device("auto", settled="cuda")
    assert device.peak_device_gib(device.CPU) is None


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_only_emulates_bf16_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    chosen = choose_precision("auto", device=torch.device("cuda", 0))
    assert chosen.dtype == torch.float32 and "does not multiply bf16" in chosen.reason and chosen.device.type == "cuda"
