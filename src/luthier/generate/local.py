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

from luthier.core.types import Generation, GenerationRequest, Sampling
from luthier.core.wait import Wait
from luthier.generate.batching import plan_batches
from luthier.generate.decode import decode
from luthier.generate.requests import RequestRows, check_fits, request_key
from luthier.generate.rows import Prefix, read_prefix
from luthier.generate.store import GenerationStore
from luthier.models.voices import Voices
from luthier.tokens.template import ChatEncoder
from luthier.tokens.tree import common_prefix_length


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
        check_fits(local.context, request, len(ids))
    num_prefix = common_prefix_length(prompts)
    keys = [
        request_key(local.encoder, request, ids, made_by=[local.fingerprint, num_prefix])
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
    writing = RequestRows(local.encoder, requests, num_vocab=local.voices.head_VE.shape[0], on_first=on_first)
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
        writing.generation(row, ids, num_prompt_tokens=len(prompt), num_cached_tokens=num_prefix, latency_s=share_s)
        for row, (prompt, ids) in enumerate(zip(prompts, written, strict=True))
    ]


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
