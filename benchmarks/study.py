"""The proof on real input: the whole job, through the real command, on eight tasks whose expected verdicts are written down first.

    python benchmarks/study.py [--data DIR] [--runs DIR] [--only NAME ...] [--fresh] [--table]

DIR holds the folders of ../shared/data. Each task is one `luthier run` with a time budget; one that is cut off by its budget or by a signal
goes on at the next call, and a finished one is not run again. Writes benchmarks/results/study.json after every task and the table in
benchmarks/README.md. `--table` only decides anew, from what was recorded, and writes the table.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import slots
import study_data
import study_table
from table import environment

from luthier.core.types import ArmResult
from luthier.pipeline.decide import decision_rule, redecide
from luthier.pipeline.record import RunRecord, read_record
from luthier.pipeline.settings import load_settings
from luthier.stats.intervals import wilson
from luthier.verdict.compare import compare_pairs, pair_scores
from luthier.verdict.rules import decide

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "study.json"
LABELS = ("--instruction", "Classify the intent of this banking customer query. Answer with the intent name only.", "--input", "text")
SMALL = ("--set", "arms.shots=[4]", "--set", "arms.latency_items=3")  # two variants of each prompting arm with a choice
A_A_DRAWS = 1000
A_A = {
    "about": "the same against the same: recorded banking77 answers",
    "hypothesis": "a quality verdict in at most 5 % of the draws; equivalent for twice the same answers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run. `hypothesis` was written before any of these runs, and is shown whatever came out."""

    name: str
    about: str
    hypothesis: str
    prepare: study_data.Prepare | None
    flags: tuple[str, ...]
    budget_s: int


