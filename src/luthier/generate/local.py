"""Generation with a local model: the reference for every score.

Prompts are encoded with the model's own template, the prefix all of them share is read once, the rest goes through in
length-sorted batches, and every finished batch is handed to the cache before the next one starts.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from luthier.core.errors import InputError
from luthier.core.hashing import digest
from luthier.core.types import Generation, GenerationRequest, Sampling
from luthier.core.wait import Wait
from luthier.generate.batching import plan_batches
from luthier.generate.choices import Choices, ChoiceStep, open_choices
from luthier.generate.decode import decode
from luthier.generate.held import HeldToGrammar, can_hold_to_schema, hold_to_schema
from luthier.generate.rows import Prefix, read_prefix
from luthier.generate.store import GenerationStore
from luthier.models.voices import Voices
from luthier.tokens.template import ChatEncoder
from luthier.tokens.tree import common_prefix_length

STOP_TOKENS = 4  # at most so many tokens spell a stop text


@dataclass(frozen=True, slots=True)
class LocalModel:
    """An opened model, ready to generate. `fingerprint` names base, adapter and dtype; it is part of every cache key."""

    voices: Voices
    encoder: ChatEncoder
    fingerprint: str
    context: int  # tokens the model can see: its context window, or its attention window where that is shorter


def generate(
    local: LocalModel,
    requests: Sequence[GenerationRequest],
    *,
    batch: int,
    store: GenerationStore,
    on_progress: Callable[[int, int], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Generation, ...]:
    """Complete every request, in the order given.

    `latency_s` of a generation is its share of the wall time of its batch and of the shared prefix: what the item cost at
    this batch size, not how long a single user would wait (`single_latencies` measures that).
    Raises InputError for a prompt that does not fit the model's context together with its answer, and KeyboardInterrupt when
    asked to stop (between batches).
    """
    prompts = [local.encoder.encode_prompt(request.messages) for request in requests]
    for request, ids in zip(requests, prompts, strict=True):
        check_fits(local, request, len(ids))
    num_prefix = common_prefix_length(prompts)
    keys = [
        digest(
            [local.fingerprint, num_prefix, list(ids), request.max_new_tokens, request.temperature, request.seed, _stop(local, request)]
            + ([list(request.choices)] if choices_of(local, request) is not None else [])
            + ([request.json_schema] if request.json_schema and can_hold_to_schema(local.encoder) else [])
        )
        for request, ids in zip(requests, prompts, strict=True)
    ]
    plan = plan_batches([len(ids) - num_prefix for ids in prompts], num_prefix=num_prefix, batch=batch)
    prefix: Prefix | None = None
    prefix_share_s = 0.0
    done: dict[int, Generation] = {}
    on_progress(0, len(requests))
    for indices in plan:
        if should_stop():
            raise KeyboardInterrupt
        found = {i: store.get(keys[i]) for i in indices}
        if all(found.values()):
            done |= {i: replace(g, item_id=requests[i].item_id) for i, g in found.items() if g is not None}
        else:
            if prefix is None:
                started = time.perf_counter()
                prefix = read_prefix(local.voices, prompts[0][:num_prefix], voice=local.voices.own)
                prefix_share_s = (time.perf_counter() - started) / len(requests)
            fresh = _decode_batch(local, [requests[i] for i in indices], [prompts[i] for i in indices], prefix, prefix_share_s)
            for i, generation in zip(indices, fresh, strict=True):
                store.put(keys[i], generation)
                kept = store.get(keys[i]) or generation  # the first one stored, as a resumed run will read it
                done[i] = replace(kept, item_id=requests[i].item_id)
        on_progress(len(done), len(requests))
    return tuple(done[i] for i in range(len(requests)))


def check_fits(local: LocalModel, request: GenerationRequest, num_prompt_tokens: int) -> None:
    """Raise InputError if prompt and answer together exceed what the model can see."""
    if num_prompt_tokens + request.max_new_tokens > local.context:
        raise InputError(
            f"the prompt has {num_prompt_tokens} tokens and the answer may take {request.max_new_tokens}; the model sees {local.context}",
            where=f"item {request.item_id}",
            fix="fewer or shorter examples in the prompt: --set arms.shots=[2]",
        )


class _Writing:
    """What the answers of one batch are held to while they are written, and where each stands. Row by row."""

    def __init__(self, local: LocalModel, requests: Sequence[GenerationRequest], on_first: Callable[[], None] | None) -> None:
        self._encoder = local.encoder
        self._on_first = on_first
        self.stops = [_stop(local, request) for request in requests]
        self.choices = [choices_of(local, request) for request in requests]
        self.schemas = [schema_of(local, request) for request in requests]
        self.is_complete = [False] * len(requests)  # a label or an object, behind which only the end could stand
        self.spelled = [b""] * len(requests)
        self.steps: list[list[ChoiceStep]] = [[] for _ in requests]
        self._tails: list[list[int]] = [[] for _ in requests]

    @property
    def is_watched(self) -> bool:
        """Whether tokens need to be looked at one by one."""
        return any(self.stops) or any(self.choices) or any(self.schemas) or self._on_first is not None

    def allowed(self, row: int) -> Tensor | None:
        held, schema = self.choices[row], self.schemas[row]
        if schema is not None:
            return schema.allowed()
        return None if held is None else held.allowed(self.spelled[row])

    def accepts(self, row: int, token: int) -> bool:
        schema = self.schemas[row]
        return schema is None or schema.accepts(token)

    def on_choice(self, row: int, ids: Tensor, logprobs: Tensor) -> None:
        self.steps[row].append(ChoiceStep(self.spelled[row], ids, logprobs))

    def goes_on(self, row: int, token: int) -> bool:
        if self._on_first is not None:
            self._on_first()
            self._on_first = None
        held, schema = self.choices[row], self.schemas[row]
        if held is not None:
            self.spelled[row] = held.after(self.spelled[row], token)
            self.is_complete[row] = held.is_complete(self.spelled[row])
        elif schema is not None:
            self.is_complete[row] = schema.write(token)
        if self.is_complete[row]:
            return False
        self._tails[row] = [*self._tails[row][1 - STOP_TOKENS :], token]
        return not self.stops[row] or self.stops[row] not in self._encoder.decode(self._tails[row]).lstrip()

    def logprob(self, row: int) -> float | None:
        """Of the label that was written, among the labels."""
        held = self.choices[row]
        return None if held is None else held.logprob(self.spelled[row], self.steps[row])


def _decode_batch(
    local: LocalModel,
    requests: Sequence[GenerationRequest],
    prompts: Sequence[Sequence[int]],
    prefix: Prefix,
    prefix_share_s: float,
    *,
    on_first: Callable[[], None] | None = None,
) -> list[Generation]:
    """One batch to its end. `on_first` is called when the first token is there."""
    started = time.perf_counter()
    num_prefix = len(prefix.ids)
    writing = _Writing(local, requests, on_first)
    has_choices, has_schemas = any(writing.choices), any(writing.schemas)
    written = decode(
        local.voices,
        prefix,
        [ids[num_prefix:] for ids in prompts],
        max_new_tokens=[request.max_new_tokens for request in requests],
        eos_ids=local.encoder.eos_ids,
        sampling=[Sampling(temperature=request.temperature, seed=request.seed) for request in requests],
        on_token=writing.goes_on if writing.is_watched else None,
        allowed=writing.allowed if has_choices or has_schemas else None,
        accepts=writing.accepts if has_schemas and not has_choices else None,
        on_choice=writing.on_choice if has_choices else None,
    )
    share_s = (time.perf_counter() - started) / len(requests) + prefix_share_s
    return [
        Generation(
            item_id=request.item_id,
            text=_before(local.encoder.decode(ids), writing.stops[row]),
            finish="length" if len(ids) >= request.max_new_tokens and not writing.is_complete[row] else "stop",
            num_prompt_tokens=len(prompt),
            num_cached_tokens=num_prefix,
            num_new_tokens=len(ids),
            latency_s=share_s,
            choice_logprob=writing.logprob(row),
        )
        for row, (request, prompt, ids) in enumerate(zip(requests, prompts, written, strict=True))
    ]


def choices_of(local: LocalModel, request: GenerationRequest) -> Choices | None:
    """What the answer is held to while it is written; None where it is free, or the tokenizer's bytes are not known."""
    return open_choices(local.encoder.tokenizer, request.choices, _stop(local, request), local.encoder.eos_ids)


