"""Talking to the tuned model in the terminal, the base model's answer beside it when asked.

The model's words are untrusted: they pass `render_untrusted` before they reach the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.core.types import Example, GenerationRequest, Message
from luthier.generate.local import LocalModel, check_fits, generate
from luthier.generate.store import NoStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """One model in the conversation. Each voice has its own history: it remembers its own answers, not the other's."""

    name: str
    local: LocalModel


@dataclass(slots=True)
class Conversation:
    """The turns so far, for each voice: the only state of a chat."""

    system: str
    instruction: str
    voices: tuple[Voice, ...]
    turns: dict[str, list[Message]]

    def reset(self) -> None:
        """Forget all turns."""
        for turns in self.turns.values():
            turns.clear()


def open_conversation(voices: Sequence[Voice], *, system: str, instruction: str) -> Conversation:
    """`instruction` is put before each user turn, as in training, when the examples all shared one."""
    return Conversation(system=system, instruction=instruction, voices=tuple(voices), turns={voice.name: [] for voice in voices})


def say(conversation: Conversation, text: str, *, max_new_tokens: int, on_answer: Callable[[str, str], None]) -> dict[str, str]:
    """One user turn: every voice answers in turn, greedily. Raises InputError when the history no longer fits the model."""
    turn = Example(id="chat", path="terminal", line=0, kind="instruct", instruction=conversation.instruction, input=text, response="")
    answers: dict[str, str] = {}
    for voice in conversation.voices:
        system = (Message(role="system", content=conversation.system),) if conversation.system else ()
        messages = (*system, *conversation.turns[voice.name], Message(role="user", content=turn.user_text))
        request = GenerationRequest(item_id="chat", messages=messages, max_new_tokens=max_new_tokens)
        check_fits(voice.local, request, len(voice.local.encoder.encode_prompt(messages)))
        [generation] = generate(voice.local, [request], batch=1, store=NoStore(), on_progress=lambda done, total: None)
        conversation.turns[voice.name] += [messages[-1], Message(role="assistant", content=generation.text)]
        answers[voice.name] = generation.text
        on_answer(voice.name, generation.text)
    return answers