TASKS = (
    Task(
        name="demo",
        about="support desk mails to JSON, the data that ships with Luthier (made for it, so no evidence about real data)",
        hypothesis="fine-tune: the form and the closed sets of values are what a small model learns",
        prepare=None,
        flags=("--config", "examples/quickstart.yaml"),
        budget_s=420,
    ),
    Task(
        name="banking77",
        about="customer query to one of 77 intents, 10 rows an intent to learn from",
        hypothesis="fine-tune beats the prompts of a 135M model; a classic classifier may be enough",
        prepare=study_data.banking77,
        flags=(
            "train.csv", "--test", "test.csv", *LABELS, "--output", "category", "--train-rows", "770", "--dev-rows", "154",
            "--test-rows", "231", "--set", "arms.dev_items=40", "--lr", "2e-3", "--epochs", "3", *SMALL,
        ),
        budget_s=660,
    ),
    Task(
        name="e2e",
        about="facts about a restaurant to a sentence, scored against all references of a meaning",
        hypothesis="fine-tune: style, and every fact in it",
        prepare=partial(study_data.e2e, num_dev=30, num_test=120),
        flags=(
            "train.jsonl", "--dev", "dev.jsonl", "--test", "test.jsonl", "--set", "arms.dev_items=30", "--lr", "1e-3", "--epochs", "2",
            *SMALL,
        ),
        budget_s=480,
    ),
    Task(
        name="gsm8k",
        about="grade-school arithmetic in several steps, the final number counts; at least half right asked for",
        hypothesis="neither yet: a larger model. 135M parameters do not do this, prompted or tuned",
        prepare=partial(study_data.gsm8k, num_train=280, num_test=100),
        flags=(
            "train.jsonl", "--test", "test.jsonl", "--dev-rows", "30", "--min-quality", "50", "--set", "arms.dev_items=12", "--lr", "1e-3",
            "--epochs", "1", "--set", "arms.max_new_tokens=192", "--set", "arms.skip=[tuned + retrieval]", "--set", "arms.shots=[2]",
            "--set", "arms.latency_items=2",
        ),
        budget_s=480,
    ),
    Task(
        name="identity",
        about="who the assistant is: 91 rows, cross-fitted over 5 trainings",
        hypothesis="leaning at most, or cannot tell: 91 rows",
        prepare=study_data.identity,
        flags=(
            "identity.json", "--folds", "5", "--dev-rows", "10", "--set", "arms.dev_items=6", "--lr", "1e-3", "--epochs", "3",
            "--set", "arms.max_new_tokens=128", "--set", "arms.skip=[few-shot,tuned + retrieval]", "--set", "arms.shots=[2]",
            "--set", "arms.latency_items=1",
        ),
        budget_s=480,
    ),
    Task(
        name="squad2",
        about="question on a paragraph, half without an answer in it; split by article, clustered by paragraph",
        hypothesis="neither yet or cannot tell: a larger prompted model. Always abstaining is a strong floor",
        prepare=partial(study_data.squad2, num_train=240, num_dev=40, num_test=120),
        flags=(
            "train.jsonl", "--dev", "dev.jsonl", "--test", "test.jsonl", "--group", "group", "--min-quality", "60",
            "--set", "arms.dev_items=20", "--lr", "1e-3", "--epochs", "1", "--set", "arms.shots=[2]", "--set", "arms.latency_items=2",
        ),
        budget_s=480,
    ),
    Task(
        name="shuffled",
        about="banking77 with the training labels dealt out anew: a guard, nothing can be learnt",
        hypothesis="neither yet: every arm near chance, and the tuned one not above 1-nearest-neighbour",
        prepare=study_data.shuffled,
        flags=(
            "train.csv", "--test", "test.csv", *LABELS, "--output", "category", "--train-rows", "770", "--dev-rows", "154",
            "--test-rows", "154", "--set", "arms.dev_items=20", "--lr", "2e-3", "--epochs", "1",
            "--set", "arms.skip=[few-shot,tuned + retrieval]", "--set", "arms.shots=[2]", "--set", "arms.latency_items=1",
        ),
        budget_s=240,
    ),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "study")
    parser.add_argument("--only", nargs="*", default=None, help="names of tasks, or a-a")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--table", action="store_true", help="only decide anew, without a model, and write the table")
    options = parser.parse_args()
    if options.fresh and options.only is None:
        RESULTS.unlink(missing_ok=True)
    runs = options.runs.resolve()
    for task in () if options.table else TASKS:
        is_wanted = options.only is None or task.name in options.only
        if is_wanted and (options.fresh or not _is_done(_found().get(task.name), task)):
            _keep({task.name: run_task(task, options.data.resolve(), runs, fresh=options.fresh)})
    is_wanted = not options.table and (options.only is None or "a-a" in options.only)
    if is_wanted and _is_done(_found().get("banking77"), _task("banking77")):
        _keep({"a-a": same_against_same(runs / "banking77")})
    for task in TASKS:
        row, run_dir = _found().get(task.name), runs / task.name
        if row is not None and (run_dir / "results.json").exists() and _is_done(row, task):
            _keep({task.name: {**row, **_decided(run_dir), **_of_record(task, read_record(run_dir / "results.json"))}})
    found = _found()
    declared = {task.name: (task.about, task.hypothesis) for task in TASKS}
    study_table.write(found, {**declared, "a-a": (A_A["about"], A_A["hypothesis"])})


def _task(name: str) -> Task:
    return next(task for task in TASKS if task.name == name)


def _is_done(result: Mapping[str, Any] | None, task: Task) -> bool:
    return result is not None and not result.get("stopped") and result["flags"] == list(task.flags)


def _found() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def _keep(rows: Mapping[str, Any]) -> None:
    """Add to what is there, which another call may have added to since."""
    found = {**_found(), **rows}
    names = [*(task.name for task in TASKS), "a-a"]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({name: found[name] for name in names if name in found}, indent=1) + "\n", encoding="utf-8")


