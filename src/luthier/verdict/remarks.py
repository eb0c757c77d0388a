"""What a reader asks next, in plain sentences: how small a difference could be seen, is it the recipe, what would change the answer?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import fmean

from luthier.core.types import ArmResult, VerdictCode
from luthier.verdict import explain
from luthier.verdict.evidence import Evidence
from luthier.verdict.explain import points, signed_points
from luthier.verdict.settings import DecisionRule

MARGINS = tuple(step / 200 for step in range(1, 61))  # 0.5 to 30 points
Answer = Callable[[Evidence], tuple[VerdictCode, str]]


def remarks(evidence: Evidence, code: VerdictCode, answer: Answer) -> tuple[str, ...]:
    """The sentences that apply, most useful first. `answer` gives code and headline on other evidence."""
    return (
        power_sentence(evidence),
        *_without_model(evidence, code),
        *_volume(evidence, code, answer),
        *_margin(evidence, code, answer),
        *_recipe(evidence),
        *_optimism(evidence),
    )


def power_sentence(evidence: Evidence) -> str:
    """ "With 120 items only differences above 11 points can be seen; 620 items would show 5"."""
    contest = evidence.contest
    n, seen, margin = contest.primary.n, contest.min_detectable_effect, contest.rule.margin
    needed = explain.items_for_the_margin(contest)
    if seen <= margin:
        return (
            f"With {n:,} items differences above {points(seen)} points can be seen (80 % power): the margin, {points(margin)}, is in reach."
        )
    if needed <= n:  # the arms disagree on fewer items than the margin: no number of items for it can be read off that
        more = ""
    elif needed <= explain.MAX_ITEMS:
        more = f"; about {needed:,} would show {points(margin)}"
    else:
        more = f"; no practical number would show {points(margin)}"
    return f"With {n:,} items only differences above {points(seen)} points can be seen (80 % power){more}."


def _without_model(evidence: Evidence, code: VerdictCode) -> Iterator[str]:
    """How far the better arm is from the best one without a model, where the verdict does not rest on that. A prompt is often below it."""
    gap = evidence.floor_gap
    if gap is None or code in ("neither_needed", "neither_yet"):
        return
    found = evidence.scores.get(gap.a)
    score = "" if found is None or found.value is None else f" ({points(found.value)})"
    yield (
        f"{gap.b} minus {gap.a}{score}, the best without a language model: {signed_points(-gap.difference)} points "
        f"(95 % interval {signed_points(-gap.high95)} to {signed_points(-gap.low95)}, n = {gap.n:,})."
    )


def with_rule(evidence: Evidence, rule: DecisionRule) -> Evidence:
    """The same measurements under another margin or volume. Gates and choices stay: they depend on neither."""
    return replace(
        evidence,
        contest=replace(evidence.contest, rule=rule),
        other_seeds=tuple(replace(sibling, rule=rule) for sibling in evidence.other_seeds),
    )


def _volume(evidence: Evidence, code: VerdictCode, answer: Answer) -> Iterator[str]:
    """From or below how many requests a month the answer is another."""
    contest = evidence.contest
    rule, saving, fixed = contest.rule, contest.saving.low, contest.fixed_usd_per_month
    if saving is None or fixed is None:
        return
    if saving <= 0:
        yield "No number of requests a month changes the answer: fine-tuning is not shown to save on a request."
        return
    pays = _rounded_up(fixed / saving)
    above = with_rule(evidence, replace(rule, volume_per_month=pays))
    below = with_rule(evidence, replace(rule, volume_per_month=0 if pays <= 1 else pays // 2))
    (code_above, at_least), (code_below, at_most) = answer(above), answer(below)
    volume = rule.volume_per_month
    if code_above == code_below:
        if volume is None and code_above == code:
            yield f"The answer is the same at any number of requests a month; fine-tuning is shown to pay for itself from about {pays:,}."
        elif volume is None:
            yield f"Whatever number of requests a month you named, the answer would be {at_least}."
        else:
            yield "The answer is the same at any number of requests a month."
    elif volume is None:
        yield f"From about {pays:,} requests a month on the answer would be {at_least}; clearly below, {at_most}."
    elif code == code_below:
        yield f"At {pays:,} requests a month the answer changes to {at_least}."
    else:
        yield f"Below about {pays:,} requests a month the answer changes to {at_most}."


def _margin(evidence: Evidence, code: VerdictCode, answer: Answer) -> Iterator[str]:
    """The nearest smaller and larger margin with another answer."""
    rule = evidence.contest.rule
    found: list[str] = []
    smaller = [margin for margin in reversed(MARGINS) if margin < rule.margin - 1e-9]
    larger = [margin for margin in MARGINS if margin > rule.margin + 1e-9]
    for words, margins in (("or less", smaller), ("or more", larger)):
        for margin in margins:
            changed = with_rule(evidence, replace(rule, margin=margin, declared_margin=rule.margin_of_choice))
            other, headline = answer(changed)
            if other != code:
                found.append(f"with {points(margin)} points {words} the answer would be {headline}")
                break
    if found:
        yield f"The margin was {points(rule.margin)} points; {', '.join(found)}."
    else:
        yield f"Any margin from {points(MARGINS[0])} to {points(MARGINS[-1])} points gives the same answer."


def _recipe(evidence: Evidence) -> Iterator[str]:
    recipe, folds = evidence.recipe, evidence.contest.rule.num_folds
    if folds > 1:
        yield (
            f"This is about the recipe, trained {folds} times on {folds - 1} of {folds} parts of the rows; the model handed over saw "
            "more of them and was not tested. Trainings on overlapping rows are not independent: the interval is somewhat too narrow."
        )
        return
    if recipe is None:
        yield "This is about this one training: from another seed it may score a point or so differently (--train-seeds 3 measures that)."
        return
    held = "" if recipe.low95 * recipe.high95 > 0 else ", which includes 0: this training, not the recipe, is what was shown"
    yield (
        f"As a recipe, over {recipe.num_seeds} training seeds: {signed_points(recipe.difference)} points "
        f"(95 % interval {signed_points(recipe.low95)} to {signed_points(recipe.high95)}); "
        f"spread between seeds {points(recipe.seed_sd)}{held}."
    )


def _optimism(evidence: Evidence) -> Iterator[str]:
    """Dev, where the choice was made, beside test."""
    contest = evidence.contest
    parts: list[str] = []
    for arm in (contest.tuned, contest.prompt):
        test = _test_score(arm, contest.rule)
        if arm.dev_score is not None and test is not None:
            parts.append(f"{arm.name} {points(arm.dev_score)} on dev (n = {arm.dev_n:,}), {points(test)} on test")
    if parts:
        yield f"Chosen on dev, counted on test: {'; '.join(parts)}."


def _test_score(arm: ArmResult, rule: DecisionRule) -> float | None:
    known = [score for item in arm.items if (score := item.values.get(rule.metric)) is not None]
    return fmean(known) if known else None


def _rounded_up(volume: float) -> int:
    """To two digits."""
    if volume <= 10:
        return max(1, math.ceil(volume))
    step = 10 ** (math.floor(math.log10(volume)) - 1)
    return math.ceil(volume / step - 1e-9) * step
