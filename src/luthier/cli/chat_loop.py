"""The chat at the keyboard: lines become prompts or commands, answers appear as they are written."""

from __future__ import annotations

import difflib
import re
import shlex
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from luthier.core.chat import AnswerMark, ChatTurn
from luthier.core.console import ask, note
from luthier.core.errors import InputError, LuthierError
from luthier.core.growing import GrowingText, SideBySide, column_cells
from luthier.core.stop import Stopped, stop_answer_on_interrupt
from luthier.pipeline.talk import Talk, answer_and_keep, forget, mark_last, save_copy
from luthier.serve.chat import Drawing, prepare_turn

COMMANDS = {
    "/help": "show this",
    "/good": "the last answer is as it should be; /good [base] for another voice",
    "/bad": "it is not",
    "/edit": "say what it should have been: /edit TEXT, or /edit alone for several lines up to /end",
    "/multi": "a prompt of several lines, up to /end",
    "/reset": "forget what was said",
    "/save": "copy the conversation to a file: /save FILE",
    "/exit": "leave; so do Ctrl-D, and Ctrl-C at the prompt",
}
_ALIASES = {
    "/quit": "/exit",
    "/bye": "/exit",
    "exit": "/exit",
    "quit": "/exit",
    "!multi": "/multi",
    "/?": "/help",
}  # exit, !multi: as in llm
_COMMAND = re.compile(r"(/[a-z?]+)(?:\s+(.*))?", re.DOTALL)
_VOICE = re.compile(r"\[([^\]]*)\]\s*(.*)", re.DOTALL)
END = ("/end", "!end")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Who is talked to: a person at a terminal or a program, and whether answers are shown while they are written."""

    target: str
    is_person: bool
    is_shown: bool

    @property
    def go_on(self) -> str:
        """The command that goes on with this conversation."""
        return shlex.join(["luthier", "chat", self.target, "--continue"])


def answer_all(talk: Talk, drawing: Drawing, listener: Listener) -> list[ChatTurn]:
    """Prompts and commands line by line until the end of input or /exit. A person is told of an error and goes on; a program is not."""
    turns: list[ChatTurn] = []
    if listener.is_person:
        num_turns = len(talk.transcript.turns) - talk.transcript.num_forgotten
        note(
            f"Going on after {num_turns} turn{'s' * (num_turns > 1)}; /help says what there is."
            if num_turns
            else "One prompt a line; /help says what else there is."
        )
        models = {answer.voice: answer.model for answer in talk.last.answers} if talk.last else {}
        for voice in talk.conversation.voices:
            if models.get(voice.name, voice.fingerprint) != voice.fingerprint:
                note(f"{voice.name} is not the model that answered before: other weights, or another number format")
    with _told_at_the_end(talk, listener):
        while (line := ask("> ")) is not None:
            try:
                command, rest = _read(line, is_person=listener.is_person)
                if command == "/exit":
                    break
                if command:
                    _obey(talk, command, rest)
                elif rest.strip():
                    turns.append(answer_one(talk, rest, drawing, listener))
            except LuthierError as error:
                if not listener.is_person:
                    raise
                note(f"error: {error}")
    return turns


def answer_one(talk: Talk, text: str, drawing: Drawing, listener: Listener) -> ChatTurn:
    """One turn, shown as it is written: side by side where the terminal has room for it."""
    if not text.strip():
        raise InputError("there is nothing to answer", where="prompt", fix='-p "TEXT"')
    asked = prepare_turn(talk.conversation, text, drawing)
    for one in asked:
        if one.num_dropped:
            turns, them = ("oldest turn is", "it") if one.num_dropped == 1 else (f"{one.num_dropped} oldest turns are", "them")
            who = f" to {one.voice.name}" if len(asked) > 1 else ""
            note(f"the {turns} not shown{who} any more: with {them}, the prompt would not fit the model (/reset forgets all)")
    cells = column_cells(len(asked)) if listener.is_shown and len(asked) > 1 else None
    names = [one.voice.name for one in asked]
    with _shown(names, cells, is_shown=listener.is_shown) as (on_piece, on_end), _interruptible(listener) as should_stop:
        turn = answer_and_keep(
            talk, text, asked, drawing, together=cells is not None, on_piece=on_piece, on_end=on_end, should_stop=should_stop
        )
    if listener.is_shown:
        for answer in turn.answers:
            ends = {"length": f"cut off after {drawing.max_new_tokens} tokens: --max-new-tokens", "cancelled": "stopped", "stop": ""}
            end = ends[answer.finish] or ("" if answer.text.strip() else "answered nothing; the turn is not remembered")
            if end:
                note(f"({answer.voice}: {end})" if len(names) > 1 else f"({end})")
    return turn


@contextmanager
def _interruptible(listener: Listener) -> Generator[Callable[[], bool]]:
    """For a person, Ctrl-C stops the answer and a second one leaves; for a program it ends the command, as everywhere."""
    if not listener.is_person:
        yield lambda: False
        return
    with stop_answer_on_interrupt() as flag:
        yield flag


@contextmanager
def _told_at_the_end(talk: Talk, listener: Listener) -> Generator[None]:
    """Leaving says where the conversation is kept, and how to go on."""
    num_before = len(talk.transcript.turns)
    try:
        yield
    except KeyboardInterrupt as error:
        if not listener.is_person:
            raise
        raise Stopped(signal.SIGINT, go_on=listener.go_on if talk.transcript.path else "") from error
    if listener.is_person and talk.transcript.path and len(talk.transcript.turns) > num_before:
        note(f"kept in {talk.transcript.path}; to go on: {listener.go_on}")
        if any(answer.mark for turn in talk.transcript.turns for answer in turn.answers):
            note(f"rows of what you marked: {shlex.join(['luthier', 'feedback', listener.target, '--out', 'rows.jsonl'])}")


@contextmanager
def _shown(names: list[str], cells: int | None, *, is_shown: bool) -> Generator[tuple[Callable[[int, str], None], Callable[[int], None]]]:
    """What to call with each piece of an answer, and at its end. Whatever happens, the line is ended."""
    if not is_shown:
        yield lambda index, piece: None, lambda index: None
        return
    if cells is not None:
        table = SideBySide(names, cells)
        try:
            yield table.add, table.finish
        finally:
            for index in range(len(names)):
                table.finish(index)
        return
    growing: dict[int, GrowingText] = {}

    def add(index: int, piece: str) -> None:
        if index not in growing:
            growing[index] = GrowingText(f"[{names[index]}] " if len(names) > 1 else "")
        growing[index].add(piece)

    def finish(index: int) -> None:
        add(index, "")
        growing[index].finish()

    try:
        yield add, finish
    finally:
        for text in growing.values():
            text.finish()


def _read(line: str, *, is_person: bool) -> tuple[str, str]:
    """A command and what follows it, or "" and a prompt. A line that begins with a space is never a command."""
    line = _ALIASES.get(line.strip(), line) if is_person else line
    found = _COMMAND.fullmatch(line)
    if found is None:
        return "", line.strip("\r\n")
    command, rest = _ALIASES.get(found[1], found[1]), (found[2] or "").strip()
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"there is no command {command}; {hint}To send it as it is, begin with a space", fix=near[0] if near else "/help")
    return ("", _lines_to_the_end()) if command == "/multi" else (command, rest)


def _obey(talk: Talk, command: str, rest: str) -> None:
    match command:
        case "/help":
            for name, text in COMMANDS.items():
                note(f"{name:7} {text}")
        case "/reset":
            forget(talk)
            note("forgotten")
        case "/save":
            if not rest:
                raise InputError("no file is named", fix="/save talk.jsonl")
            note(f"saved to {save_copy(talk, rest)}")
        case _:
            _mark(talk, command, rest)


def _mark(talk: Talk, command: str, rest: str) -> None:
    marks: dict[str, AnswerMark] = {"/good": "good", "/bad": "bad", "/edit": "edited"}
    found = _VOICE.fullmatch(rest)
    names = {voice.name for voice in talk.conversation.voices}
    voice, text = (found[1], found[2]) if found and (found[1] in names or command != "/edit") else (None, rest)
    if command != "/edit" and text:
        voice, text = voice or text, ""
    edited = None if command != "/edit" else text or _lines_to_the_end()
    answer = mark_last(talk, voice, marks[command], edited)
    kept = f"{answer.id} is marked {answer.mark}" if talk.transcript.path else "marked, but kept nowhere (--no-log)"
    note(kept)


def _lines_to_the_end() -> str:
    """Lines up to /end or the end of input."""
    lines: list[str] = []
    while (line := ask(". ")) is not None and line.strip() not in END:
        lines.append(line)
    return "\n".join(lines)