def schema_of(local: LocalModel, request: GenerationRequest) -> HeldToGrammar | None:
    """A fresh guide for one answer; None where the answer is free, or this tokenizer is none it could be held by."""
    return hold_to_schema(request.json_schema, local.encoder, local.voices.head_VE.shape[0])


def _stop(local: LocalModel, request: GenerationRequest) -> str:
    """Where an answer ends besides the end token: only models without chat training need it, they never learnt to end a turn."""
    return "" if local.encoder.is_chat else request.stop


def _before(text: str, stop: str) -> str:
    """What stands before the stop text, behind what white space the answer begins with."""
    if not stop:
        return text
    start = len(text) - len(text.lstrip())
    return text[:start] + text[start:].partition(stop)[0]


def single_latencies(local: LocalModel, requests: Sequence[GenerationRequest], prefix: Prefix) -> Iterator[Wait]:
    """Each request on its own, one after another, its shared prefix warm: what one user waits."""
    for request in requests:
        ids = local.encoder.encode_prompt(request.messages)
        first: list[float] = []
        started = time.perf_counter()
        [found] = _decode_batch(local, [request], [ids], prefix, 0.0, on_first=lambda at=first: at.append(time.perf_counter()))
        first_s = first[0] - started if first else None
        yield Wait(seconds=found.latency_s, first_s=first_s, num_new_tokens=found.num_new_tokens or 0)


def shared_prefix(local: LocalModel, requests: Sequence[GenerationRequest]) -> Prefix:
    """The prefix these requests share, read once."""
    prompts = [local.encoder.encode_prompt(request.messages) for request in requests]
    return read_prefix(local.voices, prompts[0][: common_prefix_length(prompts)], voice=local.voices.own)


def reset_peak_memory() -> None:
    """Start a new peak of this process's resident memory where the system can (Linux); elsewhere the peak is of the whole run."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_memory_gib() -> float | None:
    """Peak resident memory of this process since `reset_peak_memory`, in GiB."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
