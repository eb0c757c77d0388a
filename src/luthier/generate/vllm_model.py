"""Generation with vLLM for an evaluation: it computes and draws the tokens, all a request asks of its answer is as in `local`.

What differs: bf16 rounds otherwise there, so that of two tokens nearly as likely it may take the other, and drawn answers come from vLLM's
own random streams. So the program is in the key of every stored answer, by the fingerprint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import exp
from typing import Any

import torch

from luthier.core.errors import ModelError
from luthier.core.types import Generation, GenerationRequest, Order, Sampling
from luthier.core.wait import Wait
from luthier.generate.requests import RequestRows, check_fits, request_key
from luthier.generate.store import GenerationStore
from luthier.generate.vllm_package import Vllm, ask
from luthier.tokens.template import ChatEncoder

MAX_ALLOWED = 256  # tokens whose log-probabilities are looked at where an answer is held to labels
TAIL = 1e-3  # probability that may lie on tokens beyond these; with more there, the probability of a label is not known
CHUNKS = 4  # times as many requests as are answered at once: what a stop may lose


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmModel:
    """One voice of an opened vLLM. `fingerprint` names base, adapter, dtype, device and program; it is part of every cache key."""

    vllm: Vllm
    voice: str  # of `vllm.loras`; any other: the base model
    encoder: ChatEncoder
    fingerprint: str
    context: int
    num_vocab: int

    @property
    def program(self) -> str:
        """What computes, for the record."""
        return f"vLLM {self.vllm.version}"


def generate_in_vllm(
    model: VllmModel,
    requests: Sequence[GenerationRequest],
    *,
    batch: int,
    store: GenerationStore,
    on_progress: Callable[[int, int], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Generation, ...]:
    """Complete every request, in the order given; see `local.generate`. `batch`: as many as vLLM was opened for.

    `latency_s` of a generation is its share of the wall time of those it was answered with. Raises InputError for a prompt that does not
    fit or a form vLLM does not take, ModelError where vLLM fails, and KeyboardInterrupt when asked to stop.
    """
    prompts = [model.encoder.encode_prompt(request.messages) for request in requests]
    for request, ids in zip(requests, prompts, strict=True):
        check_fits(model.context, request, len(ids))
    keys = [request_key(model.encoder, request, ids, made_by=[model.fingerprint]) for request, ids in zip(requests, prompts, strict=True)]
    found = [store.get(key) for key in keys]
    missing = [i for i, generation in enumerate(found) if generation is None]
    num_known = len(requests) - len(missing)
    on_progress(num_known, len(requests))
    for start in range(0, len(missing), CHUNKS * batch):
        chunk = missing[start : start + CHUNKS * batch]
        told = partial(_tell, on_progress, num_known + start, len(requests))
        fresh = _answer(model, [requests[i] for i in chunk], [prompts[i] for i in chunk], should_stop, on_whole=told)
        for i, generation in zip(chunk, fresh, strict=True):
            store.put(keys[i], generation)
            found[i] = store.get(keys[i]) or generation  # the first one stored, as a resumed run will read it
    return tuple(replace(g, item_id=request.item_id) for g, request in zip(found, requests, strict=True) if g is not None)


def _tell(on_progress: Callable[[int, int], None], before: int, total: int, num: int) -> None:
    on_progress(before + num, total)


def single_latency(model: VllmModel, request: GenerationRequest) -> Wait:
    """The request on its own, what it shares with those before warm in vLLM's prefix cache: what one user waits."""
    first: list[float] = []
    started = time.perf_counter()
    ids = model.encoder.encode_prompt(request.messages)
    [found] = _answer(model, [request], [ids], lambda: False, on_first=lambda: first.append(time.perf_counter()))
    return Wait(seconds=found.latency_s, first_s=first[0] - started if first else None, num_new_tokens=found.num_new_tokens or 0)


