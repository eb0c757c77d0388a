"""Stage: measure. Every arm is tuned on dev, then answers the locked test items once, then its latency is taken."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from luthier.arms.catalogue import Embeddings, for_model, plan_arms
from luthier.arms.prompts import Arm, Candidate
from luthier.arms.proposals import NAME as OPTIMISED
from luthier.arms.proposals import PROPOSAL_TOKENS
from luthier.arms.search import Chosen
from luthier.core.hashing import digest
from luthier.core.types import ArmResult, Example, Split, TaskProfile
from luthier.core.wait import Wait
from luthier.data.answer_schema import AnswerSchema, learn_schema
from luthier.data.documents import Documents
from luthier.data.instructions import read_instruction
from luthier.evaluate.choice import choose_candidate
from luthier.evaluate.run import Bench, HereModel, Model, measure, measure_latencies
from luthier.generate.endpoint import Endpoint
from luthier.metrics.catalogue import score_answer
from luthier.metrics.closed_world import abstention_markers, known_facts
from luthier.metrics.own import is_own, open_own_metric
from luthier.pipeline.propose import Proposer, given_words, measure_proposed, num_proposals
from luthier.pipeline.settings import Settings
from luthier.store.cache import GenerationCache
from luthier.store.files import atomic_write_json
from luthier.store.layout import RunFolder
from luthier.tokens.render import PLAIN_SEPARATOR
from luthier.train.watchdog import UNWATCHED, Watchdog


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureInputs:
    """What the arms are measured with."""

    split: Split
    profile: TaskProfile
    max_new_tokens: int
    metric: str
    chars_per_token: float  # for the prompt limit in characters; the exact check is made on tokens
    on_progress: Callable[[str, float, float, str], None]
    should_stop: Callable[[], bool]
    documents: Documents | None = None
    embeddings: Embeddings | None = None
    watch: Watchdog = UNWATCHED


def make_bench(settings: Settings, folder: RunFolder, inputs: MeasureInputs) -> Bench:
    """The same bench for every arm; facts and abstention phrases are learnt from train alone."""
    train = inputs.split.train
    own = open_own_metric(inputs.metric) if is_own(inputs.metric) else None
    score = partial(score_answer, profile=inputs.profile, world=known_facts(train), markers=abstention_markers(train), own=own)
    return Bench(
        score=score,
        metric=inputs.metric,
        max_new_tokens=inputs.max_new_tokens,
        stop=stop_text(train),
        choices=held_to(settings, inputs),
        json_schema=schema_of(settings, inputs).text,
        batch=settings.arms.batch,
        store=GenerationCache(folder.journal_generations),
        clusters=inputs.split.clusters,
        on_progress=lambda label, done, total: inputs.on_progress("measure", done, total, label),
        should_stop=inputs.should_stop,
        watch=inputs.watch,
    )


def held_to(settings: Settings, inputs: MeasureInputs) -> tuple[str, ...]:
    """The labels every arm of a local model is held to: prompted and tuned alike, or none of them."""
    return inputs.profile.labels if settings.arms.constrained and inputs.profile.kind == "label" else ()


def schema_of(settings: Settings, inputs: MeasureInputs) -> AnswerSchema:
    """The same for JSON answers: a schema learnt from train, which every arm of a local model is held to, or why there is none."""
    return learn_schema(inputs.split.train, inputs.profile) if settings.arms.constrained else AnswerSchema()


def stop_text(train: Sequence[Example]) -> str:
    """The blank line between turns of plain text, unless wanted answers hold one themselves."""
    return "" if any(PLAIN_SEPARATOR in example.response for example in train) else PLAIN_SEPARATOR


def planned_arms(settings: Settings, inputs: MeasureInputs, context: int) -> tuple[Arm, ...]:
    """The arms of this run, less those the user skips."""
    limit = prompt_limit(inputs, context)
    arms = plan_arms(
        inputs.split.train,
        inputs.profile,
        seed=settings.seed,
        shots=settings.arms.shots,
        max_prompt_chars=limit,
        documents=inputs.documents,
        num_passages=settings.arms.passages,
        embeddings=inputs.embeddings,
    )
    return tuple(arm for arm in arms if arm.name not in settings.arms.skip)


def prompt_limit(inputs: MeasureInputs, context: int) -> int:
    """Characters of a prompt that a model of this context takes, with room for the answer."""
    return int((context - inputs.max_new_tokens) * inputs.chars_per_token)


def proposer_of(settings: Settings, inputs: MeasureInputs, context: int, endpoint: Endpoint | None) -> Proposer | None:
    """Who proposes instructions for a model of this context: the model itself, the endpoint's, or nobody."""
    given = tuple(read_instruction(Path(path)) for path in settings.arms.instructions)
    if (settings.arms.proposer == "none" and not given) or OPTIMISED in settings.arms.skip:
        return None
    asks_endpoint = settings.arms.proposer == "endpoint" and endpoint is not None
    room = endpoint.context if endpoint is not None and asks_endpoint else context
    return Proposer(
        model=endpoint if asks_endpoint else None,
        by=given_words(given) or (endpoint.name if endpoint is not None and asks_endpoint else "the model itself"),
        number=num_proposals(settings.arms.shots),
        train=inputs.split.train,
        profile=inputs.profile,
        seed=settings.seed,
        max_question_chars=prompt_limit(inputs, room - PROPOSAL_TOKENS),
        max_prompt_chars=prompt_limit(inputs, context),
        given=given,
    )


