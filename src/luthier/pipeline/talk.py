"""A chat under way: the conversation, and the transcript that every turn and mark goes to at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.core.chat import AnswerMark, ChatAnswer, ChatTranscript, ChatTurn
from luthier.core.errors import ConfigError, InputError
from luthier.pipeline.transcripts import held, latest_transcript, new_path
from luthier.serve.chat import Asked, Conversation, Drawing, answer_turn, remember
from luthier.store.files import disk_error
from luthier.store.transcript import add_mark, add_reset, add_turn, new_transcript, now, read_transcript, refuse_existing


@dataclass(slots=True)
class Talk:
    """What is said, and where it is kept. `transcript.path` is empty when it is kept nowhere."""

    conversation: Conversation
    transcript: ChatTranscript

    @property
    def last(self) -> ChatTurn | None:
        """The latest turn, also after a reset."""
        return self.transcript.turns[-1] if self.transcript.turns else None


@contextmanager
def open_talk(
    target: str,
    open_conversation: Callable[[ChatTranscript | None], Conversation],
    *,
    file: Path | None = None,
    goes_on: bool = False,
    is_kept: bool = True,
) -> Generator[Talk]:
    """A new talk, or the latest (or the one in `file`) gone on with. `open_conversation` is given the earlier one, and opens the models.

    Raises RunError when there is nothing to go on with, when `file` exists already, or when another chat writes it.
    """
    if not is_kept and (goes_on or file is not None):
        raise ConfigError("a talk that is not kept has no transcript", where="--no-log", fix="leave --no-log out")
    if goes_on:
        path = file or latest_transcript(target)
        with held(path):
            before = read_transcript(path)
            conversation = open_conversation(before)
            remember(conversation, before)
            yield Talk(conversation, before)
        return
    path = None if not is_kept else file or new_path(target)
    if path is not None:
        refuse_existing(path)  # before a model is loaded
    conversation = open_conversation(None)
    with held(path):
        transcript = new_transcript(path, target=target, system=conversation.system, instruction=conversation.instruction)
        yield Talk(conversation, transcript)


def answer_and_keep(
    talk: Talk,
    text: str,
    asked: tuple[Asked, ...],
    drawing: Drawing,
    *,
    together: bool,
    on_piece: Callable[[int, str], None],
    on_end: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> ChatTurn:
    """Let every voice answer the turn, and save it; an answer that was stopped is kept as far as it came."""
    number = len(talk.transcript.turns) + 1
    ids = [_answer_id(talk, number, index) for index in range(len(asked))]
    answers = answer_turn(talk.conversation, asked, ids=ids, together=together, on_piece=on_piece, on_end=on_end, should_stop=should_stop)
    turn = ChatTurn(
        number=number,
        time=now(),
        system=talk.conversation.system,
        instruction=talk.conversation.instruction,
        prompt=text,
        answers=answers,
        sampling=drawing.as_record(),
    )
    talk.transcript = add_turn(talk.transcript, turn)
    return turn


def _answer_id(talk: Talk, number: int, index: int) -> str:
    """`a1b2c3-4`; of a second voice `a1b2c3-4:base`."""
    name = talk.conversation.voices[index].name
    return f"{talk.transcript.id}-{number}" + (f":{name}" if index else "")


def forget(talk: Talk) -> None:
    """Start over, in the same transcript."""
    talk.conversation.reset()
    talk.transcript = add_reset(talk.transcript)


def mark_last(talk: Talk, voice: str | None, mark: AnswerMark, edited: str | None = None) -> ChatAnswer:
    """Mark the last answer of a voice (None: the first). An edited answer takes its place in the conversation too. Raises LuthierError."""
    turn = talk.last
    if turn is None:
        raise InputError("nothing was answered yet", fix="say something first")
    found = next((a for a in turn.answers if voice in (None, a.voice)), None)
    if found is None:
        names = ", ".join(a.voice for a in turn.answers)
        raise InputError(f"nobody here is called {voice!r}, only {names}", fix=f"/{mark} [{turn.answers[0].voice}]")
    mark, edited = checked_mark(found, mark, edited)
    if edited is not None and talk.transcript.num_forgotten < len(talk.transcript.turns):
        talk.conversation.correct(found.voice, turn.instruction, turn.prompt, edited, is_new=not found.wanted.strip())
    talk.transcript = add_mark(talk.transcript, found.id, mark, edited)
    return replace(found, mark=mark, edited=edited)


def checked_mark(answer: ChatAnswer, mark: AnswerMark, edited: str | None) -> tuple[AnswerMark, str | None]:
    """A mark that makes a row which can be trained on. Raises InputError with what to do instead."""
    if edited is not None and not edited.strip():
        raise InputError("the better answer is empty", fix="/edit and the answer as it should have been")
    if edited is not None and edited == answer.text:
        mark, edited = "good", None
    if mark == "good":
        reason = {"length": "was cut off at the longest length allowed", "cancelled": "was stopped before its end", "stop": ""}[
            answer.finish
        ]
        reason = reason or ("" if answer.text.strip() else "is empty")
        if reason:
            raise InputError(f"the answer {reason}, and a model would learn to answer so", fix="/edit and the whole answer, or /bad")
    return mark, edited


def save_copy(talk: Talk, name: str) -> Path:
    """Copy the transcript so far to a file that does not exist yet. Raises LuthierError."""
    path = Path(name).expanduser()
    if not talk.transcript.path:
        raise InputError("this talk is kept nowhere (--no-log)", fix="start again without --no-log")
    if path.exists():
        raise InputError("there is such a file already", where=str(path), fix="give another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as copy, Path(talk.transcript.path).open("rb") as source:
            shutil.copyfileobj(source, copy)
    except OSError as error:
        raise disk_error(path, 0, error) from error
    return path
