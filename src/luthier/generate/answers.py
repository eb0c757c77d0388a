"""One order on its way to an answer, whoever computes the logits: taken, drawn token by token from a private stream, written in pieces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.core.errors import ContextError, InputError
from luthier.core.types import Message, Order, Piece, TokenLogprob
from luthier.generate.contract import check_order, find_voice
from luthier.generate.held import Held, hold
from luthier.generate.sampling import draw, likeliest, random_stream
from luthier.generate.writing import Writing
from luthier.tokens.template import ChatEncoder


@dataclass(slots=True, kw_only=True)
class Answer:
    """One order on its way."""

    ticket: int
    order: Order
    length: int  # tokens it may have at most
    voice: str
    prompt: tuple[int, ...]
    writing: Writing
    stream: torch.Generator
    held: Held | None
    num_cached: int = 0
    written: list[int] = field(default_factory=list[int])

    @property
    def ids(self) -> tuple[int, ...]:
        """All there is of it: what a row that enters (again) has to read."""
        return (*self.prompt, *self.written)

    @property
    def takes_likeliest(self) -> bool:
        """Whether its next token is the one of the largest logit, whatever else is known."""
        sampling = self.order.sampling
        return self.held is None and sampling.temperature <= 0 and sampling.repetition_penalty == 1


@dataclass(slots=True, kw_only=True)
class Desk:
    """Where an engine takes orders: their tickets, and those that wait for a row."""

    voices: tuple[str, ...]
    encoder: ChatEncoder
    context: int
    num_vocab: int
    waiting: list[Answer] = field(default_factory=list[Answer])
    last_ticket: int = 0

    def count_prompt(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, as `take` counts them. Raises InputError."""
        return len(self.encoder.encode_prompt(messages))

    def take(self, order: Order) -> int:
        """Let an order wait and return its ticket; see `TextEngine.submit` for what it raises."""
        self.waiting.append(_answer_to(order, self.last_ticket + 1, self))
        self.last_ticket += 1
        return self.last_ticket

    def give_up(self, ticket: int) -> None:
        """Let an order wait no more."""
        self.waiting = [answer for answer in self.waiting if answer.ticket != ticket]


def _answer_to(order: Order, ticket: int, desk: Desk) -> Answer:
    """The answer an order asks for, nothing of it written."""
    voice = find_voice(desk.voices, order.voice)
    check_order(order)
    encoder, context = desk.encoder, desk.context
    prompt = _encode(order, encoder, desk.num_vocab)
    room = context - len(prompt)
    length = room if order.max_new_tokens is None else order.max_new_tokens
    if length > room or room < 1:
        raise ContextError(
            f"the prompt has {len(prompt)} tokens and the answer may take {max(1, length)}; the model sees {context}",
            where="messages" if order.messages else "prompt",
            fix="a shorter prompt" + (f', or "max_tokens": {room}' if room > 0 else ""),
        )
    return Answer(
        ticket=ticket,
        order=order,
        length=length,
        voice=voice,
        prompt=tuple(prompt),
        writing=Writing(encoder, order.stop),
        stream=random_stream(order.sampling),
        held=hold(order, encoder, desk.num_vocab),
    )


def _encode(order: Order, encoder: ChatEncoder, num_vocab: int) -> tuple[int, ...]:
    """The prompt of an order. Raises InputError."""
    if order.text is not None:
        return encoder.encode_raw(order.text)
    if order.messages:
        return encoder.encode_prompt(order.messages, json.loads(order.tools) if order.tools else ())
    if not all(0 <= token < num_vocab for token in order.prompt_ids):
        raise InputError(f"holds a token beyond the vocabulary of {num_vocab}", where="prompt", fix='"prompt": "Once upon a time"')
    return order.prompt_ids


def draw_tokens(answers: Sequence[Answer], logits_RV: Tensor) -> list[int]:
    """The next token of each answer."""
    tokens = likeliest(logits_RV)
    for r, answer in enumerate(answers):
        if not answer.takes_likeliest:
            tokens[r] = draw_token(answer, logits_RV[r])
    return tokens


def draw_token(answer: Answer, logits_V: Tensor) -> int:
    """The next token of one answer."""
    sampling = answer.order.sampling
    seen = answer.ids if sampling.repetition_penalty != 1 else ()
    return draw(logits_V, sampling, answer.stream, seen=seen, allowed=None if answer.held is None else answer.held.allowed())


def add_token(answer: Answer, encoder: ChatEncoder, token: int, logits_V: Tensor | None) -> Piece:
    """Add a token to an answer: what may be shown of it, and whether it ends. `logits_V`: for an order that asks for log-probabilities."""
    answer.written.append(token)
    finish, text = None, ""
    if token in encoder.eos_ids:
        finish = "stop"
    else:
        text = answer.writing.add(token)
        complete = answer.held is not None and answer.held.write(token)
        if answer.writing.stopped or complete:
            finish = "stop"
        elif len(answer.written) >= answer.length:
            finish = "length"
    if finish is not None:
        text += answer.writing.end()
    num_logprobs = answer.order.num_logprobs
    logprobs = () if num_logprobs is None or logits_V is None else (_logprob(encoder, token, logits_V, num_logprobs),)
    return Piece(
        ticket=answer.ticket,
        text=text,
        tokens=(token,),
        logprobs=logprobs,
        finish="stop" if finish == "length" and answer.writing.stopped else finish,
        num_prompt_tokens=len(answer.prompt),
        num_cached_tokens=answer.num_cached,
        num_new_tokens=len(answer.written),
    )


def _logprob(encoder: ChatEncoder, token: int, logits_V: Tensor, num: int) -> TokenLogprob:
    logprobs_V = torch.log_softmax(logits_V.float(), dim=-1)
    best = logprobs_V.topk(num) if num else None
    likeliest = () if best is None else tuple(zip(map(encoder.spell, best.indices.tolist()), best.values.tolist(), strict=True))
    return TokenLogprob(spelled=encoder.spell(token), logprob=float(logprobs_V[token]), likeliest=likeliest)