def _answer(
    model: VllmModel,
    requests: Sequence[GenerationRequest],
    prompts: Sequence[Sequence[int]],
    should_stop: Callable[[], bool],
    *,
    on_whole: Callable[[int], None] = lambda num: None,
    on_first: Callable[[], None] | None = None,
) -> list[Generation]:
    """All of them to their ends, as many at once as vLLM was opened for. `on_whole` is told how many are."""
    started = time.perf_counter()
    writing = _Writing(model, requests, RequestRows(model.encoder, requests, num_vocab=model.num_vocab, on_first=on_first))
    ends = sorted(model.encoder.eos_ids)
    try:
        for row, (request, ids) in enumerate(zip(requests, prompts, strict=True)):
            ask(model.vllm, str(row), writing.order(row), ids, length=request.max_new_tokens, ends=ends, voice=model.voice)
            writing.open.add(row)
        while writing.open:
            if should_stop():
                raise KeyboardInterrupt
            for output in _step(model, should_stop):
                writing.add(int(output.request_id), output)
            on_whole(len(requests) - len(writing.open))
    except BaseException:
        model.vllm.running.abort_request([str(row) for row in writing.open])
        raise
    share_s = (time.perf_counter() - started) / len(requests)
    return [writing.generation(row, len(ids), share_s) for row, ids in enumerate(prompts)]


def _step(model: VllmModel, should_stop: Callable[[], bool]) -> Sequence[Any]:
    try:
        return model.vllm.running.step()
    except Exception as error:  # it computes for all requests: whatever it fails with, all are lost
        if should_stop():  # Ctrl-C reaches a process of its own too
            raise KeyboardInterrupt from error
        what = f"{model.program} failed: {error}"[:300]
        raise ModelError(what, where="the engine", fix="repeat the command: it goes on; or without --vllm: --run-dir NEW") from error


class _Writing:
    """The answers under way, request by request; `open` are those not finished."""

    def __init__(self, model: VllmModel, requests: Sequence[GenerationRequest], rows: RequestRows) -> None:
        self.open: set[int] = set()
        self._model, self._requests, self._rows = model, requests, rows
        self._written: list[list[int]] = [[] for _ in requests]
        self._num_cached = [0] * len(requests)
        self._is_known = [True] * len(requests)  # the probabilities of all labels there were

    def order(self, row: int) -> Order:
        """What vLLM is told of a request. Stop texts and complete forms are seen here, token by token."""
        request, rows = self._requests[row], self._rows
        stop = rows.stops[row]
        labels = () if rows.choices[row] is None else request.choices
        return Order(
            sampling=Sampling(temperature=request.temperature, seed=request.seed),
            num_logprobs=MAX_ALLOWED if labels else None,
            choices=(*labels, *(label + stop for label in labels if stop)),
            json_schema=None if rows.schemas[row] is None else request.json_schema,
        )

    def add(self, row: int, output: Any) -> None:
        """What vLLM wrote of one answer in a step."""
        if row not in self.open:
            return
        completion, eos = output.outputs[0], self._model.encoder.eos_ids
        self._num_cached[row] = output.num_cached_tokens or 0
        for place, token in enumerate(completion.token_ids):
            if self._rows.choices[row] is not None:
                self._choose(row, completion.logprobs[place])
            goes_on = token not in eos
            if goes_on:
                self._written[row].append(token)
                goes_on = self._rows.goes_on(row, token) and len(self._written[row]) < self._requests[row].max_new_tokens
            if not goes_on:
                self.open.discard(row)
                if not output.finished:  # a stop text or a whole form, of which vLLM knows nothing
                    self._model.vllm.running.abort_request([str(row)])
                return
        if output.finished:
            self.open.discard(row)
            if completion.finish_reason not in ("stop", "length"):
                where = f"item {self._requests[row].item_id}"
                what = f"{self._model.program} gave up an answer: {completion.finish_reason}"
                raise ModelError(what, where=where, fix="measure without --vllm: --run-dir NEW")

    def generation(self, row: int, num_prompt_tokens: int, latency_s: float) -> Generation:
        """A finished answer."""
        found = self._rows.generation(
            row,
            self._written[row],
            num_prompt_tokens=num_prompt_tokens,
            num_cached_tokens=self._num_cached[row],
            latency_s=latency_s,
        )
        return found if self._is_known[row] else replace(found, choice_logprob=None)

    def _choose(self, row: int, known: Mapping[int, Any]) -> None:
        """`known`: token -> its log-probability among those vLLM lets follow, the likeliest."""
        allowed = self._rows.allowed(row)
        assert allowed is not None
        logprob = {token: float(one.logprob) for token, one in known.items()}
        ids = [token for token in allowed.tolist() if token in logprob]
        logprobs = torch.tensor([logprob[token] for token in ids])
        if len(ids) > 1:
            self._rows.on_choice(row, torch.tensor(ids), torch.log_softmax(logprobs, dim=-1))
        self._is_known[row] &= sum(map(exp, logprob.values())) > 1 - TAIL
