"""The contenders of a run: floors, prompting arms and tuned arms, planned from the training rows alone."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from luthier.arms.classic import lazy_classifier
from luthier.arms.documents import Grounding, PassageIndex, index_passages, with_passages
from luthier.arms.floor import majority, nearest_neighbour
from luthier.arms.index import Embed, RetrievalIndex, build_index
from luthier.arms.orders import AS_DRAWN, shot_orders
from luthier.arms.prompts import (
    Arm,
    Candidate,
    Shared,
    fitting_shots,
    instructed,
    num_chars,
    shared_parts,
    spread_shots,
    with_shots,
    with_trained_shots,
    zero_shot,
)
from luthier.arms.wordings import NUM_WORDINGS, reminder, wordings
from luthier.core.errors import ConfigError, EndpointError, InputError
from luthier.core.types import ArmFamily, Example, Message, TaskProfile
from luthier.data.documents import Documents, Passage

ARM_NAMES = (
    "majority", "nearest neighbour", "TF-IDF + logistic regression", "zero-shot", "instructed", "instruction optimised", "few-shot",
    "few-shot retrieved", "few-shot by embeddings", "documents", "documents by embeddings", "tuned", "tuned + retrieval",
    "tuned + embeddings", "tuned + documents",
)  # fmt: skip
SHOT_ARMS = ("few-shot", "few-shot retrieved", "few-shot by embeddings", "tuned + retrieval", "tuned + embeddings")
FIXED = (
    "The same solved examples before every item. Searched within the budget of the other arms: numbers and draws of examples on half of "
    "the dev items, then other orders of the best of them, then the best of all on the other half."
)
NUM_DRAWS = 2  # fixed few-shot: different draws of shots tried for each k
MIN_CONSTANT_SHARE = 0.1  # of the rows with one and the same answer, from which on always giving it is a contender
MAX_SAMPLE_ROWS = 16  # training rows on which prompt lengths are measured

Build = Callable[[Example], tuple[Message, ...]]
BuildWithShots = Callable[[Example, Sequence[Example]], tuple[Message, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """A candidate before its length is known. `whole` builds it without leaving shots out; None: `build` never does."""

    params: Mapping[str, str]
    build: Build
    whole: Build | None = None
    passages: Callable[[Example], tuple[Passage, ...]] | None = None
    orders: Callable[[int], tuple[tuple[str, Build], ...]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Who turns texts into vectors, and how a run calls it."""

    by: str
    embed: Embed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Near:
    """What is found by embeddings; or why nothing is."""

    by: str
    index: RetrievalIndex | None = None
    documents: PassageIndex | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What all arms are planned from."""

    rows: tuple[Example, ...]  # in order of id
    profile: TaskProfile
    shared: Shared
    index: RetrievalIndex
    seed: int
    shots: tuple[int, ...]
    max_prompt_chars: int
    documents: PassageIndex | None
    num_passages: tuple[int, ...]
    near: _Near | None


def plan_arms(
    train: Sequence[Example],
    profile: TaskProfile,
    *,
    seed: int,
    shots: Sequence[int] = (2, 4, 8),
    max_prompt_chars: int,
    documents: Documents | None = None,
    num_passages: Sequence[int] = (1, 2, 4),
    embeddings: Embeddings | None = None,
) -> tuple[Arm, ...]:
    """All arms of a run; the same training rows and seed give the same arms, whatever the order of the rows.

    With `documents` there are two more: passages of them before each item, with the base and with the tuned model.
    With `embeddings` the arms that look something up are there once more, by these; where they fail, such an arm says so.
    The arms with a choice get the same number of candidates: 2 x len(shots), up to the 6 forms there are of "instructed". The
    caller gives as many `num_passages` as `shots`.
    A candidate whose prompt would exceed `max_prompt_chars` (characters of all messages) on most rows, or that asks for
    more shots than there are rows, is left out, and the arm's description says so; an arm left without candidates has
    `failed` set. A retrieved prompt drops its farthest shots where an item is too long. Nothing else is ever shortened.

    Raises ConfigError for unusable `shots` or `max_prompt_chars`, InputError if there are no rows to learn from.
    """
    if not shots or any(k < 1 for k in shots) or len(set(shots)) != len(shots):
        raise ConfigError(f"shots is {tuple(shots)!r}, expected different numbers >= 1", where="arms.shots", fix="--set arms.shots=[2,4,8]")
    if max_prompt_chars < 1:
        raise ConfigError(f"max_prompt_chars is {max_prompt_chars}, expected >= 1", where="max_prompt_chars", fix="max_prompt_chars: 8000")
    rows = tuple(sorted((row for row in train if row.kind != "text" and row.desirable is not False), key=lambda row: row.id))
    if not rows:
        raise InputError("no training row with a prompt and a wanted response", fix="give instruction / input / response rows")
    plan = _Plan(
        rows=rows,
        profile=profile,
        shared=shared_parts(rows),
        index=build_index(rows),
        seed=seed,
        shots=tuple(shots),
        max_prompt_chars=max_prompt_chars,
        documents=None if documents is None else index_passages(documents),
        num_passages=tuple(num_passages),
        near=None if embeddings is None else _near(rows, documents, embeddings),
    )
    return _all_arms(plan)


def _all_arms(plan: _Plan) -> tuple[Arm, ...]:
    as_is = (_Way(params={}, build=zero_shot),)
    shots_first = partial(with_shots, shared=plan.shared)
    retrieved = _retrieved_ways(plan, shots_first, plan.index)
    tuned_retrieved = _retrieved_ways(plan, with_trained_shots, plan.index)
    bare = Shared(system=None, instruction=None)  # the turn of a tuned model says all, as it was trained
    return (
        *_floors(plan),
        _arm(plan, "zero-shot", "prompt", "The item as it is.", as_is),
        _arm(plan, "instructed", "prompt", "The instruction with the exact form of the answer.", _instructed_ways(plan)),
        _arm(plan, "few-shot", "prompt", FIXED, _fixed_ways(plan)),
        _arm(plan, "few-shot retrieved", "prompt", "The most similar solved examples before each item.", retrieved),
        *_shots_by_embeddings(plan, "few-shot by embeddings", "prompt", shots_first),
        *_grounded(plan, "documents", "prompt", plan.shared),
        *_grounded_by_embeddings(plan, "documents by embeddings", "prompt", plan.shared),
        _arm(plan, "tuned", "tuned", "The fine-tuned model, prompted as trained.", as_is),
        _arm(
            plan, "tuned + retrieval", "tuned", "The fine-tuned model, the most similar solved examples before each item.", tuned_retrieved
        ),
        *_shots_by_embeddings(plan, "tuned + embeddings", "tuned", with_trained_shots),
        *_grounded(plan, "tuned + documents", "tuned", bare),
    )


def _near(rows: Sequence[Example], documents: Documents | None, embeddings: Embeddings) -> _Near:
    """Training rows and passages by embeddings."""
    try:
        index = build_index(rows, embeddings.embed)
        passages = None if documents is None else index_passages(documents, embeddings.embed)
    except EndpointError as error:
        return _Near(by=embeddings.by, failed=str(error))
    return _Near(by=embeddings.by, index=index, documents=passages)


def _shots_by_embeddings(plan: _Plan, name: str, family: ArmFamily, layout: BuildWithShots) -> tuple[Arm, ...]:
    """The most similar solved examples, similar by the cosine of their embeddings."""
    if plan.near is None:
        return ()
    ways = () if plan.near.index is None else _retrieved_ways(plan, layout, plan.near.index)
    who = "The fine-tuned model, the" if family == "tuned" else "The"
    return (_by_embeddings(plan, plan.near, name, family, f"{who} most similar solved examples before each item, found", ways),)


def _grounded_by_embeddings(plan: _Plan, name: str, family: ArmFamily, shared: Shared) -> tuple[Arm, ...]:
    """Passages of the documents, near by the cosine of their embeddings."""
    if plan.near is None or plan.documents is None:
        return ()
    ways = () if plan.near.documents is None else _passage_ways(plan, plan.near.documents, shared)
    return (_by_embeddings(plan, plan.near, name, family, "Passages of the reference documents before each item, found", ways),)


def _by_embeddings(plan: _Plan, near: _Near, name: str, family: ArmFamily, description: str, ways: Sequence[_Way]) -> Arm:
    described = (
        f"{description} by the embeddings of {near.by}. The time it takes to embed an item is not in the waiting times, nor its "
        "price in the cost."
    )
    if near.failed is not None:
        return Arm(name=name, family=family, model="tuned" if family == "tuned" else "base", description=described, failed=near.failed)
    return _arm(plan, name, family, described, [replace(way, params={**way.params, "retrieved by": near.by}) for way in ways])


def _grounded(plan: _Plan, name: str, family: ArmFamily, shared: Shared) -> tuple[Arm, ...]:
    """The arm with passages of the documents, where there are any: their number, and the best match first or last."""
    if plan.documents is None:
        return ()
    head = "Matching passages of the reference documents before each item."
    if family == "tuned":
        head = "The fine-tuned model, matching passages of the documents before each item."
    described = f"{head} {plan.documents.documents.described}."
    return (_arm(plan, name, family, described, _passage_ways(plan, plan.documents, shared)),)


def _passage_ways(plan: _Plan, documents: PassageIndex, shared: Shared) -> tuple[_Way, ...]:
    ways: list[_Way] = []
    for nearest_last in (True, False):
        for k in plan.num_passages:
            grounding = Grounding(index=documents, k=k, nearest_last=nearest_last, shared=shared, max_prompt_chars=plan.max_prompt_chars)
            unbounded = replace(grounding, max_prompt_chars=None)
            ways.append(
                _Way(  # "retrieved": a tuned arm with it is a joint one to the verdict
                    params={
                        "retrieved passages": str(k),
                        "order": f"best match {'last' if nearest_last else 'first'}",
                        "documents": documents.documents.digest,
                    },
                    build=partial(_show_passages, grounding=grounding, query=plan.index.query_text),
                    whole=partial(_show_passages, grounding=unbounded, query=plan.index.query_text),
                    passages=partial(_passages_of, grounding=grounding, query=plan.index.query_text),
                )
            )
    return tuple(ways)


def _passages_of(example: Example, *, grounding: Grounding, query: Callable[[Example], str]) -> tuple[Passage, ...]:
    return grounding.passages(example, query(example))


def _show_passages(example: Example, *, grounding: Grounding, query: Callable[[Example], str]) -> tuple[Message, ...]:
    return with_passages(example, grounding.passages(example, query(example)), shared=grounding.shared)


def _floors(plan: _Plan) -> tuple[Arm, ...]:
    """What needs no language model. A classifier only where the answers are a closed set of labels; the most frequent answer also
    where short answers often are the same one, as where many questions cannot be answered."""

    def floor(name: str, description: str, answer: Callable[[Example], str]) -> Arm:
        return Arm(name=name, family="floor", model="none", description=f"No model: {description}", answer=answer)

    nearest = floor("nearest neighbour", "the response of the most similar training row (BM25).", nearest_neighbour(plan.index))
    constant = floor("majority", "always the most frequent training response.", majority(plan.rows))
    if plan.profile.kind != "label":
        most = max(Counter(row.response for row in plan.rows).values())
        is_frequent = plan.profile.kind == "short" and most >= MIN_CONSTANT_SHARE * len(plan.rows)
        return (constant, nearest) if is_frequent else (nearest,)
    query = plan.index.query_text
    classify = lazy_classifier([query(row) for row in plan.rows], [row.response for row in plan.rows], seed=plan.seed)
    return (
        constant,
        nearest,
        floor(
            "TF-IDF + logistic regression",
            "a classic classifier on words and word pairs, trained on the training rows in seconds.",
            lambda example: classify(query(example)),
        ),
    )


def for_model(arms: Sequence[Arm], suffix: str) -> tuple[Arm, ...]:
    """The prompting arms once more for another model, named "arm · suffix"; floors and tuned arms are left out."""
    return tuple(replace(arm, name=f"{arm.name} · {suffix}") for arm in arms if arm.family == "prompt")


def _instructed_ways(plan: _Plan) -> tuple[_Way, ...]:
    """Each wording without and with a closing reminder, as many as the few-shot arms have candidates."""
    specs, last = wordings(plan.profile, plan.rows), reminder(plan.profile)
    ways = tuple(
        _Way(
            params={"wording": str(i + 1), "reminder": "yes" if closing else "no"},
            build=partial(instructed, shared=plan.shared, spec=specs[i], reminder=closing),
        )
        for closing in ("", last)
        for i in range(NUM_WORDINGS)
    )
    return ways[: NUM_DRAWS * len(plan.shots)]


def _fixed_ways(plan: _Plan) -> tuple[_Way, ...]:
    """k fixed shots for each k, in `NUM_DRAWS` draws, each with its other orders. Within a draw a smaller k begins a larger one."""
    # A shot may take half of its even share of the prompt: room for the item and for the head is left.
    max_chars = plan.max_prompt_chars // (2 * max(plan.shots))
    ways: list[_Way] = []
    for draw in range(NUM_DRAWS):
        name = f"{plan.seed}/few-shot/{draw}"
        order = spread_shots(plan.rows, partial(_answer_group, profile=plan.profile), name=name, max_chars=max_chars)
        for k in plan.shots:
            if k <= len(plan.rows):
                build = partial(with_shots, shots=order[:k], shared=plan.shared)
                others = partial(_reordered, plan=plan, shots=order[:k], stream=f"few-shot/{draw}/orders of {k}") if k > 1 else None
                named = {"order": AS_DRAWN} if others else {}
                ways.append(_Way(params={"k": str(k), "draw": str(draw + 1), **named}, build=build, orders=others))
    return tuple(ways)


def _reordered(number: int, *, plan: _Plan, shots: Sequence[Example], stream: str) -> tuple[tuple[str, Build], ...]:
    """The same shots in other orders."""
    group = partial(_answer_group, profile=plan.profile)
    found = shot_orders(shots, plan.rows, number=number, group=group, query=plan.index.query_text, seed=plan.seed, stream=stream)
    return tuple((name, partial(with_shots, shots=other, shared=plan.shared)) for name, other in found)


def _answer_group(row: Example, profile: TaskProfile) -> str:
    """What fixed shots are spread over: the closed-set values of a JSON answer, else the answer itself."""
    if not profile.json_enums:
        return row.response
    try:
        value: object = json.loads(row.response)
    except (ValueError, RecursionError):
        return ""
    return json.dumps([value.get(key) for key in sorted(profile.json_enums)]) if isinstance(value, dict) else ""


def _retrieved_ways(plan: _Plan, layout: BuildWithShots, index: RetrievalIndex) -> tuple[_Way, ...]:
    """The k nearest training rows as shots, for each k, the nearest last or first."""
    ways: list[_Way] = []
    for nearest in ("last", "first"):
        for k in plan.shots:
            if k <= len(plan.rows):
                build = partial(_retrieved, index=index, layout=layout, k=k, nearest_last=nearest == "last")
                ways.append(
                    _Way(
                        params={"k": str(k), "order": f"nearest {nearest}"},
                        build=partial(build, max_prompt_chars=plan.max_prompt_chars),
                        whole=partial(build, max_prompt_chars=None),
                    )
                )
    return tuple(ways)


def _retrieved(
    example: Example, *, index: RetrievalIndex, layout: BuildWithShots, k: int, nearest_last: bool, max_prompt_chars: int | None
) -> tuple[Message, ...]:
    """One retrieved prompt; never with the item itself as a shot."""
    found = index.search(index.query_text(example), k, exclude_id=example.id)

    def build(nearest_first: Sequence[Example]) -> tuple[Message, ...]:
        return layout(example, tuple(reversed(nearest_first)) if nearest_last else nearest_first)

    return build(found) if max_prompt_chars is None else fitting_shots(found, build, max_prompt_chars=max_prompt_chars)


def _arm(plan: _Plan, name: str, family: ArmFamily, description: str, ways: Sequence[_Way]) -> Arm:
    """The arm with the candidates that fit; what was left out, and why, at the end of the description."""
    sample = plan.rows[:: max(1, len(plan.rows) // MAX_SAMPLE_ROWS)][:MAX_SAMPLE_ROWS]
    candidates: list[Candidate] = []
    too_few = [str(k) for k in plan.shots if k > len(plan.rows)] if name in SHOT_ARMS else []
    left_out = [f"k = {', '.join(too_few)}: there are only {len(plan.rows)} training rows"] if too_few else []
    for way in ways:
        whole = statistics.median_low(num_chars((way.whole or way.build)(row)) for row in sample)
        if whole > plan.max_prompt_chars:
            params = ", ".join(f"{key} {value}" for key, value in way.params.items()) or "the prompt"
            left_out.append(f"{params}: {whole:,} characters, more than {plan.max_prompt_chars:,}")
            continue
        prompt_chars = statistics.median_low(num_chars(way.build(row)) for row in sample)
        candidates.append(
            Candidate(params=way.params, build=way.build, prompt_chars=prompt_chars, passages=way.passages, orders=way.orders)
        )
    notes = f" Left out: {'; '.join(left_out)}." if left_out else ""
    return Arm(
        name=name,
        family=family,
        model="tuned" if family == "tuned" else "base",
        description=description + notes,
        candidates=tuple(candidates),
        failed=None if candidates else f"no prompt of this arm can be used.{notes}",
    )