def dev_items(settings: Settings, split: Split) -> tuple[Example, ...]:
    """The dev items every candidate of every arm is scored on; `split.dev` is in random order already."""
    return split.dev[: settings.arms.dev_items]


def measure_arms(
    settings: Settings,
    bench: Bench,
    arms: Sequence[Arm],
    split: Split,
    models: Mapping[str, Model | None],
    model_names: Mapping[str, str],
    proposer: Proposer | None,
) -> tuple[tuple[ArmResult, Chosen], ...]:
    """Choose on dev, then measure on test, arm after arm. `models` maps an arm's `model` ("none", "base", "tuned") to the opened one.

    With a proposer, "instructed" is followed by the arm of the instructions it proposes.
    """
    out: list[tuple[ArmResult, Chosen]] = []
    for arm in arms:
        model = models[arm.model]
        chosen = choose_candidate(arm, dev_items(settings, split), model, bench)
        name = model_names[arm.model]
        out.append((measure(arm, chosen, split.test, model, bench, model_name=name), chosen))
        own_name, _, suffix = arm.name.partition(" ")
        if proposer is not None and own_name == "instructed" and model is not None and chosen.candidate is not None:
            dev = dev_items(settings, split)
            result, chosen = measure_proposed(proposer, chosen.candidate, dev, split.test, model, bench, name=name)
            out.append((replace(result, name=f"{OPTIMISED} {suffix}".rstrip()), chosen))
    return tuple(out)


def with_latencies(
    settings: Settings,
    folder: RunFolder,
    inputs: MeasureInputs,
    results: Sequence[tuple[ArmResult, Chosen]],
    models_by_arm: Mapping[str, HereModel],
) -> tuple[ArmResult, ...]:
    """Single-request latencies of all arms on the same few test items, interleaved; taken once and kept."""
    items = inputs.split.test[: settings.arms.latency_items + 1]  # the first warms up
    plans: list[tuple[str, Candidate, HereModel]] = [
        (result.name, chosen.candidate, models_by_arm[result.name])
        for result, chosen in results
        if result.failed is None and chosen.candidate is not None
    ]
    key = digest([[name, dict(c.params), model.fingerprint] for name, c, model in plans] + [item.id for item in items])
    path = folder.latency
    waits = _kept_latencies(path, key)
    if waits is None:
        waits = measure_latencies(
            plans,
            items,
            max_new_tokens=inputs.max_new_tokens,
            stop=stop_text(inputs.split.train),
            choices=held_to(settings, inputs),
            json_schema=schema_of(settings, inputs).text,
            on_progress=lambda done, total: inputs.on_progress("latency", done, total, "one request at a time"),
            should_stop=inputs.should_stop,
        )
        atomic_write_json(path, {"key": key, "waits": {name: [asdict(one) for one in found] for name, found in waits.items()}})
    floors = {result.name: tuple(i.latency_s for i in result.items if i.latency_s is not None) for result, _ in results if not result.model}
    out: list[ArmResult] = []
    for result, _ in results:
        found = waits.get(result.name, ())
        out.append(
            replace(
                result,
                latencies_s=tuple(one.seconds for one in found) or floors.get(result.name, ()),
                first_tokens_s=tuple(one.first_s for one in found if one.first_s is not None),
                token_rates=tuple(one.tokens_per_s for one in found if one.tokens_per_s is not None),
            )
        )
    return tuple(out)


def _kept_latencies(path: Path, key: str) -> dict[str, tuple[Wait, ...]] | None:
    """Those of an earlier call; None where they are of other arms, or of a version that took no first tokens."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {name: tuple(Wait(**one) for one in found) for name, found in stored["waits"].items()} if stored["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def larger_arms(arms: Sequence[Arm], name: str) -> tuple[Arm, ...]:
    """The prompting arms once more, for a larger model."""
    return for_model(arms, name)
