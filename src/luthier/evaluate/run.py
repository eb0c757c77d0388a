"""Arms on items: the candidate that dev chose is measured once on the locked test items.

Dev and test go through the same two functions, `answer` and `score_generations`; nothing here knows which set it is given, and
only `evaluate/choice.py` returns a choice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

from luthier.arms.prompts import Arm, Candidate
from luthier.arms.search import Chosen
from luthier.core.console import note
from luthier.core.errors import EndpointError, InputError
from luthier.core.types import HELD, ArmResult, Example, Generation, GenerationRequest, ItemScore, Message
from luthier.core.wait import Wait
from luthier.generate.choices import open_choices
from luthier.generate.endpoint import Endpoint, ask
from luthier.generate.form_probe import probe_form
from luthier.generate.held import can_hold_to_schema
from luthier.generate.local import (
    LocalModel,
    generate,
    peak_memory_gib,
    reset_peak_memory,
    shared_prefix,
    single_latencies,
)
from luthier.generate.server_form import form_of, held_words
from luthier.generate.store import GenerationStore
from luthier.generate.vllm_model import VllmModel, generate_in_vllm, single_latency
from luthier.kernels.device import CPU, free_cached_memory, peak_device_gib, reset_peak_device_memory
from luthier.metrics.catalogue import Scored
from luthier.train.loop import ran_out_of_memory
from luthier.train.watchdog import UNWATCHED, Watchdog

HereModel = LocalModel | VllmModel
Model = HereModel | Endpoint
Score = Callable[[Example, str], Scored]
WARM_UP_TOKENS = 4
ANSWERED_BY = "answered by"  # in an arm's params: the program or the server's model, where it is not Luthier's own engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all arms are measured with: the same scoring, answer length, batch and store."""

    score: Score
    metric: str
    max_new_tokens: int
    stop: str  # ends the answer of a model without chat training
    choices: tuple[str, ...]  # answers are held to these while they are written; empty: to nothing
    batch: int
    store: GenerationStore
    clusters: Mapping[str, str]
    on_progress: Callable[[str, int, int], None]
    should_stop: Callable[[], bool]
    json_schema: str = ""  # or to this
    watch: Watchdog = UNWATCHED


def requests_of(
    candidate: Candidate, items: Sequence[Example], *, max_new_tokens: int, stop: str, choices: tuple[str, ...], json_schema: str = ""
) -> tuple[GenerationRequest, ...]:
    """One greedy request an item."""
    return tuple(
        GenerationRequest(
            item_id=item.id,
            messages=candidate.build(item),
            max_new_tokens=max_new_tokens,
            stop=stop,
            choices=choices,
            json_schema=json_schema,
        )
        for item in items
    )


def answer(candidate: Candidate, items: Sequence[Example], model: Model, bench: Bench, label: str) -> tuple[Generation, ...]:
    """Generate for every item; what was answered before costs nothing. Raises InputError, or EndpointError for a server."""
    requests = requests_of(
        candidate, items, max_new_tokens=bench.max_new_tokens, stop=bench.stop, choices=bench.choices, json_schema=bench.json_schema
    )
    return answer_all(model, requests, bench, label)


def answer_all(model: Model, requests: Sequence[GenerationRequest], bench: Bench, label: str) -> tuple[Generation, ...]:
    """As `answer`, for requests that are made already. Where memory runs out, half as many at once; stored answers are not lost."""
    if isinstance(model, Endpoint):
        told = partial(bench.on_progress, label)
        return ask(model, requests, store=bench.store, on_progress=told, should_stop=bench.should_stop)
    batch = bench.batch
    while True:
        try:
            return _answered(model, requests, bench, label, batch)
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            if batch == 1:
                raise _no_memory(label) from error
        batch = (batch + 1) // 2
        note(f"{label}: memory ran out, at most {batch} prompts at once from here on")
        free_cached_memory()  # here, where the error no longer holds the tensors of the failed attempt


