"""The proof on real input: the whole job, through the real command, on tasks whose expected verdicts are written down first.

    python benchmarks/study.py [--data DIR] [--runs DIR] [--only NAME ...] [--budget-factor X] [--fresh] [--table]

DIR holds the folders of ../shared/data. Each task (study_tasks.py) is one `luthier run` with a time budget; one cut off by it or by a
signal goes on at the next call, and a finished one is not run again. Budgets are for two quiet cores: `--budget-factor 4` gives four times
as long on a slower or shared machine; what is measured stays the same. Writes benchmarks/results/study.json after every task, and the table
in benchmarks/README.md. `--table` only decides anew, from what was recorded, and writes the table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import slots
import study_data
import study_table
from study_tasks import A_A, TASKS, Task
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
A_A_DRAWS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "study")
    parser.add_argument("--only", nargs="*", default=None, help="names of tasks, or a-a")
    parser.add_argument("--budget-factor", type=float, default=1.0, help="times the budgets, which are for two quiet cores")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--table", action="store_true", help="only decide anew, without a model, and write the table")
    options = parser.parse_args()
    if options.fresh and options.only is None:
        RESULTS.unlink(missing_ok=True)
    runs = options.runs.resolve()
    for task in () if options.table else TASKS:
        is_wanted = options.only is None or task.name in options.only
        if is_wanted and (options.fresh or not _is_done(_found().get(task.name), task)):
            _keep_run(
                task, run_task(task, options.data.resolve(), runs, fresh=options.fresh, budget_s=task.budget_s * options.budget_factor)
            )
    is_wanted = not options.table and (options.only is None or "a-a" in options.only)
    if is_wanted and _is_done(_found().get("banking77"), _task("banking77")):
        _keep({"a-a": same_against_same(runs / "banking77")})
    for task in TASKS:
        row, run_dir = _found().get(task.name), runs / task.name
        if row is not None and row["flags"] == list(task.flags) and _is_of(row, run_dir):
            _keep({task.name: {**row, **_measured(task, run_dir)}})
    found = _found()
    declared = {task.name: (task.about, task.hypothesis) for task in TASKS}
    study_table.write(found, {**declared, "a-a": (A_A["about"], A_A["hypothesis"])})


def _task(name: str) -> Task:
    return next(task for task in TASKS if task.name == name)


def _is_done(result: Mapping[str, Any] | None, task: Task) -> bool:
    return result is not None and not result.get("stopped") and result["flags"] == list(task.flags)


def _is_of(row: Mapping[str, Any], run_dir: Path) -> bool:
    """Whether a row was measured by the run in this folder: another one has other answers, and its own machine and seconds."""
    return (run_dir / "results.json").exists() and row.get("created") == read_record(run_dir / "results.json").created


def _found() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def _keep(rows: Mapping[str, Any]) -> None:
    """Add to what is there, which another call may have added to since."""
    found = {**_found(), **rows}
    names = [*(task.name for task in TASKS), "a-a"]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({name: found[name] for name in names if name in found}, indent=1) + "\n", encoding="utf-8")


def _keep_run(task: Task, row: Mapping[str, Any]) -> None:
    """Keep what came out; but never a run that was cut off in place of one that was finished, with other flags or on another machine."""
    before = _found().get(task.name)
    if row.get("stopped") and before is not None and not before.get("stopped"):
        print(f"{task.name}: not finished, {row['stopped']}; the finished run before it is kept", file=sys.stderr)
    else:
        _keep({task.name: row})


def run_task(task: Task, data: Path, runs: Path, *, fresh: bool, budget_s: float) -> dict[str, Any]:
    """One `luthier run`, stopped at its budget; it goes on at the next call, and the seconds of all calls are told."""
    rows, run_dir = runs / "data" / task.name, runs / task.name
    rows.mkdir(parents=True, exist_ok=True)
    if task.prepare is not None:
        task.prepare(data, rows)
    spent_file = rows / "spent.json"
    before = {"wall_s": 0.0, "cpu_s": 0.0} if fresh or not spent_file.exists() else json.loads(spent_file.read_text(encoding="utf-8"))
    command = [str(Path(sys.executable).with_name("luthier")), "run", *task.flags, "--run-dir", str(run_dir), "--json"]
    started, cpu_before, load = time.perf_counter(), _cpu_s(), os.getloadavg()
    cwd = HERE.parent if task.prepare is None else rows
    process = subprocess.Popen([*command, *(("--fresh",) if fresh else ())], cwd=cwd, stdout=subprocess.PIPE, text=True)
    try:
        out, _ = process.communicate(timeout=budget_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    spent = {"wall_s": before["wall_s"] + time.perf_counter() - started, "cpu_s": before["cpu_s"] + _cpu_s() - cpu_before}
    spent_file.write_text(json.dumps(spent), encoding="utf-8")
    wall_s = spent["wall_s"]
    declared = {
        "about": task.about,
        "hypothesis": task.hypothesis,
        "flags": list(task.flags),
        "budget_s": round(budget_s),
        **{key: round(value, 1) for key, value in spent.items()},
        "command": shlex.join(["luthier", "run", *task.flags]),
        "environment": {**environment(), **_share_of_machine(load)},
    }
    if process.returncode == 0:
        return {**declared, **_measured(task, run_dir)}
    last = json.loads(out.strip().splitlines()[-1])["error"]["message"] if out.strip() else "stopped"
    measured = _measured(task, run_dir) if (run_dir / "results.json").exists() else {}  # the arms are, the rest is not
    return {**declared, **measured, "stopped": f"after {wall_s:.0f} s: {last}; the same command goes on"}


def _measured(task: Task, run_dir: Path) -> dict[str, Any]:
    return {**_decided(run_dir), **_of_record(task, read_record(run_dir / "results.json"))}


def _cpu_s() -> float:
    """Processor seconds of all runs so far: what they would have taken on one quiet core, whatever else the machine did."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _share_of_machine(load: tuple[float, float, float]) -> dict[str, str]:
    """How many processes wanted a core before a run began and when it ended (means of 5 minutes)."""
    return {"load before and after": f"{load[1]:.1f} and {os.getloadavg()[1]:.1f}"}


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
        "created": record.created,
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
