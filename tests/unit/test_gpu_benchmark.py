"""benchmarks/gpu.py can only be run on a GPU; that it would run is seen here, on a tiny shape."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_harness_measures_every_work_and_method(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--dry-run", "--out", str(out)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(out.read_text(encoding="utf-8"))
    assert [(row["work"], row["method"]) for row in report["found"]] == [
        (w, m) for w in ("packed", "short", "prefix") for m in ("lora", "full")
    ]
    for row in report["found"]:
        for runs in row["runs"].values():
            assert all(run["tokens_per_s"] > 0 and 0 < run["share_of_peak"] < 1 and len(run["losses"]) == 3 for run in runs)
    tree, packed = (row for name, row in report["found"][4]["runs"].items())
    assert max(abs(a - b) for a, b in zip(tree[0]["losses"], packed[0]["losses"], strict=True)) < 0.02  # the same rows, in bf16
    assert report["environment"]["device"] == "CPU"
    assert "| tiny | prefix | lora | luthier, prefix in every row |" in done.stdout


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2 and "no NVIDIA GPU" in done.stderr and not (tmp_path / "gpu.json").exists()