def _no_memory(label: str) -> InputError:
    return InputError(
        "memory ran out while one prompt was answered", where=label, fix="--set arms.shots=[2] --run-dir NEW, or a smaller model"
    )


def _answered(model: HereModel, requests: Sequence[GenerationRequest], bench: Bench, label: str, batch: int) -> tuple[Generation, ...]:
    with bench.watch.answers() as batch_done:

        def on_progress(done: int, total: int) -> None:
            batch_done()
            bench.on_progress(label, done, total)

        if isinstance(model, VllmModel):
            return generate_in_vllm(model, requests, batch=batch, store=bench.store, on_progress=on_progress, should_stop=bench.should_stop)
        return generate(model, requests, batch=batch, store=bench.store, on_progress=on_progress, should_stop=bench.should_stop)


def score_generations(
    items: Sequence[Example], generations: Sequence[Generation], bench: Bench, candidate: Candidate | None = None
) -> tuple[ItemScore, ...]:
    """Score answers against the items' own responses. What passages the candidate showed supports an answer as the item's own text does."""
    out: list[ItemScore] = []
    for item, generation in zip(items, generations, strict=True):
        passages = () if candidate is None or candidate.passages is None else candidate.passages(item)
        shown = tuple(Message(role="user", content=passage.text) for passage in passages)
        scored = bench.score(replace(item, history=(*shown, *item.history)) if shown else item, generation.text)
        out.append(
            ItemScore(
                item_id=item.id,
                cluster=bench.clusters.get(item.id, item.id),
                text=generation.text,
                gold=item.response,
                values={**scored.values, **_of_writing(generation)},
                latency_s=generation.latency_s,
                num_prompt_tokens=generation.num_prompt_tokens,
                num_cached_tokens=generation.num_cached_tokens,
                num_new_tokens=generation.num_new_tokens,
                note=scored.note,
                sources=tuple(passage.id for passage in passages),
            )
        )
    return tuple(out)


def _of_writing(generation: Generation) -> dict[str, float | None]:
    """What is known of how the answer was written, whatever it says."""
    logprob = generation.choice_logprob
    return {"stops": float(generation.finish == "stop"), "confidence": None if logprob is None else math.exp(logprob)}


def score_without_model(arm: Arm, items: Sequence[Example], bench: Bench) -> tuple[ItemScore, ...]:
    """Items of an arm that answers by itself (nearest neighbour, majority)."""
    assert arm.answer is not None
    out: list[ItemScore] = []
    for item in items:
        started = time.perf_counter()
        text = arm.answer(item)
        seconds = time.perf_counter() - started
        scored = bench.score(item, text)
        cluster = bench.clusters.get(item.id, item.id)
        out.append(
            ItemScore(
                item_id=item.id, cluster=cluster, text=text, gold=item.response, values=scored.values, latency_s=seconds, note=scored.note
            )
        )
    return tuple(out)


def mean_score(items: Sequence[ItemScore], metric: str) -> float | None:
    """Mean over the items that could be scored; None if none could."""
    values = [value for item in items if (value := item.values.get(metric)) is not None]
    return fmean(values) if values else None


