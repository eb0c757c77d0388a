"""Stage: behaviour. The best prompt and the tuned arm are asked again; form and style of all recorded answers are held to the training's.

Nothing is chosen by what comes out, and the arms are those the verdict compares, chosen on dev. It adds to a record and changes nothing
of it, so it can be asked for, or changed, on a finished run; answers are cached like all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from luthier.arms.prompts import Candidate
from luthier.arms.proposals import NAME as OPTIMISED
from luthier.arms.proposals import proposed_arm
from luthier.arms.search import find_candidate
from luthier.core.console import Progress, duration
from luthier.core.errors import EndpointError, InputError
from luthier.core.types import ArmResult, Example
from luthier.evaluate.consistency import answers_per_item, ask_again, chosen_items
from luthier.evaluate.paraphrase import checked, paraphrase_requests
from luthier.evaluate.run import Bench, Model, answer, answer_all, hold_endpoint
from luthier.evaluate.style import MIN_AUC, MIN_TEXTS, StyleJudge, train_judge
from luthier.metrics.consistency import AskedAgain, AskPlan, agreement
from luthier.metrics.form import AnswerForm, answers_instead, keeps_form, learn_form
from luthier.metrics.tone import MAX_KEPT, MEASURES, measure_text
from luthier.models.catalogue import resolve
from luthier.pipeline.answering import open_trained, open_untrained
from luthier.pipeline.decide import decision_rule
from luthier.pipeline.endpoint import endpoint_of
from luthier.pipeline.measure import MeasureInputs, make_bench, planned_arms, prompt_limit
from luthier.pipeline.paraphraser import Paraphraser, find_paraphraser
from luthier.pipeline.prepare import Prepared
from luthier.pipeline.record import RunRecord
from luthier.pipeline.settings import Settings
from luthier.store.layout import RunFolder
from luthier.verdict.behaviour_numbers import BehaviourRecord, ParaphraseRecord, StyleRecord
from luthier.verdict.evidence import best_of, best_tuned

OWN_VALUES = frozenset({"answers", "keeps_form", "consistency", "style_match"})  # what this stage writes beside the scores of an item


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """What all of it works with."""

    settings: Settings
    folder: RunFolder
    prepared: Prepared
    inputs: MeasureInputs
    bench: Bench
    plan: AskPlan
    paraphraser: Paraphraser | None


def measure_behaviour(
    settings: Settings, folder: RunFolder, prepared: Prepared, inputs: MeasureInputs, record: RunRecord, *, progress: Progress
) -> RunRecord:
    """The record with its part on behaviour; the record itself where that is there, from the same settings."""
    arms, paraphraser = settings.arms, find_paraphraser(settings)
    plan = AskPlan(
        items=arms.consistency_items,
        samples=arms.consistency_samples,
        temperature=arms.consistency_temperature,
        style_rows=arms.style_rows,
        seed=settings.seed,
        paraphraser="" if paraphraser is None else paraphraser.name,
        paraphrases=0 if paraphraser is None else arms.paraphrases,
    )
    found = record.behaviour
    is_whole = all("answers" in item.values for arm in record.arms for item in arm.items[:1])  # trainings may have come since
    is_settled = found is not None and not found.failed and (found.paraphrases is None or not found.paraphrases.failed)
    if found is not None and found.plan == plan and is_settled and is_whole:
        return record
    told = replace(make_bench(settings, folder, inputs), on_progress=lambda label, done, total: progress("behaviour", done, total, label))
    stage = _Stage(settings=settings, folder=folder, prepared=prepared, inputs=inputs, bench=told, plan=plan, paraphraser=paraphraser)
    form = learn_form(inputs.split.train, inputs.profile)
    is_cross_fitted = settings.data.folds > 1  # the model handed over has learnt from the test items: nothing to ask it again on
    compared = contestants(settings, record) if plan.items and not is_cross_fitted else ()
    predicted_s = sum(_forecast_s(stage, arm) for arm in compared)
    num = len(compared) * min(plan.items, len(inputs.split.test)) * answers_per_item(plan)
    if num:
        progress("behaviour", 0, num, f"about {num:,} further answers: about {duration(predicted_s)}; --set arms.consistency_items=0: none")
    paraphrased, paraphrases = _paraphrase(stage) if compared and paraphraser is not None else ({}, None)
    asked, failed = _ask_all(stage, compared, form, paraphrased)
    judge, style_note = _style(stage, record)
    test = {item.id: item for item in inputs.split.test}
    return replace(
        record,
        arms=tuple(_annotated(arm, test, form, judge, asked.get(arm.name, ()), inputs) for arm in record.arms),
        behaviour=BehaviourRecord(
            plan=plan,
            form=form,
            asked=asked,
            failed=failed,
            tone=_training_tone(inputs),
            style=None if judge is None else _style_record(judge, inputs.split.test),
            style_note=style_note,
            predicted_seconds=predicted_s,
            seconds=sum(one.latency_s for answers in asked.values() for one in answers),
            paraphrases=paraphrases,
        ),
    )


def contestants(settings: Settings, record: RunRecord) -> tuple[ArmResult, ...]:
    """The two arms that the verdict compares."""
    rule = decision_rule(settings, record)
    ran = [arm for arm in record.arms if arm.failed is None and arm.items]
    return tuple(arm for arm in (best_of("prompt", ran, rule), best_tuned(ran, rule)) if arm is not None)


def _forecast_s(stage: _Stage, arm: ArmResult) -> float:
    """From what its answers to the test items took."""
    waits = [item.latency_s for item in arm.items if item.latency_s is not None]
    mean_s = sum(waits) / len(waits) if waits else 0.0
    return mean_s * min(stage.plan.items, len(stage.inputs.split.test)) * answers_per_item(stage.plan)


def _paraphrase(stage: _Stage) -> tuple[Mapping[str, Sequence[str]], ParaphraseRecord]:
    """Paraphrases of the items asked again, the same for both arms; or why there are none."""
    who = stage.paraphraser
    assert who is not None
    items, number = chosen_items(stage.inputs.split.test, stage.plan), stage.plan.paraphrases
    try:
        model = who.open(stage.prepared.model_path, stage.prepared.precision)
        replies = answer_all(model, paraphrase_requests(items, number), replace(stage.bench, stop="", choices=()), "paraphrases")
    except (InputError, EndpointError) as error:
        return {}, ParaphraseRecord(by=who.name, failed=str(error))
    found = checked(items, replies, number, stage.inputs.profile)
    return found.texts, ParaphraseRecord(
        by=who.name,
        num_asked=found.num_asked,
        num_items=len(found.texts),
        refused=found.refused,
        seconds=sum(reply.latency_s for reply in replies),
    )


def _ask_all(
    stage: _Stage, compared: Sequence[ArmResult], form: AnswerForm, paraphrased: Mapping[str, Sequence[str]]
) -> tuple[dict[str, tuple[AskedAgain, ...]], dict[str, str]]:
    """Further answers of each arm, one model in memory at a time; and why one has none."""
    asked: dict[str, tuple[AskedAgain, ...]] = {}
    failed: dict[str, str] = {}
    items = chosen_items(stage.inputs.split.test, stage.plan)
    for arm in compared:
        try:
            with _open(stage, arm) as model:
                candidate = _candidate(stage, arm, model)
                asked[arm.name] = ask_again(candidate, items, model, stage.bench, stage.plan, form, arm.name, paraphrased)
        except (InputError, EndpointError) as error:  # a longer wording does not fit, or a server fails: no property of the arm's answers
            failed[arm.name] = str(error)
    return asked, failed


def _open(stage: _Stage, arm: ArmResult) -> AbstractContextManager[Model]:
    """The model an arm was measured with. Raises EndpointError where its server does not answer."""
    settings, prepared = stage.settings, stage.prepared
    if arm.family == "tuned":
        return open_trained(settings, stage.folder, prepared)
    endpoint = endpoint_of(settings)
    if endpoint is not None and arm.model == endpoint.name:
        return nullcontext(hold_endpoint(endpoint, stage.bench))
    path = resolve(arm.model) if arm.model in settings.model.larger else prepared.model_path
    return open_untrained(settings, path, prepared.precision)


def _candidate(stage: _Stage, arm: ArmResult, model: Model) -> Candidate:
    """The prompt that dev chose for an arm, made again from its recorded choices."""
    inputs, own_name = stage.inputs, arm.name.partition(" · ")[0]
    if own_name == OPTIMISED:
        limit = prompt_limit(inputs, model.context)
        planned = proposed_arm(
            inputs.split.train, inputs.profile, [arm.params["instruction"]], max_prompt_chars=limit, by="", are_given=True
        )
        return planned.candidates[0]
    planned = next(one for one in planned_arms(stage.settings, inputs, model.context) if one.name == own_name)
    return find_candidate(planned, arm.params)


def _style(stage: _Stage, record: RunRecord) -> tuple[StyleJudge | None, str]:
    """A style classifier for free text, or why there is none."""
    inputs = stage.inputs
    if inputs.profile.kind != "text":
        return None, ""
    bare = next((arm for arm in record.arms if arm.name == "zero-shot" and arm.items), None)
    rows = [row for row in inputs.split.train if row.desirable is not False][: stage.plan.style_rows]
    if bare is None or not stage.plan.style_rows:
        return None, "Style match: not measured, " + ("the arm zero-shot was left out." if bare is None else "arms.style_rows is 0.")
    if len(rows) < MIN_TEXTS:
        return None, f"Style match: not measured, {len(rows)} training rows are fewer than {MIN_TEXTS}."
    with open_untrained(stage.settings, stage.prepared.model_path, stage.prepared.precision) as model:
        written = answer(_candidate(stage, bare, model), rows, model, stage.bench, "zero-shot: training rows, for its style")
    judge = train_judge(
        [row.response for row in rows],
        [generation.text for generation in written],
        held_out=[item.response for item in inputs.split.test],
        held_out_zero_shot=[item.text for item in bare.items],
    )
    if judge.is_usable:
        return judge, ""
    told = f"wanted and zero-shot answers cannot be told apart (AUC {judge.auc:.2f}, at least {MIN_AUC:g} wanted)"
    return judge, f"Style match: tone not measurable, {told}."


def _style_record(judge: StyleJudge, test: Sequence[Example]) -> StyleRecord:
    references = {item.id: judge.matches(item.response) for item in test} if judge.is_usable else {}
    return StyleRecord(auc=judge.auc, min_auc=MIN_AUC, num_texts=judge.num_references, references=references)


def _training_tone(inputs: MeasureInputs) -> dict[str, tuple[float, ...]]:
    """Length, reading level and register of up to 1,000 training answers; nothing where answers are no free text."""
    if inputs.profile.kind != "text":
        return {}
    texts = [row.response for row in inputs.split.train if row.desirable is not False][:MAX_KEPT]
    return {name: tuple(round(value, 3) for text in texts if (value := measure_text(text, name)) is not None) for name in MEASURES}


def _annotated(
    arm: ArmResult,
    test: Mapping[str, Example],
    form: AnswerForm,
    judge: StyleJudge | None,
    asked: Sequence[AskedAgain],
    inputs: MeasureInputs,
) -> ArmResult:
    """The arm with what was found of each of its answers beside their scores."""
    again: dict[str, list[AskedAgain]] = {}
    for one in asked:
        again.setdefault(one.item_id, []).append(one)
    items = []
    for item in arm.items:
        values = {name: value for name, value in item.values.items() if name not in OWN_VALUES}
        values["answers"] = answers_instead(item.text, test[item.item_id].user_text, form)
        values["keeps_form"] = keeps_form(item.text, form)
        if judge is not None and judge.is_usable:
            values["style_match"] = judge.matches(item.text)
        if item.item_id in again:
            values["consistency"] = agreement(item.text, again[item.item_id], inputs.profile).overall
        items.append(replace(item, values=values))
    return replace(arm, items=tuple(items))
