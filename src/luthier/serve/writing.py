"""One answer on its way out: admitted, tokenised, handed to the engine, and written in the shapes of its route."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from luthier.core.types import Piece
from luthier.serve.dispatch import Answering
from luthier.serve.forms import DONE, PING, Chance, Finish, Form, Json, sse, usage
from luthier.serve.problems import as_bytes
from luthier.serve.service import Asked, Service


@dataclass(slots=True)
class _Choice:
    """What has come of one choice."""

    texts: list[str] = field(default_factory=list[str])
    num_chars: int = 0
    tokens: list[Chance] = field(default_factory=list[Chance])
    tops: list[tuple[Chance, ...]] = field(default_factory=list[tuple[Chance, ...]])
    finish: Finish | None = None


@dataclass(slots=True, kw_only=True)
class Answer:
    """A request that the engine works on. Either `whole` or `events` is asked for, once."""

    service: Service
    asked: Asked
    form: Form
    answering: Answering
    id: str
    created_s: int
    num_prompt_tokens: int = 0  # of the one prompt that all choices share
    num_cached_tokens: int = 0
    num_new_tokens: list[int] = field(default_factory=list[int])  # of each choice up to now

    async def whole(self) -> Json:
        """The body of an answer in one piece. Raises Problem."""
        choices = [_Choice() for _ in range(self.answering.num_choices)]
        async for event in self._pieces():
            if event is not None:
                index, piece = event
                choice, (tokens, tops) = choices[index], _chances(piece)
                choice.texts.append(piece.text)
                choice.tokens += tokens
                choice.tops += tops
                choice.finish = piece.finish
        form, has_logprobs = self.form, self.asked.has_logprobs
        written = [
            form.choice(
                index,
                "".join(choice.texts),
                form.logprobs(choice.tokens, choice.tops, 0) if has_logprobs else None,
                choice.finish,
            )
            for index, choice in enumerate(choices)
        ]
        return self._head(form.whole) | {"choices": written, "usage": self._usage()}

    async def events(self) -> AsyncIterator[bytes]:
        """The server-sent events of an answer. Raises Problem."""
        form, has_logprobs = self.form, self.asked.has_logprobs
        head = self._head(form.chunk) | ({"usage": None} if self.asked.wants_usage else {})

        def chunk(choice: Json) -> bytes:
            return sse(as_bytes(head | {"choices": [choice]}))

        if form.opening is not None:
            for index in range(self.answering.num_choices):
                yield chunk(form.opening(index))
        num_chars = [0] * self.answering.num_choices
        async for event in self._pieces():
            if event is None:
                yield PING
                continue
            index, piece = event
            tokens, tops = _chances(piece)
            if piece.text or (has_logprobs and tokens):
                logprobs = form.logprobs(tokens, tops, num_chars[index]) if has_logprobs else None
                yield chunk(form.delta(index, piece.text, logprobs, None))
            num_chars[index] += len(piece.text)
            if piece.finish is not None:
                yield chunk(form.delta(index, "", None, piece.finish))
        if self.asked.wants_usage:
            yield sse(as_bytes(head | {"choices": [], "usage": self._usage()}))
        yield DONE

    async def _pieces(self) -> AsyncIterator[tuple[int, Piece] | None]:
        """What the engine adds, None now and then where it adds nothing, counted."""
        metrics, label = self.service.metrics, (("model", self.asked.offer.name),)
        self.num_new_tokens = [0] * len(self.asked.orders)
        async for event in self.service.dispatcher.events(self.answering):
            if event is not None:
                choice, piece = event
                if not self.num_prompt_tokens:
                    metrics.prompt_tokens[label] += piece.num_prompt_tokens
                    metrics.cached_tokens[label] += piece.num_cached_tokens
                    self.num_prompt_tokens, self.num_cached_tokens = piece.num_prompt_tokens, piece.num_cached_tokens
                metrics.new_tokens[label] += piece.num_new_tokens - self.num_new_tokens[choice]
                self.num_new_tokens[choice] = piece.num_new_tokens
            yield event

    def _head(self, kind: str) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created_s,
            "model": self.asked.offer.name,
            "system_fingerprint": self.service.fingerprint,
        }

    def _usage(self) -> Json:
        return usage(prompt_tokens=self.num_prompt_tokens, cached_tokens=self.num_cached_tokens, new_tokens=sum(self.num_new_tokens))


async def open_answer(service: Service, asked: Asked, form: Form) -> Answer:
    """Admit a request and hand it to the engine. Raises Problem, and then holds no places."""
    answering = service.dispatcher.admit(len(asked.orders))
    try:
        await service.dispatcher.begin(answering, asked.orders)
    except BaseException:
        service.dispatcher.leave(answering)
        raise
    return Answer(
        service=service,
        asked=asked,
        form=form,
        answering=answering,
        id=form.id_prefix + secrets.token_hex(12),
        created_s=int(time.time()),
    )


def _chances(piece: Piece) -> tuple[list[Chance], list[tuple[Chance, ...]]]:
    """The tokens of a piece and the likeliest at their places, as the wire names them."""
    tokens = [_chance(token.spelled, token.logprob) for token in piece.logprobs]
    return tokens, [tuple(_chance(*other) for other in token.likeliest) for token in piece.logprobs]


def _chance(spelled: bytes, logprob: float) -> Chance:
    return spelled.decode("utf-8", "replace"), spelled, logprob
