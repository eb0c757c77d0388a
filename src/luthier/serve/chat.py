"""A conversation with the tuned model, the base model's answer beside it when asked.

The model's words are untrusted: they go to a terminal only through `core/growing.py`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

from luthier.core.chat import ChatAnswer, ChatTranscript
from luthier.core.errors import InputError
from luthier.core.seeds import seed_for
from luthier.core.types import Example, Message, Order, Piece, Sampling
from luthier.generate.contract import TextEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """One model in the conversation. Each voice has its own history: it remembers its own answers, not the other's."""

    name: str
    engine: TextEngine
    spoken_as: str  # its name in the engine
    count_prompt: Callable[[Sequence[Message]], int]  # tokens of a prompt
    fingerprint: str  # of base, adapter and dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How answers are drawn: greedily at temperature 0. The same seed and the same turns give the same answers."""

    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)

    def as_record(self) -> dict[str, float]:
        """What a transcript says of it."""
        return {"max_new_tokens": self.max_new_tokens, **asdict(self.sampling)}


@dataclass(slots=True)
class Conversation:
    """The turns so far, for each voice: the only state of a chat. `turns[voice]` alternates user and assistant."""

    system: str
    instruction: str
    voices: tuple[Voice, ...]
    turns: dict[str, list[Message]]
    num_turns: int = 0  # asked so far, forgotten ones counted

    def reset(self) -> None:
        """Forget all turns."""
        for turns in self.turns.values():
            turns.clear()

    def correct(self, voice: str, instruction: str, prompt: str, text: str, *, is_new: bool) -> None:
        """From now on, the voice's last answer was `text`. `is_new`: the turn was not remembered, for it had no answer."""
        if is_new:
            self.turns[voice].append(Message(role="user", content=_user_text(instruction, prompt)))
            self.turns[voice].append(Message(role="assistant", content=text))
        elif self.turns[voice]:
            self.turns[voice][-1] = Message(role="assistant", content=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A turn made ready for one voice: what it is shown, and how many of its oldest turns no longer fit."""

    voice: Voice
    order: Order
    history: tuple[Message, ...]
    num_dropped: int


def open_conversation(voices: Sequence[Voice], *, system: str, instruction: str) -> Conversation:
    """`instruction` is put before each user turn, as in training, when the examples all shared one."""
    return Conversation(system=system, instruction=instruction, voices=tuple(voices), turns={voice.name: [] for voice in voices})


def remember(conversation: Conversation, transcript: ChatTranscript) -> None:
    """Go on with a saved conversation: its turns since the last reset, answers as edited. A voice that is new takes the first one's."""
    conversation.num_turns = len(transcript.turns)
    for turn in transcript.turns[transcript.num_forgotten :]:
        user = Message(role="user", content=_user_text(turn.instruction, turn.prompt))
        by_voice = {answer.voice: answer for answer in turn.answers}
        for voice in conversation.voices:
            answer = by_voice.get(voice.name, turn.answers[0] if turn.answers else None)
            if answer is not None and answer.wanted.strip():
                conversation.turns[voice.name] += [user, Message(role="assistant", content=answer.wanted)]


def prepare_turn(conversation: Conversation, text: str, drawing: Drawing) -> tuple[Asked, ...]:
    """What each voice is to be asked. As many of the latest turns are shown as fit the model beside the new one and its answer.

    Raises InputError when the new turn alone does not fit.
    """
    return tuple(_prepare(conversation, voice, text, drawing) for voice in conversation.voices)


def _prepare(conversation: Conversation, voice: Voice, text: str, drawing: Drawing) -> Asked:
    history = conversation.turns[voice.name]
    system = (Message(role="system", content=conversation.system),) if conversation.system else ()
    user = Message(role="user", content=_user_text(conversation.instruction, text))

    def messages(num_dropped: int) -> tuple[Message, ...]:
        return (*system, *history[2 * num_dropped :], user)

    def fits(num_dropped: int) -> bool:
        return voice.count_prompt(messages(num_dropped)) + drawing.max_new_tokens <= voice.engine.context

    num_turns = len(history) // 2
    num_dropped = bisect_left(range(num_turns + 1), True, key=fits)
    if num_dropped > num_turns:
        raise _too_long(voice, voice.count_prompt(messages(num_turns)), drawing.max_new_tokens)
    return Asked(
        voice=voice,
        order=Order(
            messages=messages(num_dropped),
            max_new_tokens=drawing.max_new_tokens,
            voice=voice.spoken_as,
            sampling=replace(drawing.sampling, seed=seed_for(drawing.sampling.seed, f"chat/{conversation.num_turns}")),
        ),
        history=tuple(history[2 * num_dropped :]),
        num_dropped=num_dropped,
    )


def _too_long(voice: Voice, num_prompt_tokens: int, max_new_tokens: int) -> InputError:
    room = voice.engine.context - num_prompt_tokens
    return InputError(
        f"the prompt has {num_prompt_tokens:,} tokens and the answer may take {max_new_tokens:,}; the model sees {voice.engine.context:,}",
        where=voice.name,
        fix=f"--max-new-tokens {room}" if room >= min(16, max_new_tokens) else "a shorter text: this one does not fit the model",
    )


def _user_text(instruction: str, text: str) -> str:
    """The user turn, put together as a training row's is."""
    return Example(id="chat", path="terminal", line=0, kind="instruct", instruction=instruction, input=text, response="").user_text


def answer_turn(
    conversation: Conversation,
    asked: Sequence[Asked],
    *,
    ids: Sequence[str],
    together: bool,
    on_piece: Callable[[int, str], None],
    on_end: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> tuple[ChatAnswer, ...]:
    """Every voice answers, one after the other or `together`; `on_piece(i, text)` is called with what voice i adds, `on_end(i)` at its end.

    Turns are remembered afterwards, but for those that were answered with nothing.
    """
    writing = [_Writing(asked=one, id=ids[index]) for index, one in enumerate(asked)]
    for group in [range(len(asked))] if together else [[index] for index in range(len(asked))]:
        if not should_stop():
            _write(writing, group, on_piece=on_piece, on_end=on_end, should_stop=should_stop)
    conversation.num_turns += 1
    for one in writing:
        if one.text.strip():
            conversation.turns[one.asked.voice.name] += [one.asked.order.messages[-1], Message(role="assistant", content=one.text)]
    return tuple(one.answer() for one in writing)


@dataclass(slots=True, kw_only=True)
class _Writing:
    """One answer on its way."""

    asked: Asked
    id: str
    text: str = ""
    last: Piece | None = None
    seconds: float | None = None

    def answer(self) -> ChatAnswer:
        return ChatAnswer(
            id=self.id,
            voice=self.asked.voice.name,
            model=self.asked.voice.fingerprint,
            text=self.text,
            finish=(self.last and self.last.finish) or "cancelled",
            history=self.asked.history,
            num_dropped=self.asked.num_dropped,
            num_prompt_tokens=None if self.last is None else self.last.num_prompt_tokens,
            num_new_tokens=None if self.last is None else self.last.num_new_tokens,
            seconds=self.seconds,
        )


def _write(
    writing: Sequence[_Writing],
    group: Sequence[int],
    *,
    on_piece: Callable[[int, str], None],
    on_end: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> None:
    """Answers of a group of voices, a step of each engine in turn; given up between two steps."""
    started = time.perf_counter()
    engines = list({id(engine): engine for engine in (writing[index].asked.voice.engine for index in group)}.values())
    open_tickets: dict[tuple[int, int], int] = {}
    try:
        for index in group:
            engine = writing[index].asked.voice.engine
            open_tickets[id(engine), engine.submit(writing[index].asked.order)] = index
        while open_tickets and not should_stop():
            for engine in engines:
                for piece in () if engine.idle else engine.step():
                    index = open_tickets[id(engine), piece.ticket]
                    one = writing[index]
                    one.text, one.last, one.seconds = one.text + piece.text, piece, time.perf_counter() - started
                    on_piece(index, piece.text)
                    if piece.finish is not None:
                        del open_tickets[id(engine), piece.ticket]
                        on_end(index)
    finally:
        for engine in engines:
            for number, ticket in open_tickets:
                if number == id(engine):
                    engine.cancel(ticket)
