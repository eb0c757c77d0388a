"""`luthier feedback`: what was marked in chats becomes rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from luthier.cli.command import Argument, Given, Outcome, add_command
from luthier.cli.options import Flag

if TYPE_CHECKING:
    from luthier.core.chat import AnswerMark

TARGET = Argument(name="run", help="What was talked to: a run, adapter or model; or the file of one conversation.")
FLAGS = (
    Flag(names=("--out",), type=str, help="Write rows of the marked answers to this file."),
    Flag(names=("--kind",), type=str, help="Which rows: training (good and edited answers), preference (edits), kto; default: training."),
    Flag(names=("--list",), type=bool, help="Show what was said, with the id and mark of each answer."),
    Flag(names=("--mark",), type=str, words=("ID", "MARK"), help="Mark an answer: good, bad, or none to take the mark away."),
    Flag(names=("--edit",), type=str, words=("ID", "TEXT"), help="Say what an answer should have been."),
)


def feedback(given: Given) -> Outcome:
    """Turn what you marked in chats into rows for the next training.

    Answers are marked while you talk (/good, /bad, /edit) or here afterwards. Each row says which conversation, answer and model it is
    from.
    """
    from luthier.core.errors import ConfigError
    from luthier.pipeline.feedback import KINDS, list_answers, mark_answer, write_rows

    target = given.arguments[0]
    wishes = [name for name in ("out", "list", "mark", "edit") if name in given.values]
    if len(wishes) != 1:
        found = " and ".join(f"--{name}" for name in wishes) or "none"
        raise ConfigError(
            f"found {found}, expected one of --out, --list, --mark, --edit", where="feedback", fix=f"luthier feedback {target} --list"
        )
    kind = str(given.values.get("kind", KINDS[0]))
    if kind not in KINDS:
        raise ConfigError(f"found {kind!r}, expected one of {', '.join(KINDS)}", where="--kind", fix=f"--kind {KINDS[0]}")
    if wishes == ["list"]:
        return list_answers(target)
    if wishes == ["out"]:
        return write_rows(target, Path(str(given.values["out"])).expanduser(), kind)
    answer_id, text = cast("tuple[str, str]", given.values[wishes[0]])
    if wishes == ["edit"]:
        return mark_answer(target, answer_id, "edited", text)
    if text not in ("good", "bad", "none"):
        raise ConfigError(f"found {text!r}, expected good, bad or none", where="--mark", fix=f"--mark {answer_id} good")
    return mark_answer(target, answer_id, None if text == "none" else cast("AnswerMark", text))


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    add_command(app, "feedback", feedback, FLAGS, argument=TARGET)
