"""`luthier feedback`: marked answers become rows of the next training set.

Training rows are Alpaca's (instruction, input, output, with system and history where there were any); preference rows add chosen and
rejected; KTO rows are conversations with a true or false label. Where a run's examples had columns of their own names, rows carry these
too, so that they can be given beside the old file under the same flags. `meta` says where each row came from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from luthier.core.chat import AnswerMark, ChatAnswer, ChatTranscript, ChatTurn
from luthier.core.errors import InputError, RunError
from luthier.core.types import Message
from luthier.pipeline.settings import load_settings
from luthier.pipeline.talk import checked_mark
from luthier.pipeline.transcripts import held, transcripts_of
from luthier.store.files import atomic_write_text
from luthier.store.layout import RunFolder
from luthier.store.transcript import add_mark, read_transcript

RowKind = Literal["training", "preference", "kto"]
KINDS: tuple[RowKind, ...] = ("training", "preference", "kto")
WRITER = "luthier feedback"
EXCERPT_CHARS = 60

Row = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One answer, where it stands."""

    transcript: ChatTranscript
    turn: ChatTurn
    answer: ChatAnswer


def read_answers(target: str) -> list[Said]:
    """Every answer of the conversations with a run or model, or of one transcript file; oldest first. Raises RunError."""
    path = Path(target)
    paths = [path] if path.is_file() else transcripts_of(target)
    if not paths:
        raise RunError("nobody has talked to it yet", where=target, fix=f"luthier chat {target}")
    transcripts = [read_transcript(path) for path in paths]
    return [Said(transcript=t, turn=turn, answer=answer) for t in transcripts for turn in t.turns for answer in turn.answers]


def list_answers(target: str) -> dict[str, object]:
    """What was said and how it was marked."""
    said = read_answers(target)
    lines = [
        f"{one.answer.id}  {one.turn.time[:16].replace('T', ' ')}  {one.answer.mark or '-':6}  "
        f"{_excerpt(one.turn.prompt)} → {_excerpt(one.answer.wanted)}"
        for one in said
    ]
    num_marked = sum(one.answer.mark is not None for one in said)
    example = said[-1].answer.id if said else "ID"
    lines.append(f"{len(said)} answers, {num_marked} marked. To mark one: luthier feedback {target} --mark {example} good")
    records = [
        {
            "id": one.answer.id,
            "time": one.turn.time,
            "transcript": one.transcript.path,
            "voice": one.answer.voice,
            "mark": one.answer.mark,
            "prompt": one.turn.prompt,
            "answer": one.answer.text,
            "edited": one.answer.edited,
        }
        for one in said
    ]
    return {"lines": lines, "json": {"answers": records, "num_marked": num_marked}}


def mark_answer(target: str, answer_id: str, mark: AnswerMark | None, edited: str | None = None) -> dict[str, object]:
    """Mark an answer after the fact; None takes the mark away. Raises LuthierError."""
    said = read_answers(target)
    found = next((one for one in said if one.answer.id == answer_id), None)
    if found is None:
        raise RunError(f"no answer has the id {answer_id!r}", where=target, fix=f"luthier feedback {target} --list")
    if mark is not None:
        mark, edited = checked_mark(found.answer, mark, edited)
    with held(Path(found.transcript.path)):
        add_mark(found.transcript, answer_id, mark, edited)
    state = f"marked {mark}" if mark else "no longer marked"
    return {"lines": [f"{answer_id} is {state}"], "json": {"id": answer_id, "mark": mark, "edited": edited}}


def write_rows(target: str, out: Path, kind: RowKind) -> dict[str, object]:
    """Write the rows of all marked answers to `out`. Raises InputError when there is none, or when `out` holds something else."""
    said = read_answers(target)
    made = {"training": _training, "preference": _preference, "kto": _kto}[kind](said)
    columns = _columns(target) if kind == "training" else {}
    rows = list({json.dumps({**row, "meta": ""}): _with_columns(row, columns) for row in reversed(list(made))}.values())[::-1]
    if not rows:
        raise InputError(f"no marked answer makes a {kind} row", where=target, fix=_remedy(target, kind))
    _refuse_other_content(out)
    atomic_write_text(out, "".join(f"{_as_line(row)}\n" for row in rows))
    marks = {mark: sum(one.answer.mark == mark for one in said) for mark in ("good", "bad", "edited")}
    counts = ", ".join(f"{mark}: {count}" for mark, count in marks.items())
    lines = [f"{len(rows)} {kind} row{'s' * (len(rows) != 1)} written to {out} (answers marked {counts})"]
    if kind == "training" and marks["bad"]:
        lines.append(f"A bad answer without a better one teaches nothing here: {marks['bad']} left out (--edit ID TEXT, or --kind kto).")
    num_talks = sum(columns != {} and "history" in row for row in rows)
    if num_talks:
        held_by = ", ".join(columns.values())
        lines.append(
            f"{num_talks} of them with earlier turns, which columns ({held_by}) cannot hold: these need a file and run of their own."
        )
    lines.append(f"To look them over: luthier check {out}")
    return {"lines": lines, "json": {"rows": len(rows), "kind": kind, "out": str(out), "marks": marks}}


