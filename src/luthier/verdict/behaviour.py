"""Behaviour before and after: what the recorded answers say of following the instruction, consistency, style and calibration.

A function of the record, without a model. Every line is a share or a mean over items in [0, 1], shown as points, with its interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from luthier.core.types import BROKE, HELD, ArmResult, Estimate, ItemScore, TaskProfile
from luthier.metrics.consistency import AskedAgain, agreement
from luthier.metrics.form import broken, keeps_form
from luthier.metrics.tone import MEASURE_WORDS
from luthier.stats.calibration import Calibration
from luthier.verdict.behaviour_numbers import (
    NOT_MEASURED,
    RIGHT_OR_WRONG,
    BehaviourLine,
    BehaviourRecord,
    ItemValue,
    Table,
    calibration_of,
    confidence_of,
    make_line,
    spread_of,
    tone_distance,
    value_of,
    with_wanted,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviourGroup:
    """Lines that answer one question."""

    title: str
    explanation: str
    lines: tuple[BehaviourLine, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """Everything the section shows. Columns: an arm's role and name; the last is "wanted" for the wanted answers themselves."""

    columns: tuple[tuple[str, str], ...]
    groups: tuple[BehaviourGroup, ...]
    calibration: Mapping[str, Calibration]  # arm -> its own
    examples: tuple[tuple[str, str, str], ...] = ()  # a changed question: kind, before, after
    note: str = ""


def read_behaviour(
    arms: Sequence[tuple[str, ArmResult]],
    found: BehaviourRecord,
    profile: TaskProfile,
    metric: str,
    *,
    inputs: Mapping[str, str],
    max_new_tokens: int,
    seed: int,
) -> Behaviour:
    """The section, for the arms in the columns' order: the last two are the best prompt and the tuned arm."""
    by_arm = {name: _by_item(asked) for name, asked in found.asked.items()}
    table = Table(arms=tuple(arm for _, arm in arms), found=found, profile=profile, metric=metric, seed=seed, by_arm=by_arm)
    groups = [_following(table, max_new_tokens), _consistency(table), _tone(table)]
    calibration = {arm.name: one for arm in table.arms if (one := calibration_of(table, arm)) is not None}
    groups.append(_sureness(table, calibration))
    return Behaviour(
        columns=(*((role, arm.name) for role, arm in arms), ("wanted", "the wanted answers")),
        groups=tuple(group for group in groups if group.lines or group.notes),
        calibration=calibration,
        examples=_examples(found, inputs),
        note=_cost_note(found),
    )


def _by_item(asked: Sequence[AskedAgain]) -> dict[str, list[AskedAgain]]:
    out: dict[str, list[AskedAgain]] = {}
    for one in asked:
        out.setdefault(one.item_id, []).append(one)
    return out


# ---------------------------------------------------------------- groups


def _following(table: Table, max_new_tokens: int) -> BehaviourGroup:
    form = table.found.form

    def keeps(name: str) -> ItemValue:
        return lambda _, item: float(name not in broken(item.text, form))

    def wanted_keeps(name: str) -> Callable[[ItemScore], float]:
        return lambda item: float(name not in broken(item.gold, form))

    lines = [
        make_line(table, "answers", "answers, instead of going on with the conversation or repeating the question", value_of("answers")),
        make_line(table, "stops", f"ends by itself, not cut off at {max_new_tokens:,} tokens", value_of("stops")),
    ]
    if form.names:
        what = f"keeps the whole form of the training answers ({len(form.names)} checks)"
        lines.append(make_line(table, "keeps_form", what, value_of("keeps_form"), wanted=lambda item: keeps_form(item.gold, form)))
        for name in form.names:
            words = form.words_of(name)
            lines.append(make_line(table, f"form: {name}", words, keeps(name), wanted=wanted_keeps(name), is_part=True))
    answers = {arm.name: arm.params.get("answers", "") for arm in table.arms}
    held = [name for name, words in answers.items() if words.startswith(HELD) and BROKE not in words]
    notes = [f"{' and '.join(held)}: held to the labels while writing, so these cannot fail."] if held else []
    if not form.names:
        notes.append(f"No form was learnt: {form.num_answers} training answers are too few.")
    explanation = (
        "Each check is a few lines of code, learnt from the training answers: what at least 98 % of them keep, lengths between their 1st "
        "and 99th percentile. The last column shows how often the wanted answers themselves keep it."
    )
    return BehaviourGroup(title="Follows the instruction", explanation=explanation, lines=tuple(lines), notes=tuple(notes))


