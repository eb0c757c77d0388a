"""Conversations on disk: a journal each, read back whole.

    {"event": "opened", "schema": 1, "id": "a1b2c3", "time": "…", "target": "runs/x", "system": "…", "instruction": "…"}
    {"event": "turn", "number": 1, "time": "…", "prompt": "…", "answers": [{"id": "a1b2c3-1", "voice": "tuned", …}], …}
    {"event": "mark", "id": "a1b2c3-1", "mark": "good", "edited": null, "time": "…"}
    {"event": "reset"}

A transcript may come from anywhere: everything in it is checked, and is untrusted text all the same.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from luthier.core.chat import AnswerMark, ChatAnswer, ChatTranscript, ChatTurn
from luthier.core.errors import RunError
from luthier.core.types import Message
from luthier.store.journal import append, read

SCHEMA = 1
MARKS: tuple[AnswerMark, ...] = ("good", "bad", "edited")
FINISHES = ("stop", "length", "cancelled")
MAX_BYTES = 64 * 2**20


def now() -> str:
    """The time of day, to the second, with its offset."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def new_transcript(path: Path | None, *, target: str, system: str, instruction: str) -> ChatTranscript:
    """Begin a transcript at `path`, which must not exist yet; None: it is kept in memory only. Raises RunError."""
    transcript = ChatTranscript(
        id=secrets.token_hex(3),
        path="" if path is None else str(path),
        time=now(),
        target=target,
        system=system,
        instruction=instruction,
    )
    if path is not None:
        refuse_existing(path)
        head = {key: value for key, value in asdict(transcript).items() if key not in ("path", "turns", "num_forgotten")}
        append(path, {"event": "opened", "schema": SCHEMA, **head})
    return transcript


def refuse_existing(path: Path) -> None:
    """Raise RunError where a new transcript would meet an old file."""
    if path.exists():
        raise RunError("there is such a file already", where=str(path), fix="give another name, or go on with it: --continue")


def add_turn(transcript: ChatTranscript, turn: ChatTurn) -> ChatTranscript:
    """The transcript with one more turn, saved."""
    _save(transcript, {"event": "turn", **asdict(turn)})
    return replace(transcript, turns=(*transcript.turns, turn))


def add_mark(transcript: ChatTranscript, answer_id: str, mark: AnswerMark | None, edited: str | None = None) -> ChatTranscript:
    """The transcript with an answer marked, or (None) no longer marked, saved."""
    _save(transcript, {"event": "mark", "id": answer_id, "mark": mark, "edited": edited, "time": now()})
    return _marked(transcript, answer_id, mark, edited)


def add_reset(transcript: ChatTranscript) -> ChatTranscript:
    """The transcript with everything so far forgotten, saved."""
    _save(transcript, {"event": "reset"})
    return replace(transcript, num_forgotten=len(transcript.turns))


def _save(transcript: ChatTranscript, record: Mapping[str, object]) -> None:
    if transcript.path:
        append(Path(transcript.path), record)


def _marked(transcript: ChatTranscript, answer_id: str, mark: AnswerMark | None, edited: str | None) -> ChatTranscript:
    turns = tuple(
        replace(turn, answers=tuple(replace(a, mark=mark, edited=edited) if a.id == answer_id else a for a in turn.answers))
        for turn in transcript.turns
    )
    return replace(transcript, turns=turns)


