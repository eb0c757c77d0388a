"""`luthier judge`: the pairs a person labels, and the labels given. No model, no torch."""

from __future__ import annotations

import csv
import io
import shlex
from collections import Counter
from pathlib import Path
from typing import cast

from pydantic import TypeAdapter

from luthier.core.errors import InputError, RunError
from luthier.core.seeds import rng
from luthier.core.types import ArmResult, Example, Reject
from luthier.core.untrusted import render_untrusted
from luthier.data.read import iter_records
from luthier.metrics.judge import AnswerPair, Choice, Judged, question_of
from luthier.pipeline.decide import redecide
from luthier.pipeline.judged import judge_json, read_labels, reading_of
from luthier.pipeline.record import RunRecord, read_record
from luthier.store.files import atomic_write_bytes, atomic_write_json
from luthier.store.layout import RunFolder, hold_run
from luthier.verdict.judge import MIN_LABELS, SAMPLE_PAIRS, is_swapped, judge_words, pairs_of

COLUMNS = ("pair", "request", "wanted answer", "answer A", "answer B", "better")
EXPECTED = "A, B or tie in the column better"
_EXAMPLES = TypeAdapter(Example)


def _judged(folder: RunFolder) -> tuple[RunRecord, list[Judged]]:
    """The record, and the pairs that were put before the judge. Raises RunError where there are none."""
    record = read_record(folder.results)
    fix = "repeat the run's command with a judge: luthier run … --judge-endpoint URL --judge-model NAME"
    if record.judge is None:
        raise RunError("this run has no judge", where=str(folder.root), fix=fix)
    if record.judge.failed is not None:
        raise RunError(f"the judge failed: {record.judge.failed}", where=str(folder.root), fix="repeat the run's command")
    return record, [one for one in record.judge.judged if not one.is_same]


def show_judge(run_dir: Path) -> dict[str, object]:
    """`luthier judge RUN`: what it said, and whether it may be believed."""
    folder = RunFolder(run_dir)
    record, _ = _judged(folder)
    reading = reading_of(folder, record)
    assert reading is not None
    return {"lines": list(judge_words(reading)), "json": judge_json(reading)}


def write_sample(run_dir: Path, path: Path, number: int = SAMPLE_PAIRS) -> dict[str, object]:
    """`--sample FILE`: pairs to be labelled by a person, as CSV, drawn by the run's seed; labels given before are in it.

    Nobody is told which answer is whose. Raises InputError for a file that is there, RunError where nothing was judged.
    """
    if path.exists():
        raise InputError("is already there; nothing was written", where=str(path), fix="give another name: --sample NEW.csv")
    folder = RunFolder(run_dir)
    record, judged = _judged(folder)
    pairs, labels = _pairs(folder, record), read_labels(folder)
    order = sorted(one.pair_id for one in judged)
    rng(record.seed, "judge/sample").shuffle(order)
    chosen = [pairs[pair_id] for pair_id in order[:number]]
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(COLUMNS)
    for pair in chosen:
        swapped = is_swapped(pair.id, seed=record.seed)
        a, b = (pair.tuned_answer, pair.prompt_answer) if swapped else (pair.prompt_answer, pair.tuned_answer)
        cells = (pair.question, "\n--- or ---\n".join(pair.wanted), a, b)
        table.writerow([pair.id, *(render_untrusted(cell, "csv") for cell in cells), _letter(labels.get(pair.id), swapped)])
    atomic_write_bytes(path, text.getvalue().encode("utf-8-sig"))  # so that spreadsheets see what it is
    lines = [
        f"wrote {len(chosen)} pairs to {path}",
        f"next: write A, B or tie into the column better of at least {MIN_LABELS} of them, without looking at the report; then:",
        f"  luthier judge {shlex.quote(str(run_dir))} --labels {shlex.quote(str(path))}",
    ]
    if len(chosen) < MIN_LABELS:
        lines[1:1] = [f"these are fewer than the {MIN_LABELS} that are needed: the judge stays uncalibrated"]
    return {"lines": lines, "json": {"path": str(path), "num_pairs": len(chosen)}}


def _letter(label: Choice | None, swapped: bool) -> str:
    if label in (None, "tie"):
        return label or ""
    return "A" if (label == "tuned") == swapped else "B"


def _pairs(folder: RunFolder, record: RunRecord) -> dict[str, AnswerPair]:
    """Every pair of the two arms by its id, from the record and the locked rows. Raises RunError where these do not fit."""
    assert record.judge is not None
    with folder.split_file("test").open(encoding="utf-8") as lines:
        questions = {row.id: (question_of(row), (row.response, *row.references)) for row in map(_EXAMPLES.validate_json, lines)}
    arms: dict[str, ArmResult] = {arm.name: arm for arm in record.arms}
    pairs = {pair.id: pair for pair in pairs_of(arms[record.judge.prompt], arms[record.judge.tuned], questions)}
    missing = [one for one in record.judge.judged if one.pair_id not in pairs]
    if missing:
        problem = f"{len(missing)} judged pairs are not those of the recorded answers"
        raise RunError(problem, where=str(folder.root), fix="repeat the run's command; what was judged before is not paid for again")
    return pairs


def take_labels(run_dir: Path, path: Path) -> dict[str, object]:
    """`--labels FILE`: read what a person wrote into the column `better`; the report is written anew. Labels of earlier files stay.

    Raises InputError with the line for a label that is none, or a pair that was not judged.
    """
    folder = RunFolder(run_dir)
    record, judged = _judged(folder)
    found = _read_file(path, {one.pair_id for one in judged}, seed=record.seed)
    with hold_run(folder):
        atomic_write_json(folder.judge_labels, {**read_labels(folder), **found})
        redecide(run_dir, {})
    shown = show_judge(run_dir)
    counted = ", ".join(f"{count} {choice}" for choice, count in sorted(Counter(found.values()).items()))
    lines = [f"{len(found)} labels taken from {path} ({counted})", *cast("list[str]", shown["lines"]), f"Report: {folder.report}"]
    return {"lines": lines, "json": {**cast("dict[str, object]", shown["json"]), "num_taken": len(found)}}


def _read_file(path: Path, known: set[str], *, seed: int) -> dict[str, Choice]:
    found: dict[str, Choice] = {}
    for row in iter_records(path):
        if isinstance(row, Reject):
            raise InputError(row.reason, where=f"{row.path}:{row.line}", fix=row.fix)
        where = f"{row.path}:{row.line}"
        pair, better = (str(row.fields.get(name) or "").strip() for name in ("pair", "better"))
        if not better:
            continue
        if pair not in known:
            fix = "give the file that --sample wrote for this run"
            raise InputError(f"found the pair {pair[:40]!r}, which this run's judge was not given", where=where, fix=fix)
        word = better.casefold()
        if word not in ("a", "b", "tie"):
            raise InputError(f"found {better[:40]!r}, expected {EXPECTED}", where=where, fix="write A, B or tie, or leave it empty")
        is_a = word == "a"
        label: Choice = "tie" if word == "tie" else "tuned" if is_a == is_swapped(pair, seed=seed) else "prompt"
        if found.setdefault(pair, label) != label:
            raise InputError(f"the pair {pair} is labelled twice, and differently", where=where, fix="leave one of the rows")
    if not found:
        raise InputError("no row has a label", where=str(path), fix=f"write {EXPECTED}")
    return found
