"""The real model: what was forecast and what came, time within 25 %, memory within 15 %, disk within 10 %. On an otherwise idle machine."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.models.catalogue import cached_folder, find_entry, is_complete

SMOLLM2 = cached_folder(find_entry("smollm2-135m"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_complete(SMOLLM2), reason="smollm2-135m is not in the cache: luthier models pull smollm2-135m"),
]
WORDS = (
    "order",
    "card",
    "refund",
    "late",
    "address",
    "please",
    "change",
    "my",
    "the",
    "was",
    "not",
    "twice",
    "charged",
    "delivery",
    "today",
)


@pytest.mark.parametrize("longest", [12, 300])
@pytest.mark.parametrize("method", ["lora", "full", "dora", "freeze", "lora --set train.checkpoint_activations=true"])
@pytest.mark.parametrize("rate", [("--lr", "2e-4"), ("--set", "train.lr_candidates=[1e-4,2e-4]", "--set", "train.lr_probe_steps=4")])
def test_forecast_of_the_real_model(tmp_path: Path, longest: int, method: str, rate: tuple[str, ...]) -> None:
    """With a search for a learning rate, too, which the peak of memory must hold."""
    rng = random.Random("0/forecast")

    def text(n: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(n))

    rows = [{"input": f"{i} {text(rng.randint(3, longest))}", "output": text(rng.randint(1, longest))} for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["--rows", "96", "--batch", "8", "--epochs", "1", *rate, "--max-length", "512", "--dev-rows", "32", "--method", *method.split()]
    command = [sys.executable, "-m", "luthier", "train", str(tmp_path / "rows.jsonl"), "--input", "input", "--output", "output", *words]
    done = subprocess.run(
        [*command, "--run-dir", str(tmp_path / "run"), "--json"], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    predicted = found["predicted"]
    assert found["peak_rss_gb"] == pytest.approx(predicted["peak_rss_gb"], rel=0.15)
    assert found["disk_mb"] == pytest.approx(predicted["disk_mb"], rel=0.10)
    assert found["train_seconds"] == pytest.approx(predicted["seconds"], rel=0.25)
    assert (found["search_seconds"] > 0) == (predicted["search_seconds"] > 0) == (rate[0] == "--set")