def read_transcript(path: Path) -> ChatTranscript:
    """A saved conversation. Raises RunError with the line for anything that is none."""
    if not path.is_file():
        raise RunError("there is no such transcript", where=str(path), fix="see which there are: luthier feedback RUN --list")
    if path.stat().st_size > MAX_BYTES:
        raise RunError(f"found {path.stat().st_size:,} bytes, at most {MAX_BYTES:,} are read", where=str(path), fix="give another file")
    transcript: ChatTranscript | None = None
    for number, record in enumerate(_records(path), start=1):
        try:
            transcript = _opened(record, path) if transcript is None else _replayed(transcript, record)
        except (KeyError, TypeError, ValueError) as error:
            found = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise RunError(
                f"this is no chat transcript: {found}", where=f"{path}:{number}", fix="give a file that luthier chat saved"
            ) from error
    if transcript is None:
        raise RunError("the transcript is empty", where=str(path), fix="give a file that luthier chat saved")
    return transcript


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The journal's records; a file that does not even begin as a journal was never damaged, it is something else."""
    records = read(path)
    try:
        first = next(records, None)
    except RunError as error:
        raise RunError(
            f"this is no chat transcript: {error.message}", where=error.where, fix="give a file that luthier chat saved"
        ) from error
    if first is not None:
        yield first
        yield from records


def _opened(record: Mapping[str, object], path: Path) -> ChatTranscript:
    if record["event"] != "opened" or record["schema"] != SCHEMA:
        raise ValueError(f"found event {record['event']!r}, schema {record.get('schema')!r}; expected 'opened', {SCHEMA}")
    return ChatTranscript(
        path=str(path),
        id=_text(record, "id"),
        time=_text(record, "time"),
        target=_text(record, "target"),
        system=_text(record, "system"),
        instruction=_text(record, "instruction"),
    )


def _replayed(transcript: ChatTranscript, record: Mapping[str, object]) -> ChatTranscript:
    match record["event"]:
        case "turn":
            return replace(transcript, turns=(*transcript.turns, _turn(record)))
        case "mark":
            mark = record["mark"]
            if mark is not None and mark not in MARKS:
                raise ValueError(f"found mark {mark!r}, expected one of {', '.join(MARKS)}")
            edited = None if record["edited"] is None else _text(record, "edited")
            return _marked(transcript, _text(record, "id"), mark, edited)
        case "reset":
            return replace(transcript, num_forgotten=len(transcript.turns))
        case other:
            raise ValueError(f"found event {other!r}")


def _turn(record: Mapping[str, object]) -> ChatTurn:
    number, answers, sampling = record["number"], record["answers"], record["sampling"]
    if not isinstance(number, int) or not isinstance(answers, list) or not isinstance(sampling, Mapping):
        raise TypeError("`number`, `answers` or `sampling` has the wrong type")
    return ChatTurn(
        number=number,
        answers=tuple(_answer(answer) for answer in cast("list[object]", answers)),
        sampling={str(name): float(value) for name, value in sampling.items()},
        **{key: _text(record, key) for key in ("time", "system", "instruction", "prompt")},
    )


def _answer(value: object) -> ChatAnswer:
    if not isinstance(value, Mapping):
        raise TypeError("an answer is no object")
    record = cast("Mapping[str, object]", value)
    finish, history, dropped = record["finish"], record["history"], record["num_dropped"]
    if finish not in FINISHES or not isinstance(history, list) or not isinstance(dropped, int):
        raise ValueError("`finish`, `history` or `num_dropped` of an answer is not as expected")
    return ChatAnswer(
        id=_text(record, "id"),
        voice=_text(record, "voice"),
        model=_text(record, "model"),
        text=_text(record, "text"),
        finish=finish,  # pyright: ignore[reportArgumentType]
        history=tuple(_message(turn) for turn in cast("list[object]", history)),
        num_dropped=dropped,
        num_prompt_tokens=_number(record, "num_prompt_tokens"),
        num_new_tokens=_number(record, "num_new_tokens"),
        seconds=None if record.get("seconds") is None else float(cast("float", record["seconds"])),
    )


def _message(value: object) -> Message:
    if not isinstance(value, Mapping) or value.get("role") not in ("user", "assistant"):
        raise ValueError("a turn of `history` has no role of user or assistant")
    return Message(role=value["role"], content=_text(cast("Mapping[str, object]", value), "content"))


def _text(record: Mapping[str, object], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise TypeError(f"`{key}` is no text")
    return value


def _number(record: Mapping[str, object], key: str) -> int | None:
    value = record.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise TypeError(f"`{key}` is no whole number")
    return value