def measure(arm: Arm, chosen: Chosen, test: Sequence[Example], model: Model | None, bench: Bench, *, model_name: str) -> ArmResult:
    """The chosen candidate on the locked items, once. An arm that fails is returned as failed, never as zero."""
    result = ArmResult(
        name=arm.name,
        family=arm.family,
        model=model_name if model is not None else "",
        description=arm.description,
        items=(),
        params=dict(chosen.candidate.params) if chosen.candidate else {},
        dev_score=chosen.dev_score,
        dev_n=chosen.dev_n,
        effort=chosen.effort.as_mapping(),
        tried=chosen.tried,
        failed=chosen.failed,
    )
    if chosen.failed is not None:
        return result
    if model is None:
        return replace(result, items=score_without_model(arm, test, bench))
    assert chosen.candidate is not None
    reset_peak_memory()
    device = model.voices.device if isinstance(model, LocalModel) else CPU
    reset_peak_device_memory(device)
    try:
        generations = answer(chosen.candidate, test, model, bench, f"{arm.name}: test")
    except (InputError, EndpointError) as error:  # does not fit; a full disk or a damaged store is no property of an arm
        return replace(result, failed=str(error))
    result = replace(result, items=score_generations(test, generations, bench, chosen.candidate))
    if bench.choices or bench.json_schema:
        result = replace(result, params={**result.params, "answers": _held(model, bench, generations)})
    if isinstance(model, VllmModel):  # its memory is set aside beforehand, whatever the answers take
        return replace(result, params={**result.params, ANSWERED_BY: model.program})
    if isinstance(model, LocalModel):
        on_device = peak_device_gib(device)
        return replace(result, peak_mem_gib=peak_memory_gib() if on_device is None else on_device)
    # A server's memory is not ours to see, and asking it again for its latency would be paid for.
    served_by = ", ".join(sorted({g.served_by for g in generations if g.served_by}))
    return replace(
        result,
        latencies_s=tuple(g.latency_s for g in generations),
        params={**result.params, ANSWERED_BY: served_by or "not stated by the server"},
        effort={**result.effort, "num_test_retries": float(sum(g.num_retries for g in generations))},
    )


def hold_endpoint(endpoint: Endpoint, bench: Bench) -> Endpoint:
    """The endpoint, told whether it holds answers to the bench's form. Raises EndpointError where it does not answer at all."""
    return probe_form(endpoint, choices=bench.choices, json_schema=bench.json_schema, store=bench.store, should_stop=bench.should_stop)


def _held(model: Model, bench: Bench, generations: Sequence[Generation]) -> str:
    if isinstance(model, Endpoint):
        why_free = "" if model.holds else model.why_free or "the endpoint was not asked to hold them"
        return held_words(form_of(bench.choices, bench.json_schema), why_free, [g.text for g in generations])
    encoder = model.encoder
    if bench.json_schema:
        can_hold = can_hold_to_schema(encoder)
        return f"{HELD} JSON schema of the training answers" if can_hold else "free: this tokenizer is none to hold answers to a schema by"
    is_held = open_choices(encoder.tokenizer, bench.choices, "", encoder.eos_ids) is not None
    return f"{HELD} {len(bench.choices)} labels" if is_held else "free: the bytes of this tokenizer's tokens are not known"


def measure_latencies(
    plans: Sequence[tuple[str, Candidate, HereModel]],
    items: Sequence[Example],
    *,
    max_new_tokens: int,
    stop: str,
    choices: tuple[str, ...],
    json_schema: str = "",
    on_progress: Callable[[int, int], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, tuple[Wait, ...]]:
    """Single-request latencies of every arm, interleaved item by item so that a drift of the machine hits all arms alike.

    The first item warms up, with a few tokens, and is not counted. Raises KeyboardInterrupt when asked to stop (between items).
    """
    held = partial(requests_of, stop=stop, choices=choices, json_schema=json_schema)
    prefixes = {
        name: shared_prefix(model, held(candidate, items, max_new_tokens=max_new_tokens))
        for name, candidate, model in plans
        if not isinstance(model, VllmModel)  # which finds what it has read by itself
    }
    out: dict[str, list[Wait]] = {name: [] for name, _, _ in plans}
    for number, item in enumerate(items):
        if should_stop():
            raise KeyboardInterrupt
        for name, candidate, model in plans:
            longest = max_new_tokens if number else WARM_UP_TOKENS
            [request] = held(candidate, [item], max_new_tokens=longest)
            try:
                if isinstance(model, VllmModel):
                    wait = single_latency(model, request)
                else:
                    wait = next(single_latencies(model, [request], prefixes[name]))
            except (MemoryError, RuntimeError) as error:
                if not ran_out_of_memory(error):
                    raise
                raise _no_memory(f"{name}: one request at a time") from error
            if number:
                out[name].append(wait)
        on_progress(number + 1, len(items))
    return {name: tuple(waits) for name, waits in out.items()}