def run_task(task: Task, data: Path, runs: Path, *, fresh: bool) -> dict[str, Any]:
    """One `luthier run`, stopped at its budget; it goes on at the next call, and the seconds of all calls are told."""
    rows, run_dir = runs / "data" / task.name, runs / task.name
    rows.mkdir(parents=True, exist_ok=True)
    if task.prepare is not None:
        task.prepare(data, rows)
    spent_file = rows / "seconds.json"
    before = 0.0 if fresh or not spent_file.exists() else json.loads(spent_file.read_text(encoding="utf-8"))
    command = [str(Path(sys.executable).with_name("luthier")), "run", *task.flags, "--run-dir", str(run_dir), "--json"]
    started = time.perf_counter()
    cwd = HERE.parent if task.prepare is None else rows
    process = subprocess.Popen([*command, *(("--fresh",) if fresh else ())], cwd=cwd, stdout=subprocess.PIPE, text=True)
    try:
        out, _ = process.communicate(timeout=task.budget_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    wall_s = before + time.perf_counter() - started
    spent_file.write_text(json.dumps(wall_s), encoding="utf-8")
    declared = {
        "about": task.about,
        "hypothesis": task.hypothesis,
        "flags": list(task.flags),
        "budget_s": task.budget_s,
        "wall_s": round(wall_s, 1),
        "command": shlex.join(["luthier", "run", *task.flags]),
        "environment": environment(),
    }
    if process.returncode != 0:
        last = json.loads(out.strip().splitlines()[-1])["error"]["message"] if out.strip() else "stopped"
        return {**declared, "stopped": f"after {wall_s:.0f} s: {last}; the same command goes on"}
    return {**declared, **_decided(run_dir), **_of_record(task, read_record(run_dir / "results.json"))}


def _decided(run_dir: Path) -> dict[str, Any]:
    """What `luthier decide RUN` says, less what depends on where the run lies."""
    result: dict[str, Any] = {**redecide(run_dir, {})["json"]}
    return {key: value for key, value in result.items() if key not in ("run_dir", "report", "next_steps")}


def _of_record(task: Task, record: RunRecord) -> dict[str, Any]:
    """What the table says that the result does not: sizes, and for e2e the slot error rate."""
    data = record.data
    more: dict[str, Any] = {
        "sizes": {"train": data.num_train, "dev": data.num_dev, "test": data.num_test},
        "kind": data.profile.kind,
        "notes": list(record.notes),
        "num_folds": record.num_folds,
    }
    return {**more, "slot_errors": slots.error_rates(record)} if task.name == "e2e" else more


def same_against_same(run_dir: Path) -> dict[str, Any]:
    """A/A on recorded answers: for each item a coin decides which of two arms' scores goes left, so that no true difference is left.

    How often the interval and the margin of the decision table would still call one of them better.
    """
    record = read_record(run_dir / "results.json")
    rule = decision_rule(load_settings(run_dir / "config.yaml", {}), record)
    verdict = decide(record.arms, rule)
    arms = {arm.name: arm for arm in record.arms}
    prompt, tuned = arms[verdict.best_prompt or ""], arms[verdict.best_tuned or ""]
    pairs = pair_scores(tuned, prompt, rule.metric)
    false, generator = 0, random.Random(study_data.SEED)
    for draw in range(A_A_DRAWS):
        coins = [generator.random() < 0.5 for _ in pairs.a]
        left = tuple(b if coin else a for coin, a, b in zip(coins, pairs.a, pairs.b, strict=True))
        right = tuple(a if coin else b for coin, a, b in zip(coins, pairs.a, pairs.b, strict=True))
        found = compare_pairs(replace(pairs, a=left, b=right), "left", "right", rule.metric, seed=draw, num_draws=2000)
        is_apart = found.low95 > 0 or found.high95 < 0
        false += is_apart and abs(found.difference) >= rule.margin
    low, high = wilson(false, A_A_DRAWS)
    twin: ArmResult = replace(tuned, name=f"{tuned.name}, again", family="prompt")
    same = decide([twin, tuned], rule)
    return {
        **A_A,
        "arms": [prompt.name, tuned.name],
        "n": len(pairs.a),
        "draws": A_A_DRAWS,
        "false_verdicts": false / A_A_DRAWS,
        "low": low,
        "high": high,
        "twice_the_same": same.headline,
    }


if __name__ == "__main__":
    main()
