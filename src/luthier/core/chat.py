"""The nouns of a conversation, which cross package borders as those of `core/types.py` do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from luthier.core.types import Message

AnswerMark = Literal["good", "bad", "edited"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """One model's answer in a chat. `history` is what it was shown before the turn, system prompt not included; texts are untrusted."""

    id: str
    voice: str
    model: str  # fingerprint of what answered
    text: str
    finish: Literal["stop", "length", "cancelled"]
    history: tuple[Message, ...] = ()
    num_dropped: int = 0  # oldest turns that no longer fitted and were not shown
    num_prompt_tokens: int | None = None
    num_new_tokens: int | None = None
    seconds: float | None = None
    mark: AnswerMark | None = None
    edited: str | None = None  # what it should have been

    @property
    def wanted(self) -> str:
        """The answer as the person wants it."""
        return self.text if self.edited is None else self.edited


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTurn:
    """One prompt and what each voice answered. The user turn shown was `instruction`, a blank line, `prompt`."""

    number: int
    time: str
    system: str
    instruction: str
    prompt: str
    answers: tuple[ChatAnswer, ...]
    sampling: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTranscript:
    """A conversation as it was saved. `num_forgotten` turns stand before the last reset."""

    id: str
    path: str
    time: str
    target: str
    system: str
    instruction: str
    turns: tuple[ChatTurn, ...] = ()
    num_forgotten: int = 0