def _consistency(table: Table) -> BehaviourGroup:
    plan, asked = table.found.plan, table.by_arm
    title = "Says the same again"
    failed = tuple(f"{name}: not asked again: {why}" for name, why in table.found.failed.items())
    if not asked:
        off = "Not measured: arms.consistency_items is 0." if not plan.items else "Not measured."
        return BehaviourGroup(title=title, explanation="", lines=(), notes=failed or (off,))

    def agreeing(part: str) -> ItemValue:
        def value(arm: ArmResult, item: ItemScore) -> float | None:
            again = asked.get(arm.name, {}).get(item.item_id)
            return getattr(agreement(item.text, again, table.profile), part) if again else None

        return value

    def valid(arm: ArmResult, item: ItemScore) -> float | None:
        known = [one.is_valid for one in asked.get(arm.name, {}).get(item.item_id, ()) if one.is_valid is not None]
        return fmean(known) if known else None

    same = "token F1 of at least 0.8" if table.profile.kind == "text" else "equal after normalisation"
    lines = [
        make_line(table, "consistency", "agreement in all (what the gate looks at)", agreeing("overall")),
        make_line(
            table,
            "repeat",
            f"asked {plan.samples} times at temperature {plan.temperature:g}: pairs of answers that agree",
            agreeing("repeat"),
            is_part=True,
        ),
        make_line(
            table,
            "paraphrase",
            "request reworded, input in other case and with typos: pairs that agree",
            agreeing("paraphrase"),
            is_part=True,
        ),
        make_line(table, "order", "solved examples in another order: the same answer", agreeing("order"), is_part=True),
        make_line(
            table, "paraphrased", f"put in other words by {plan.paraphraser}: the same answer", agreeing("paraphrased"), is_part=True
        ),
        make_line(table, "valid again", "in the wanted form, all of these answers", valid),
        BehaviourLine(
            key="spread",
            what=f"spread of {table.metric} between the wordings: best less worst",
            values=(*(spread_of(table, arm) for arm in table.arms), NOT_MEASURED),
            lower_is_better=True,
        ),
    ]
    explanation = (
        f"{_num_items(asked):,} locked items, chosen by seed {plan.seed}, the same changes for every arm; answers agree if {same}. "
        "All other answers of this report are greedy (temperature 0) and would repeat themselves exactly: the samples show how close the "
        "second best was. The spread contains chance: with so few items some is there without any true one."
    )
    return BehaviourGroup(
        title=title,
        explanation=explanation,
        lines=tuple(line for line in lines if _has_value(line)),
        notes=(*failed, *_paraphrase_notes(table)),
    )


def _paraphrase_notes(table: Table) -> tuple[str, ...]:
    """How many paraphrases passed, and why the others did not."""
    found = table.found.paraphrases
    if found is None:
        return ()
    if found.failed:
        return (f"No paraphrases by {found.by}: {found.failed}",)
    reasons = "; ".join(f"{count} × {reason}" for reason, count in found.refused.items())
    return (
        f"{found.by} was asked for {found.num_asked:,} paraphrases. {found.num_kept:,}, of {found.num_items:,} items, passed the checks of "
        f"what must be kept; refused: {reasons or 'none'}. Items without one are not in that line, and it is no part of the agreement in "
        "all.",
    )


