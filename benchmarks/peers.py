"""The same rows through `luthier train` and through TRL's SFTTrainer, in turn (A B A B …), and the table of both.

    PEER_PYTHON=…/bin/python python benchmarks/peers.py [--work banking77 alpaca …] [--repeats 2]

PEER_PYTHON is the Python of a virtual environment of its own with torch==2.13.0, transformers, trl==1.16.0, peft and datasets; the peer
runs the neutral script ../shared/bench/trl_sft.py. Both get the same rows, model, LoRA settings (r=16 on all linear layers), batch,
learning rate and number of updates; both count tokens of the rows themselves over steady updates. The peer's variants (bf16 weights;
bf16 weights with packing) are all measured, and its best counts. Writes results/peers.json and the table in README.md beside this file.

What it does not show: the order of rows differs (each side's own), so losses agree in level and not update by update; equality of loss and
gradient with transformers and peft is a test (tests/invariant, tests/parity).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from luthier.core.environment import describe_environment
from luthier.models.catalogue import resolve

HERE = Path(__file__).resolve().parent
PEER = HERE.parents[1] / "shared" / "bench" / "trl_sft.py"
TIMEOUT_S = 540
# work -> rows, batch, model, longest row, peer's variants, full fine-tuning
WORKS: dict[str, dict[str, Any]] = {
    "banking77": {"rows": 160, "batch": 8, "max_length": 512, "peer": [["--packing"], []]},
    "alpaca": {"rows": 48, "batch": 8, "max_length": 512, "peer": [["--packing"], []]},
    "gsm8k-8shot": {"rows": 12, "batch": 4, "max_length": 2048, "peer": [[]]},
    "alpaca, gemma-3-270m": {"data": "alpaca", "model": "gemma-3-270m", "rows": 16, "batch": 4, "max_length": 512, "peer": [[]]},
    "banking77, all weights": {"data": "banking77", "rows": 80, "batch": 8, "max_length": 512, "peer": [["--full"]], "full": True},
}
DEV_ROWS = 8


def peer_rows(work: str) -> list[tuple[str, str]]:
    """(prompt, response) in the peer's own order, from its script."""
    spec = importlib.util.spec_from_file_location("trl_sft", PEER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = module.rows_of(work)
    random.Random(0).shuffle(rows)
    return rows


def as_columns(prompt: str, response: str) -> dict[str, str]:
    """The same text, with what rows share (the block of solved examples) as instruction, as a user would write it."""
    shared, question, rest = prompt.rpartition("\n\nQuestion: ")
    if not question:
        return {"instruction": prompt, "input": "", "output": response}
    return {"instruction": shared, "input": f"Question: {rest}", "output": response}


def run_ours(work: str, plan: dict[str, Any], folder: Path) -> dict[str, Any]:
    rows = peer_rows(plan.get("data", work))
    parts = {"train": rows[: plan["rows"]], "dev": rows[plan["rows"] :][:DEV_ROWS], "test": rows[plan["rows"] + DEV_ROWS :][:DEV_ROWS]}
    for name, part in parts.items():
        lines = [json.dumps(as_columns(prompt, response)) + "\n" for prompt, response in part]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    command = [
        str(Path(sys.executable).with_name("luthier")), "train", str(folder / "train.jsonl"), "--dev", str(folder / "dev.jsonl"),
        "--test", str(folder / "test.jsonl"), "--model", str(resolve(plan.get("model", "smollm2-135m"))), "--batch", str(plan["batch"]),
        "--epochs", "1", "--lr", "2e-4", "--max-length", str(plan["max_length"]), "--allow-truncation", "--seed", "0",
        "--threads", str(torch.get_num_threads()),
        "--run-dir", str(folder / "run"), "--fresh", "--json", *(["--method", "full"] if plan.get("full") else []),
    ]  # fmt: skip
    return _run(command)


def run_peer(work: str, plan: dict[str, Any], variant: list[str]) -> dict[str, Any]:
    command = [
        os.environ["PEER_PYTHON"], str(PEER), "--model", str(resolve(plan.get("model", "smollm2-135m"))), "--work", plan.get("data", work),
        "--rows", str(plan["rows"]), "--batch", str(plan["batch"]), "--max-length", str(plan["max_length"]), "--dtype", "bfloat16",
        "--threads", str(torch.get_num_threads()), *variant,
    ]  # fmt: skip
    return _run(command)


def _run(command: list[str]) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished in {TIMEOUT_S} s"}
    wall_s = time.perf_counter() - started
    if done.returncode != 0:
        return {"failed": done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() else f"exit code {done.returncode}"}
    found = json.loads(done.stdout.strip().splitlines()[-1])
    kept = {
        key: found.get(key) for key in ("tokens_per_s", "peak_rss_gb", "losses", "predicted", "train_seconds", "disk_mb") if key in found
    }
    return {**kept, "wall_s": round(wall_s, 1)}


def gemm_gflop_per_s(dtype: torch.dtype) -> float:
    """Best of ten large products."""
    a, b = torch.ones(2048, 2048, dtype=dtype), torch.ones(2048, 2048, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best / 1e9


def measure(work: str, plan: dict[str, Any], repeats: int) -> dict[str, Any]:
    ours: list[dict[str, Any]] = []
    peers: dict[str, list[dict[str, Any]]] = {" ".join(["bf16", *variant]): [] for variant in plan["peer"]}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as name:
            ours.append(run_ours(work, plan, Path(name)))
        print(work, "luthier", _short(ours[-1]), flush=True)
        for variant, runs in zip(plan["peer"], peers.values(), strict=True):
            if runs and "failed" in runs[-1]:
                continue  # it would take as long again to say the same
            runs.append(run_peer(work, plan, variant))
            print(work, "trl", variant, _short(runs[-1]), flush=True)
    return {"plan": {k: v for k, v in plan.items() if k != "peer"}, "luthier": ours, "trl": peers}


def _short(run: dict[str, Any]) -> str:
    return run.get("failed") or f"{run['tokens_per_s']:.0f} tokens/s, {run['peak_rss_gb']:.2f} GB, last loss {run['losses'][-1]:.3f}"


def _median(runs: list[dict[str, Any]], key: str) -> float | None:
    values = [run[key] for run in runs if run.get(key) is not None]
    return statistics.median(values) if values else None


def _range(runs: list[dict[str, Any]], key: str, form: str) -> str:
    values = sorted(run[key] for run in runs if run.get(key) is not None)
    if not values:
        return next((run["failed"] for run in runs if "failed" in run), "not measured")
    return f"{statistics.median(values):{form}} ({values[0]:{form}} to {values[-1]:{form}}, n = {len(values)})"


def write_table(results: dict[str, Any]) -> None:
    lines = ["| work | Luthier tokens/s | TRL's best tokens/s | times | Luthier peak GB | TRL's peak GB | share |", "|---" * 7 + "|"]
    for work, found in results["works"].items():
        best = max(found["trl"].values(), key=lambda runs: _median(runs, "tokens_per_s") or 0.0)
        ours, theirs = _median(found["luthier"], "tokens_per_s"), _median(best, "tokens_per_s")
        mem, their_mem = _median(found["luthier"], "peak_rss_gb"), _median(best, "peak_rss_gb")
        times = f"{ours / theirs:.1f}" if ours and theirs else "not measured"
        share = f"{mem / their_mem:.2f}" if mem and their_mem else "not measured"
        speeds = f"{_range(found['luthier'], 'tokens_per_s', '.0f')} | {_range(best, 'tokens_per_s', '.0f')}"
        mems = f"{_range(found['luthier'], 'peak_rss_gb', '.2f')} | {_range(best, 'peak_rss_gb', '.2f')}"
        lines.append(f"| {work} | {speeds} | {times} | {mems} | {share} |")
    conditions = "; ".join(f"{key}: {value}" for key, value in results["environment"].items())
    text = "\n".join(["<!-- peers -->", *lines, "", f"TRL 1.16.0, transformers as below. {conditions}.", "<!-- /peers -->"])
    readme = HERE / "README.md"
    whole = readme.read_text(encoding="utf-8")
    before, rest = whole.split("<!-- peers -->")
    readme.write_text(before + text + rest.split("<!-- /peers -->")[1], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="*", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--fastest-only", action="store_true", help="only the first variant of the peer, its fastest so far")
    options = parser.parse_args()
    if not os.environ.get("PEER_PYTHON") or not PEER.is_file():
        sys.exit("set PEER_PYTHON to the peer's Python, and have ../shared/bench/trl_sft.py; see the head of this file")
    path = HERE / "results" / "peers.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"works": {}}
    wanted = ("python", "cpu", "cpu_flags", "cores", "memory_gib", "torch", "transformers", "peft", "git_revision")
    results["environment"] = {k: v for k, v in describe_environment().items() if k in wanted}
    results["environment"]["bf16 product GFLOP/s"] = f"{gemm_gflop_per_s(torch.bfloat16):.0f}"
    for work in options.work:
        plan = {**WORKS[work], "peer": WORKS[work]["peer"][:1]} if options.fastest_only else WORKS[work]
        results["works"][work] = measure(work, plan, options.repeats)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_table(results)


if __name__ == "__main__":
    main()
