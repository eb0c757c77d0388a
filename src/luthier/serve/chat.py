"""A conversation with the tuned model, the base model's answer beside it when asked.

The model's words are untrusted: they go to a terminal only through `core/growing.py`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.core.errors import InputError
from luthier.core.seeds import seed_for
from luthier.core.types import ChatAnswer, ChatTranscript, Example, GenerationRequest, Message
from luthier.generate.local import LocalModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """One model in the conversation. Each voice has its own history: it remembers its own answers, not the other's."""

    name: str
    local: LocalModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How answers are drawn: greedily at temperature 0. The same seed and the same turns give the same answers."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def as_record(self) -> dict[str, float]:
        """What a transcript says of it."""
        names = ("max_new_tokens", "temperature", "top_p", "top_k", "seed")
        return {name: getattr(self, name) for name in names}


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
    request: GenerationRequest
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
        return len(voice.local.encoder.encode_prompt(messages(num_dropped))) + drawing.max_new_tokens <= voice.local.context

    num_turns = len(history) // 2
    num_dropped = bisect_left(range(num_turns + 1), True, key=fits)
    if num_dropped > num_turns:
        raise _too_long(voice, len(voice.local.encoder.encode_prompt(messages(num_turns))), drawing.max_new_tokens)
    return Asked(
        voice=voice,
        request=GenerationRequest(
            item_id="chat",
            messages=messages(num_dropped),
            max_new_tokens=drawing.max_new_tokens,
            temperature=drawing.temperature,
            seed=seed_for(drawing.seed, f"chat/{conversation.num_turns}"),
        ),
        history=tuple(history[2 * num_dropped :]),
        num_dropped=num_dropped,
    )


def _too_long(voice: Voice, num_prompt_tokens: int, max_new_tokens: int) -> InputError:
    room = voice.local.context - num_prompt_tokens
    return InputError(
        f"the prompt has {num_prompt_tokens:,} tokens and the answer may take {max_new_tokens:,}; the model sees {voice.local.context:,}",
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
    answers: list[ChatAnswer] = []
    for index, one in enumerate(asked):
        started = time.perf_counter()
        ids_T = one.voice.local.encoder.encode_prompt(one.request.messages)
        so_far: list[int] = []
        shown = 0

        def add(row: int, token: int, one: Asked = one, so_far: list[int] = so_far, index: int = index) -> bool:
            nonlocal shown
            so_far.append(token)
            text = one.voice.local.encoder.decode(so_far)
            if not text.endswith("�"):
                on_piece(index, text[shown:])
                shown = len(text)
            return not should_stop()

        from luthier.generate.decode import Sampling, decode, read_prefix

        [written] = decode(
            one.voice.local.model,
            read_prefix(one.voice.local.model, []),
            [ids_T],
            max_new_tokens=[one.request.max_new_tokens],
            eos_ids=one.voice.local.encoder.eos_ids,
            sampling=[Sampling(one.request.temperature, one.request.seed)],
            on_token=add,
        )
        text = one.voice.local.encoder.decode(written)
        on_piece(index, text[shown:])
        on_end(index)
        answers.append(
            ChatAnswer(
                id=ids[index],
                voice=one.voice.name,
                text=text,
                finish="cancelled" if should_stop() else "length" if len(written) >= one.request.max_new_tokens else "stop",
                history=one.history,
                num_dropped=one.num_dropped,
                num_prompt_tokens=len(ids_T),
                num_new_tokens=len(written),
                seconds=time.perf_counter() - started,
            )
        )
    conversation.num_turns += 1
    for one, answer in zip(asked, answers, strict=True):
        if answer.text.strip():
            conversation.turns[one.voice.name] += [one.request.messages[-1], Message(role="assistant", content=answer.text)]
    return tuple(answers)
