"""The same rows through `luthier train` and through each peer, in turn (A B C … A B C …), and the table of all.

    PEER_PYTHON=… LITGPT_PYTHON=… TORCHTUNE_PYTHON=… python benchmarks/peers.py [--work banking77 …] [--peer trl …] [--repeats 2]

Each variable names the Python of a virtual environment of its own, made from benchmarks/peers/requirements-*.txt (PEER_PYTHON: trl). All
get the same rows, model, LoRA settings (r=16 on all linear layers), batch, learning rate, number of updates and number format, and count
tokens of the rows themselves over steady updates. TRL runs the neutral script ../shared/bench/trl_sft.py, the others a script in
benchmarks/peers/ on a file with our token ids. Every variant of a peer is measured, and its best counts. A peer that cannot run is in
the table with its error. A processor's rows replace its own and stand
beside another's. Writes results/peers.json and the table in README.md beside this file.

What it does not show: each side has its own order of rows and start of the adapters here, so losses agree in level and not update by
update; for that see same_order.py.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from table import FASTEST, PRODUCT, environment, machine, median, replace_table, shown
from work import HERE, THREADS, TIMEOUT_S, TRL_SCRIPT, WORKS, make_task, model_of, ours_command, run_json, settings_of, write_rows

KEPT = ("tokens_per_s", "peak_rss_gb", "losses", "held_out_loss", "predicted", "train_seconds", "disk_mb", "versions", "wall_s", "failed")
# peer -> the variable that names its Python, its script, its variants; TRL's variants differ from work to work
PEERS: dict[str, tuple[str, Path, list[list[str]]]] = {
    "trl": ("PEER_PYTHON", TRL_SCRIPT, []),
    "trainer + peft": ("PEER_PYTHON", HERE / "peers" / "trainer_peft.py", [["--group-by-length"], []]),
    "litgpt": ("LITGPT_PYTHON", HERE / "peers" / "litgpt_lora.py", [[]]),
    "torchtune": ("TORCHTUNE_PYTHON", HERE / "peers" / "torchtune_lora.py", [[]]),
}
PEERS_DTYPE = str(FASTEST).removeprefix("torch.")  # bf16 by torch's own products is no contest on a processor that has none
OF_A_ROW = ("git_revision", "bf16 product GFLOP/s", "fp32 product GFLOP/s", "cpu", "cpu_flags", "memory_gib")
ADAPTERS_ONLY = ("trainer + peft", "litgpt", "torchtune")  # their scripts train no whole weights


def variants_of(peer: str, plan: dict[str, Any]) -> list[list[str]]:
    return plan["peer"] if peer == "trl" else PEERS[peer][2]


def peer_command(peer: str, work: str, plan: dict[str, Any], task: Path, variant: list[str]) -> list[str]:
    variable, script, _ = PEERS[peer]
    start = [os.environ.get(variable, variable), str(script)]
    if peer != "trl":
        return [*start, str(task), *variant]
    return [
        *start, "--model", model_of(plan), "--work", plan.get("data", work), "--rows", str(plan["rows"]), "--batch", str(plan["batch"]),
        "--max-length", str(plan["max_length"]), "--dtype", PEERS_DTYPE, "--threads", str(plan["threads"]), *variant,
    ]  # fmt: skip


def run_peer(peer: str, work: str, plan: dict[str, Any], task: Path, variant: list[str]) -> dict[str, Any]:
    variable, script, _ = PEERS[peer]
    if not os.environ.get(variable):
        return {"failed": f"{variable} is not set"}
    if not script.is_file():
        return {"failed": f"there is no {script.name}"}
    return _kept(run_json(peer_command(peer, work, plan, task, variant), limit_s=plan.get("limit_s", TIMEOUT_S)))


def run_ours(settings: dict[str, Any], folder: Path, limit_s: float) -> dict[str, Any]:
    found = run_json(ours_command(settings, folder / "run"), limit_s=limit_s)
    if "failed" not in found:
        found["held_out_loss"] = found["dev_losses"][-1][1]
    return _kept(found)


def _kept(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in KEPT if key in found}


def measure(work: str, plan: dict[str, Any], peers: list[str], repeats: int, *, fastest_only: bool) -> dict[str, Any]:
    """Peer -> its runs by variant, and ours between them."""
    ours: list[dict[str, Any]] = []
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {peer: {} for peer in peers}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(work, plan, folder)
        settings = settings_of(plan, folder, "bfloat16")
        task = make_task(settings_of(plan, folder, PEERS_DTYPE), folder)
        for _ in range(repeats):
            ours.append(run_ours(settings, folder, plan.get("limit_s", TIMEOUT_S)))
            print(work, "| luthier |", _short(ours[-1]), flush=True)
            for peer in peers:
                for variant in variants_of(peer, plan)[: 1 if fastest_only else None]:
                    done = runs[peer].setdefault(" ".join([PRODUCT.split()[0], *variant]), [])
                    if done and "failed" in done[-1]:
                        continue  # it would take as long again to say the same
                    done.append(run_peer(peer, work, plan, task, variant))
                    print(work, "|", peer, *variant, "|", _short(done[-1]), flush=True)
    about = {key: value for key, value in plan.items() if key not in ("peer", "peers", "template")}
    return {peer: {"plan": about, "luthier": ours, "variants": found} for peer, found in runs.items()}


def _short(run: dict[str, Any]) -> str:
    if "failed" in run:
        return f"cannot run here: {run['failed']}"
    speed = "too few updates to time" if run["tokens_per_s"] is None else f"{run['tokens_per_s']:.0f} tokens/s"
    return f"{speed}, {run['peak_rss_gb']:.2f} GB, last loss {run['losses'][-1]:.3f}"


def best_of(variants: dict[str, list[dict[str, Any]]]) -> tuple[str, list[dict[str, Any]]]:
    return max(variants.items(), key=lambda item: median(item[1], "tokens_per_s") or 0.0)


def _row(work: str, peer: str, found: dict[str, Any]) -> str:
    name, best = best_of(found["variants"])
    ours = found["luthier"]
    speeds = median(ours, "tokens_per_s"), median(best, "tokens_per_s")
    if speeds[1] is None:
        failed = next((run["failed"] for run in best if "failed" in run), "not measured")
        return f"| {work} | {peer} | {shown(ours, 'tokens_per_s', '.0f')} | cannot run here: {failed.replace('|', '/')} | | | | | | | |"
    mems, about = (median(ours, "peak_rss_gb"), median(best, "peak_rss_gb")), found["environment"]
    losses = [median(side, "held_out_loss") for side in (ours, best)]
    cells = [
        work, f"{peer} ({name})", shown(ours, "tokens_per_s", ".0f"), shown(best, "tokens_per_s", ".0f"),
        f"{speeds[0] / speeds[1]:.1f}" if speeds[0] else "not measured",
        shown(ours, "peak_rss_gb", ".2f"), shown(best, "peak_rss_gb", ".2f"),
        f"{mems[0] / mems[1]:.2f}" if mems[0] and mems[1] else "not measured",
        " / ".join("not measured" if loss is None else f"{loss:.3f}" for loss in losses),
        machine(about), f"{about['git_revision']}, {next(about[name] for name in OF_A_ROW[1:3] if name in about)}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def write_table(results: dict[str, Any]) -> None:
    heads = ("work", "peer, its best", "Luthier tokens/s", "peer tokens/s", "times", "Luthier peak GB", "peer's peak GB", "share")
    heads = (*heads, "held-out loss, ours / theirs", "processor", "measured at revision, GFLOP/s of products then")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [_row(work, peer, one) for work, peers in results["works"].items() for peer, found in peers.items() for one in found.values()]
    kept = {key: value for key, value in results["environment"].items() if key not in OF_A_ROW}
    conditions = "; ".join(f"{key}: {value}" for key, value in kept.items())
    after = f"Versions of the peers: benchmarks/peers/requirements-*.txt; transformers and peft as below. {conditions}."
    replace_table("peers", [*lines, "", after])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="*", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--peer", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rows", type=int, help="instead of each work's own number")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--fastest-only", action="store_true", help="only the first variant of each peer, its fastest so far")
    options = parser.parse_args()
    path = HERE / "results" / "peers.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"works": {}}
    about = results["environment"] = environment()
    for work in options.work:
        plan = {**WORKS[work], "threads": options.threads, "rows": options.rows or WORKS[work]["rows"]}
        able = [peer for peer in plan.get("peers", PEERS) if not (plan.get("full") and peer in ADAPTERS_ONLY)]
        peers = [peer for peer in options.peer if peer in able]
        found = measure(work, plan, peers, options.repeats, fastest_only=options.fastest_only)
        for peer, one in found.items():
            results["works"].setdefault(work, {}).setdefault(peer, {})[machine(about)] = {**one, "environment": about}
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_table(results)


if __name__ == "__main__":
    main()