def _as_line(row: Row) -> str:
    """JSON in plain letters; half a character, which UTF-8 cannot hold, as an escape that `check` will name."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(row)
    return line


def _training(said: Sequence[Said]) -> Iterator[Row]:
    for one in said:
        if one.answer.mark in ("good", "edited"):
            yield {**_prompt(one), "output": one.answer.wanted, "meta": _meta(one)}


def _preference(said: Sequence[Said]) -> Iterator[Row]:
    """Each edit over what was written; and where two voices answered the same prompt, the good one over the bad one."""
    for one in said:
        if one.answer.mark == "edited" and one.answer.text.strip():
            yield {**_prompt(one), "chosen": one.answer.wanted, "rejected": one.answer.text, "meta": _meta(one)}
    for good, other in ((one, other) for one in said if one.answer.mark == "good" for other in one.turn.answers if other.mark == "bad"):
        bad = replace(good, answer=other)
        if good.answer.history == bad.answer.history and bad.answer.text.strip():
            yield {
                **_prompt(good),
                "chosen": good.answer.text,
                "rejected": bad.answer.text,
                "meta": {**_meta(good), "rejected": _meta(bad)},
            }


def _kto(said: Sequence[Said]) -> Iterator[Row]:
    for one in said:
        marked = [(one.answer.text, one.answer.mark == "good")] if one.answer.mark else []
        for text, is_wanted in [*marked, *([(one.answer.edited, True)] if one.answer.edited else [])]:
            if text.strip():
                system = [{"role": "system", "content": one.turn.system}] if one.turn.system else []
                turns = [*one.answer.history, _user(one), Message(role="assistant", content=text)]
                messages = [*system, *({"role": m.role, "content": m.content} for m in turns)]
                yield {"messages": messages, "label": is_wanted, "meta": _meta(one)}


def _user(one: Said) -> Message:
    return Message(role="user", content="\n\n".join(part for part in (one.turn.instruction, one.turn.prompt) if part))


def _prompt(one: Said) -> Row:
    """What the model was shown, as Alpaca names it."""
    pairs = [[user.content, assistant.content] for user, assistant in list(pairwise(one.answer.history))[::2]]
    optional: Mapping[str, object] = {"system": one.turn.system, "history": pairs}
    return {"instruction": one.turn.instruction, "input": one.turn.prompt, **{name: value for name, value in optional.items() if value}}


def _meta(one: Said) -> Row:
    return {
        "from": WRITER,
        "id": one.answer.id,
        "mark": one.answer.mark,
        "time": one.turn.time,
        "target": one.transcript.target,
        "voice": one.answer.voice,
        "model": one.answer.model,
    }


def _columns(target: str) -> dict[str, str]:
    """Field of a training row -> the run's own name for it, where the user had named columns. Empty for anything but a run."""
    config = RunFolder(Path(target)).config
    if not config.is_file():
        return {}
    data = load_settings(config, {}).data
    names = {"input": data.input, "output": data.output, "system": data.system, "instruction": data.instruction}
    if not (data.input and data.output):
        return {}
    found = {field: name for field, name in names.items() if name and (field != "instruction" or len(name.split()) == 1)}
    return {} if any(name in names and name != field for field, name in found.items()) else found


def _with_columns(row: Row, columns: Mapping[str, str]) -> Row:
    if "history" in row:
        return row
    return {**row, **{name: row.get(field, "") for field, name in columns.items()}}


def _refuse_other_content(out: Path) -> None:
    """Only a file that this command wrote is written over."""
    if not out.exists():
        return
    try:
        with out.open(encoding="utf-8") as lines:
            is_ours = all(_is_ours(json.loads(line)) for line in lines)
    except (OSError, ValueError, RecursionError):
        is_ours = False
    if not is_ours:
        raise InputError("the file is there and holds other things than feedback rows", where=str(out), fix="--out NEW.jsonl")


def _is_ours(row: Any) -> bool:
    meta = row.get("meta") if isinstance(row, dict) else None
    return isinstance(meta, dict) and meta.get("from") == WRITER


def _remedy(target: str, kind: RowKind) -> str:
    which = {"training": "good, or edit one", "kto": "good or bad", "preference": "edited"}[kind]
    return f"mark answers as {which}: luthier feedback {target} --list"


def _excerpt(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= EXCERPT_CHARS else f"{flat[: EXCERPT_CHARS - 1]}…"
