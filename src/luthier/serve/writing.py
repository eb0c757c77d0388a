"""One answer on its way out: admitted, tokenised, handed to the engine, and written in the shapes of its route."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from luthier.core.seeds import seed_for
from luthier.generate.engine import EngineRequest, Piece
from luthier.serve.dispatch import Answering
from luthier.serve.forms import DONE, PING, Chance, Finish, Form, Json, sse, usage
from luthier.serve.problems import Problem, as_bytes
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
    num_prompt_tokens: int
    id: str
    created_s: int
    num_cached_tokens: int = 0
    num_new_tokens: int = 0

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
        form, has_logprobs = self.form, self.asked.num_logprobs is not None
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
        form, has_logprobs = self.form, self.asked.num_logprobs is not None
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
        metrics.prompt_tokens[label] += self.num_prompt_tokens
        async for event in self.service.dispatcher.events(self.answering):
            if event is not None:
                piece = event[1]
                self.num_new_tokens += piece.num_new_tokens
                metrics.new_tokens[label] += piece.num_new_tokens
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
        return usage(prompt_tokens=self.num_prompt_tokens, cached_tokens=self.num_cached_tokens, new_tokens=self.num_new_tokens)


async def open_answer(service: Service, asked: Asked, form: Form) -> Answer:
    """Admit a request, tokenise its prompt and hand it to the engine. Raises Problem, and then holds no places."""
    answering = service.dispatcher.admit(asked.num_choices)
    try:
        ids = await asyncio.to_thread(service.encode, asked.prompt)
        room = service.context - len(ids)
        length = asked.max_new_tokens or room
        if length > room or room < 1:
            raise Problem(
                400,
                "context_length_exceeded",
                f"the prompt has {len(ids):,} tokens and the answer may take {max(length, 1):,}; the model sees {service.context:,}",
                param="messages",
            )
        seed = asked.seed if asked.seed is not None else secrets.randbits(62)
        # One choice draws from the seed itself, so that it is what a request for one alone gives.
        seeds = [seed if choice == 0 else seed_for(seed, f"choice/{choice}") for choice in range(asked.num_choices)]
        await service.dispatcher.begin(answering, [_engine_request(asked, ids, length, seed) for seed in seeds])
    except BaseException:
        service.dispatcher.leave(answering)
        raise
    return Answer(
        service=service,
        asked=asked,
        form=form,
        answering=answering,
        num_prompt_tokens=len(ids),
        id=form.id_prefix + secrets.token_hex(12),
        created_s=int(time.time()),
    )


def _engine_request(asked: Asked, ids: tuple[int, ...], length: int, seed: int) -> EngineRequest:
    return EngineRequest(
        prompt_ids=ids,
        max_new_tokens=length,
        adapter=asked.offer.adapter,
        temperature=asked.draw.temperature,
        top_p=asked.draw.top_p,
        top_k=asked.draw.top_k,
        min_p=asked.draw.min_p,
        repetition_penalty=asked.draw.repetition_penalty,
        seed=seed,
        stop=asked.stops,
        num_logprobs=asked.num_logprobs,
        json_schema=asked.json_schema,
    )


def _chances(piece: Piece) -> tuple[list[Chance], list[tuple[Chance, ...]]]:
    tokens = [(c.text, c.spelled, c.logprob) for c, _ in piece.chances]
    tops = [tuple((o.text, o.spelled, o.logprob) for o in others) for _, others in piece.chances]
    return tokens, tops