def _tone(table: Table) -> BehaviourGroup:
    found = table.found
    title = "Sounds like the training answers"
    if not found.tone:
        return BehaviourGroup(title=title, explanation="", lines=())  # answers are no free text
    lines: list[BehaviourLine] = []
    style = found.style
    if style is not None and style.references:
        matches = make_line(table, "style_match", "taken for a training answer by the style classifier", value_of("style_match"))
        lines.append(with_wanted(table, matches, lambda item: style.references.get(item.item_id)))
    for name, reference in found.tone.items():
        values = [tone_distance(arm.items, lambda item: item.text, name, reference) for arm in table.arms]
        values.append(tone_distance(table.arms[-1].items, lambda item: item.gold, name, reference))
        lines.append(
            BehaviourLine(
                key=f"distance: {name}", what=f"distance in {name}: {MEASURE_WORDS[name]}", values=tuple(values), lower_is_better=True
            )
        )
    notes = (found.style_note,) if found.style_note else ()
    judged = (
        f"The style classifier (runs of characters, {style.num_texts:,} texts of each kind) ranks a wanted test answer above a zero-shot "
        f"answer in {100 * style.auc:.0f} of 100 pairs. "
        if style is not None
        else ""
    )
    explanation = (
        f"{judged}Distances are between distributions: 0 the same as the training answers, 100 no overlap (Kolmogorov-Smirnov). The last "
        "column is what new answers of the same kind reach."
    )
    return BehaviourGroup(title=title, explanation=explanation, lines=tuple(lines), notes=notes)


def _sureness(table: Table, calibration: Mapping[str, Calibration]) -> BehaviourGroup:
    title = "Knows when it is right"
    if table.profile.kind not in RIGHT_OR_WRONG:
        return BehaviourGroup(title=title, explanation="", lines=())  # a text is not right or wrong
    if not calibration:
        return BehaviourGroup(title=title, explanation="", lines=(), notes=("Not measured: no answer has a confidence.",))

    def squared(arm: ArmResult, item: ItemScore) -> float | None:
        sure, right = confidence_of(table, arm, item), item.values.get(RIGHT_OR_WRONG[table.profile.kind])
        return None if sure is None or right is None else (sure - right) ** 2

    def of(name: str) -> tuple[Estimate, ...]:
        known = [calibration.get(arm.name) for arm in table.arms]
        return (*(NOT_MEASURED if one is None else getattr(one, name) for one in known), NOT_MEASURED)

    lines = [
        make_line(table, "brier", "Brier score: mean squared gap between confidence and being right", squared, lower_is_better=True),
        BehaviourLine(
            key="ece", what="calibration error: mean gap between confidence and share right", values=of("ece"), lower_is_better=True
        ),
        BehaviourLine(
            key="aurc", what="error if only the surest are answered, mean over all shares", values=of("aurc"), lower_is_better=True
        ),
    ]
    samples = f"the share of {table.found.plan.samples} samples that say the same as the answer"
    known = [any(item.values.get("confidence") is not None for item in arm.items) for arm in table.arms]
    source = "the probability of the written label when nothing but the labels can be written" if any(known) else samples
    source += f" (where that is not known: {samples})" if any(known) and not all(known) else ""
    few = [one.ece.method for one in calibration.values() if one.ece.value is None]
    return BehaviourGroup(
        title=title,
        explanation=f"Confidence is {source}. Right is {RIGHT_OR_WRONG[table.profile.kind]}.",
        lines=tuple(line for line in lines if _has_value(line)),
        notes=(f"Calibration error and the curve: {few[0]}.",) if few else (),
    )


def _has_value(line: BehaviourLine) -> bool:
    return any(value.value is not None and math.isfinite(value.value) for value in line.values)


def _num_items(asked: Mapping[str, Mapping[str, Sequence[AskedAgain]]]) -> int:
    return max((len(items) for items in asked.values()), default=0)


def _examples(found: BehaviourRecord, inputs: Mapping[str, str]) -> tuple[tuple[str, str, str], ...]:
    """One changed question of each kind, so that a reader sees what was done."""
    out: dict[str, tuple[str, str, str]] = {}
    for asked in found.asked.values():
        for one in asked:
            if one.shown and one.name not in out:
                out[one.name] = (one.name, inputs.get(one.item_id, ""), one.shown)
    return tuple(out[name] for name in sorted(out))


def _cost_note(found: BehaviourRecord) -> str:
    num = sum(len(asked) for asked in found.asked.values())
    return f"{num:,} further answers, {found.seconds:,.0f} s of computing (forecast {found.predicted_seconds:,.0f} s)." if num else ""
