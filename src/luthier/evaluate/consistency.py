"""A chosen prompt asked again: sampled, reworded, with its input written another way, its shots in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from luthier.arms.prompts import Candidate
from luthier.core.seeds import rng, seed_for
from luthier.core.types import Example, GenerationRequest
from luthier.evaluate.paraphrase import with_part
from luthier.evaluate.perturb import NUM_INPUTS, REWORDINGS, Changed, input_changed, reworded, shots_shuffled
from luthier.evaluate.run import Bench, Model, answer_all
from luthier.generate.endpoint import Endpoint
from luthier.metrics.consistency import AskedAgain, AskPlan
from luthier.metrics.form import AnswerForm, keeps_form

VALID_METRICS = ("json_valid", "label_valid")  # of a task that has one; else the form of the training answers


def answers_per_item(plan: AskPlan) -> int:
    """Further answers to one item, at most; one more where shots can be shuffled."""
    return plan.samples + len(REWORDINGS) + NUM_INPUTS + plan.paraphrases


def chosen_items(test: Sequence[Example], plan: AskPlan) -> tuple[Example, ...]:
    """The items asked again, the same for every arm: the first of one seeded order, so that fewer lie within more."""
    order = list(range(len(test)))
    rng(plan.seed, "evaluate/consistency").shuffle(order)
    return tuple(test[i] for i in sorted(order[: plan.items]))


def ask_again(
    candidate: Candidate,
    items: Sequence[Example],
    model: Model,
    bench: Bench,
    plan: AskPlan,
    form: AnswerForm,
    label: str,
    paraphrased: Mapping[str, Sequence[str]] | None = None,
) -> tuple[AskedAgain, ...]:
    """Every further answer, item after item. `paraphrased`: item id -> what a model made of its varying part, checked.

    Prompts that share a beginning are answered together; stored ones cost nothing.

    Raises InputError for a prompt that does not fit, EndpointError for a server.
    """
    by_id = {item.id: item for item in items}
    out: list[AskedAgain] = []
    for number, round_ in enumerate(_rounds(candidate, items, plan, paraphrased or {}), start=1):
        requests = [
            GenerationRequest(
                item_id=item_id,
                messages=changed.messages,
                max_new_tokens=bench.max_new_tokens,
                temperature=plan.temperature if changed.way == "repeat" else 0.0,
                seed=seed_for(plan.seed, f"evaluate/{item_id}/{changed.name}") if changed.way == "repeat" else 0,
                stop=bench.stop,
                choices=bench.choices,
                json_schema=bench.json_schema,
            )
            for item_id, changed in round_
        ]
        if not requests:
            continue
        is_sampled = requests[0].temperature > 0
        asked = _at_temperature(model, plan.temperature) if is_sampled else model
        answers = answer_all(asked, requests, bench, f"{label}: asked again {number}")
        for (item_id, changed), generation in zip(round_, answers, strict=True):
            scored = bench.score(by_id[item_id], generation.text)
            valid = next((scored.values[name] for name in VALID_METRICS if name in scored.values), keeps_form(generation.text, form))
            out.append(
                AskedAgain(
                    item_id=item_id,
                    way=changed.way,
                    name=changed.name,
                    shown=changed.shown,
                    text=generation.text,
                    score=scored.values.get(bench.metric),
                    is_valid=valid,
                    latency_s=generation.latency_s,
                )
            )
    place = {item.id: i for i, item in enumerate(items)}
    return tuple(sorted(out, key=lambda one: place[one.item_id]))


def _rounds(
    candidate: Candidate, items: Sequence[Example], plan: AskPlan, paraphrased: Mapping[str, Sequence[str]]
) -> list[list[tuple[str, Changed]]]:
    """What is answered together: samples, each rewording, both changes of the input, the other order of shots, paraphrases."""
    built = {item.id: candidate.build(item) for item in items}
    samples = [
        (item.id, Changed(way="repeat", name=f"sample {k + 1}", shown="", messages=built[item.id]))
        for k in range(plan.samples)
        for item in items
    ]
    wordings = [[(item.id, reworded(item, built[item.id], number)) for item in items] for number in range(len(REWORDINGS))]
    inputs: list[tuple[str, Changed]] = []
    for number in range(NUM_INPUTS):
        for item in items:
            other = input_changed(item, number, seed=plan.seed)
            if other is not None:
                shown = other.input or other.instruction
                inputs.append((item.id, Changed(way="input", name=f"input {number + 1}", shown=shown, messages=candidate.build(other))))
    orders = [
        (item.id, Changed(way="order", name="order 1", shown="", messages=messages))
        for item in items
        if (messages := shots_shuffled(item, built[item.id], seed=plan.seed)) is not None
    ]
    told = [
        (item.id, Changed(way="paraphrased", name=f"paraphrase {k}", shown=text, messages=candidate.build(with_part(item, text))))
        for item in items
        for k, text in enumerate(paraphrased.get(item.id, ()), start=1)
    ]
    return [samples, *wordings, inputs, orders, told]


def _at_temperature(model: Model, temperature: float) -> Model:
    """A server is told its temperature once for all; one that takes none keeps its own."""
    if isinstance(model, Endpoint) and model.temperature is not None:
        return replace(model, temperature=temperature)
    return model
