"""The reference run on banking77, through the real command, and its table with conditions.

    python benchmarks/banking77.py [--data DIR] [--run-dir DIR]

DIR holds train.csv and test.csv (PolyAI-LDN/task-specific-datasets, CC BY 4.0). Writes benchmarks/results/banking77.json and the
table in benchmarks/README.md between its markers.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSTRUCTION = "Classify the intent of this banking customer query. Answer with the intent name only."
KEEP = ("python", "cpu", "cores", "memory", "torch", "transformers", "peft", "precision", "git_revision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "banking77")
    parser.add_argument("--run-dir", type=Path, default=HERE.parent / "runs" / "banking77")
    options = parser.parse_args()
    if not (options.data / "train.csv").is_file():
        sys.exit(f"{options.data}/train.csv is not there; name the folder with --data")
    command = [
        str(Path(sys.executable).with_name("luthier")), "run", str(options.data / "train.csv"), "--test", str(options.data / "test.csv"),
        "--instruction", INSTRUCTION, "--input", "text", "--output", "category", "--train-rows", "4000", "--test-rows", "300",
        "--seed", "0", "--run-dir", str(options.run_dir), "--json", "--fresh",
    ]  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    wall_s = time.perf_counter() - started
    result = json.loads(done.stdout.strip().splitlines()[-1])
    environment = json.loads((options.run_dir / "results.json").read_text(encoding="utf-8"))["environment"]
    kept = {k: v for k, v in environment.items() if any(k.startswith(name) for name in KEEP)}
    shown = shlex.join(["luthier", *command[1:-4]]).replace(f"{options.data}/", "")  # where the data lies is nobody else's concern
    row = {"wall_s": round(wall_s, 1), "environment": kept, "command": shown, **result}
    row.pop("run_dir"), row.pop("report")
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "banking77.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    write_table(row)


def write_table(row: dict) -> None:
    """The same numbers for people."""

    def cell(value: float | None, form: str, times: float = 1.0) -> str:
        return "not measured" if value is None else format(value * times, form)

    lines = ["| arm | score (points) | 95 % interval | n | USD per 1,000 | median wait (s) |", "|---|---|---|---|---|---|"]
    for arm in row["arms"]:
        if arm["failed"]:
            lines.append(f"| {arm['name']} | failed: {arm['failed'].splitlines()[0]} | | | | |")
            continue
        lines.append(
            f"| {arm['name']} | {cell(arm['score'], '.1f', 100)} | {cell(arm['low'], '.1f', 100)} to {cell(arm['high'], '.1f', 100)} "
            f"| {arm['n']} | {cell(arm['cost_per_1000'], '.4f')} | {cell(arm['latency_p50_s'], '.2f')} |"
        )
    about = (
        f"Verdict: **{row['headline']}**. {row['sentence']}\n\n"
        f"Training {row['train_seconds']:.0f} s at {row['tokens_per_s']:.0f} tokens/s, learning rate "
        f"{row['lr']:g} (search: {row['search_seconds']:.0f} s); whole command {row['wall_s']:.0f} s. "
        + "; ".join(f"{k}: {v}" for k, v in row["environment"].items())
        + "."
    )
    readme = HERE / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition("<!-- banking77 -->")
    tail = rest.partition("<!-- /banking77 -->")[2]
    readme.write_text(f"{head}<!-- banking77 -->\n" + "\n".join(lines) + f"\n\n{about}\n<!-- /banking77 -->{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
