"""An engine without a model: answers come from a function or a list. For tests of what stands on an engine; no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from luthier.core.errors import ContextError
from luthier.core.types import Message, Order, Piece, TokenLogprob
from luthier.generate.contract import check_order, find_voice

Script = Callable[[Order], str]


@dataclass(slots=True, kw_only=True)
class _Answer:
    order: Order
    characters: str
    finish: str  # "stop" or "length"
    done: int = 0


@dataclass(slots=True, kw_only=True)
class ScriptedEngine:
    """Writes one character of each active answer a step; a character counts as a token, in the prompt too."""

    answers: Script | Sequence[str]  # of a list, the n-th order gets the n-th, from the start again when it is used up
    voices: tuple[str, ...] = ("scripted",)
    context: int = 4096
    max_active: int = 8
    num_taken: int = 0
    _active: dict[int, _Answer] = field(default_factory=dict[int, _Answer])
    _waiting: dict[int, Order] = field(default_factory=dict[int, Order])

    @property
    def num_active(self) -> int:
        """Orders being answered."""
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        """Orders not begun."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._active and not self._waiting

    def submit(self, order: Order) -> int:
        """As the true engine: the same errors for voice, numbers and length."""
        find_voice(self.voices, order.voice)
        check_order(order)
        num_prompt = len(_prompt(order))
        length = max(1, self._length(order))
        if num_prompt + length > self.context:
            raise ContextError(
                f"the prompt has {num_prompt} tokens and the answer may take {length}; the model sees {self.context}",
                where="messages",
                fix="a shorter prompt",
            )
        self.num_taken += 1
        self._waiting[self.num_taken] = order
        return self.num_taken

    def step(self) -> tuple[Piece, ...]:
        """One character of each active answer; the last piece comes with the last character."""
        while self._waiting and len(self._active) < self.max_active:
            ticket = next(iter(self._waiting))
            self._active[ticket] = self._begin(ticket, self._waiting.pop(ticket))
        pieces: list[Piece] = []
        for ticket, answer in list(self._active.items()):
            char = answer.characters[answer.done : answer.done + 1]
            answer.done += 1
            is_last = answer.done >= len(answer.characters)
            if is_last:
                del self._active[ticket]
            wanted = char and answer.order.num_logprobs is not None
            spelled = char.encode("utf-8", "surrogatepass")
            likeliest = ((spelled, -0.5),) * min(1, answer.order.num_logprobs or 0)
            pieces.append(
                Piece(
                    ticket=ticket,
                    text=char,
                    tokens=tuple(map(ord, char)),
                    logprobs=(TokenLogprob(spelled=spelled, logprob=-0.5, likeliest=likeliest),) if wanted else (),
                    finish=None if not is_last else "length" if answer.finish == "length" else "stop",
                    num_prompt_tokens=len(_prompt(answer.order)),
                    num_cached_tokens=0,
                    num_new_tokens=answer.done,
                )
            )
        return tuple(pieces)

    def cancel(self, ticket: int) -> None:
        """Give an order up."""
        self._waiting.pop(ticket, None)
        self._active.pop(ticket, None)

    def _begin(self, ticket: int, order: Order) -> _Answer:
        text = self.answers(order) if callable(self.answers) else self.answers[(ticket - 1) % len(self.answers)]
        for stop in order.stop:
            text = text.partition(stop)[0]
        length = self._length(order)
        return _Answer(order=order, characters=text[:length], finish="length" if len(text) > length else "stop")

    def _length(self, order: Order) -> int:
        return self.context - len(_prompt(order)) if order.max_new_tokens is None else order.max_new_tokens


def _prompt(order: Order) -> str:
    if order.prompt_ids:
        return "".join(map(chr, order.prompt_ids))
    return order.text if order.text is not None else order.tools + "".join(_turn(message) for message in order.messages)


def _turn(message: Message) -> str:
    return f"{message.role}: {message.content}\n"
