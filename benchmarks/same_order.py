"""`luthier train` and transformers' Trainer + peft on the same rows, batches, order and starting adapter, in turn: the loss of every step.

    PEER_PYTHON=…/bin/python python benchmarks/same_order.py [--work banking77 alpaca …] [--repeats 2] [--rows N] [--threads 2]

PEER_PYTHON is the Python of the virtual environment of benchmarks/peers/requirements-trl.txt. The order is ours, since the Trainer takes
any and `luthier train` has one. Each work is first compared in fp32 (a few updates), then timed in bf16. A row counts if the losses of
every step agree: to FP32_TOLERANCE in fp32, and to BF16_TOLERANCE in bf16, where the two round at other places from the first step on.
Writes results/same_order.json and the table in README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from table import environment, replace_table, shown
from work import HERE, THREADS, WORKS, make_task, ours_command, run_json, settings_of, write_rows

FP32_TOLERANCE, BF16_TOLERANCE = 1e-4, 3e-2
FP32_UPDATES = 6
WORKS = {work: plan for work, plan in WORKS.items() if not plan.get("full")}  # the Trainer has no fp32 masters of bf16 weights
KEPT = ("tokens_per_s", "peak_rss_gb", "losses", "held_out_loss", "train_seconds", "wall_s", "versions", "failed")


def run_ours(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    found = run_json(ours_command(settings, folder / "run"))
    if "failed" not in found:
        found["held_out_loss"] = found["dev_losses"][-1][1]
    return {key: found[key] for key in KEPT if key in found}


def run_trainer(task: Path) -> dict[str, Any]:
    found = run_json([os.environ["PEER_PYTHON"], str(HERE / "peers" / "trainer_peft.py"), str(task), "--given-order"])
    return {key: found[key] for key in KEPT if key in found}


def largest_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float | None:
    """Of the losses of a step, relative to the peer's; None where one of the two failed or they made different numbers of steps."""
    if "failed" in ours or "failed" in theirs or len(ours["losses"]) != len(theirs["losses"]):
        return None
    return max(abs(a - b) / b for a, b in zip(ours["losses"], theirs["losses"], strict=True))


def compare(work: str, plan: dict[str, Any], dtype: str, repeats: int) -> dict[str, Any]:
    """A B A B …, on the same files."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(work, plan, folder)
        settings = settings_of(plan, folder, dtype)
        task = make_task(settings, folder)
        for _ in range(repeats):
            ours.append(run_ours(settings, folder))
            theirs.append(run_trainer(task))
            print(work, dtype, "| luthier", _short(ours[-1]), "| Trainer", _short(theirs[-1]), flush=True)
    differences = [largest_difference(a, b) for a, b in zip(ours, theirs, strict=True)]
    worst = None if None in differences else max(d for d in differences if d is not None)
    about = {key: plan[key] for key in ("rows", "batch", "threads")}
    return {**about, "luthier": ours, "trainer": theirs, "difference": worst}


def _short(run: dict[str, Any]) -> str:
    speed = "too few updates to time" if run.get("tokens_per_s") is None else f"{run['tokens_per_s']:.0f} tokens/s"
    return run.get("failed") or f"{speed}, {run['peak_rss_gb']:.2f} GB, losses {' '.join(f'{loss:.4f}' for loss in run['losses'][:6])} …"


def why_not(found: dict[str, Any]) -> str:
    """Why a row does not count; empty if it does."""
    for dtype, tolerance in (("fp32", FP32_TOLERANCE), ("bf16", BF16_TOLERANCE)):
        if found[dtype]["difference"] is None:
            failed = [run["failed"] for side in ("luthier", "trainer") for run in found[dtype][side] if "failed" in run]
            return f"{dtype}: {failed[0] if failed else 'different numbers of steps'}"
        if found[dtype]["difference"] > tolerance:
            return f"{dtype} losses differ by {found[dtype]['difference']:.1e}"
    return ""


def write_table(results: dict[str, Any]) -> None:
    heads = (
        "work", "Luthier tokens/s", "Trainer + peft tokens/s", "times", "Luthier peak GB", "Trainer's peak GB",
        "held-out loss, ours / theirs", "largest difference of a step's loss, fp32 / bf16", "counts",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for work, found in results["works"].items():
        timed = found["bf16"]
        ours, theirs = timed["luthier"], timed["trainer"]
        speeds = [[run["tokens_per_s"] for run in side if run.get("tokens_per_s")] for side in (ours, theirs)]
        times = f"{statistics.median(speeds[0]) / statistics.median(speeds[1]):.1f}" if all(speeds) else "not measured"
        cells = [f"{work} ({timed['rows']} rows, batch {timed['batch']})", shown(ours, "tokens_per_s", ".0f")]
        cells += [shown(theirs, "tokens_per_s", ".0f"), times, shown(ours, "peak_rss_gb", ".2f"), shown(theirs, "peak_rss_gb", ".2f")]
        cells += [" / ".join(f"{side[0]['held_out_loss']:.4f}" if "failed" not in side[0] else "none" for side in (ours, theirs))]
        cells += [" / ".join("none" if found[d]["difference"] is None else f"{found[d]['difference']:.1e}" for d in ("fp32", "bf16"))]
        reason = why_not(found)
        lines.append(f"| {' | '.join(cells)} | {'no: ' + reason if reason else 'yes'} |")
    conditions = "; ".join(f"{key}: {value}" for key, value in results["environment"].items())
    after = (
        f"A row counts when the losses of every step agree to {FP32_TOLERANCE:g} in fp32 ({FP32_UPDATES} updates) and "
        f"{BF16_TOLERANCE:g} in bf16 (the timed runs). {conditions}."
    )
    replace_table("same-order", [*lines, "", after])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="*", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rows", type=int, help="of the timed runs, else each work's own number")
    parser.add_argument("--threads", type=int, default=THREADS)
    options = parser.parse_args()
    if not os.environ.get("PEER_PYTHON"):
        sys.exit("set PEER_PYTHON to the peer's Python; see the head of this file")
    path = HERE / "results" / "same_order.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"works": {}}
    results["environment"] = environment()
    for work in options.work:
        plan = {**WORKS[work], "threads": options.threads}
        timed = {**plan, "rows": options.rows or plan["rows"]}
        few = {**plan, "rows": min(timed["rows"], FP32_UPDATES * 4), "batch": 4}
        results["works"][work] = {"fp32": compare(work, few, "float32", 1), "bf16": compare(work, timed, "bfloat16", options.repeats)}
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_table(results)


if __name__ == "__main__":
    main()
