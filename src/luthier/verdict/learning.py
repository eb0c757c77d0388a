"""What the learning curve says in words: would more examples help, and how many is the best prompt worth?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

from luthier.core.types import ArmResult
from luthier.stats.learning import LEVEL, MAX_FACTOR, SEED_SD, LearningFit, fit_learning_curve
from luthier.verdict.explain import points, signed_points


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningPoint:
    """The tuned arm as trained on `num_rows` rows, measured on the locked test items."""

    num_rows: int
    arm: ArmResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """A learning curve with what it says."""

    fit: LearningFit | None  # None: too few points with a score
    sentences: tuple[str, ...]
    noise: str = ""  # what was taken for the spread between trainings


def read_curve(
    curve: Sequence[LearningPoint],
    prompt: ArmResult | None,
    replicates: Sequence[ArmResult],
    metric: str,
    *,
    seed: int,
    handed_over: int | None = None,
) -> Learning:
    """Fit the points on the items all of them and the best prompt were scored on; `replicates`: the full training from other seeds.

    The spread between training seeds is measured where there are three seeds, else `SEED_SD` is assumed, and the words say so.
    `handed_over`: of a cross-fitted run, the rows that the model was trained on which is handed over; the curve is that of the folds.
    """
    ordered = sorted((point for point in curve if point.arm.failed is None), key=lambda point: point.num_rows)
    arms = [point.arm for point in ordered] + ([] if prompt is None else [prompt])
    values = [{item.item_id: score for item in arm.items if (score := item.values.get(metric)) is not None} for arm in arms]
    shared = [item for item in (ordered[0].arm.items if ordered else ()) if all(item.item_id in one for one in values)]
    if len(ordered) < 3 or not shared:
        return Learning(fit=None, sentences=("The learning curve has fewer than three points with a score: nothing can be said.",))
    scores = [[one[item.item_id] for item in shared] for one in values]
    full = [_mean([item.values.get(metric) for item in arm.items]) for arm in (ordered[-1].arm, *replicates)]
    spread = stdev(full) if len(full) >= 3 else None
    fit = fit_learning_curve(
        scores[: len(ordered)],
        [item.cluster for item in shared],
        [point.num_rows for point in ordered],
        reference=scores[-1] if prompt is not None else None,
        seed_sd=SEED_SD if spread is None else max(spread, SEED_SD / 4),
        seed=seed,
    )
    sentences = [_more_examples(fit, f"{100 * LEVEL:.0f} % interval, n = {len(shared):,} test items", handed_over)]
    if prompt is not None:
        sentences.append(_worth(fit, prompt.name))
    noise = (
        f"Its intervals hold a spread between trainings of {points(SEED_SD)} points, which was not measured"
        f"{': --train-seeds 3 does' if handed_over is None else ''}."
        if spread is None
        else f"Its intervals hold the spread between trainings, measured over {len(full)} seeds: {points(spread)} points."
    )
    return Learning(fit=fit, sentences=tuple(sentences), noise=noise)


def _more_examples(fit: LearningFit, basis: str, handed_over: int | None) -> str:
    """The sentence users ask for; "cannot tell" where the last step shows no gain."""
    aside = "" if handed_over is None else f" Rows of a fold are counted; the model handed over was trained on {handed_over:,}."
    return _gain(fit, basis, is_of_folds=handed_over is not None) + aside


def _gain(fit: LearningFit, basis: str, *, is_of_folds: bool) -> str:
    now, before = fit.sizes[-1], fit.sizes[-2]
    value, low, high = fit.last_gain
    if not fit.is_rising:
        return (
            f"Would more examples help? Cannot tell: from {before:,} to {now:,} rows the score changed by {signed_points(value)} points "
            f"({signed_points(low)} to {signed_points(high)}; {basis})."
        )
    if not fit.follows_law:
        return (
            f"{now:,} more examples would help, by how much cannot be told: from {before:,} to {now:,} rows the score rose by "
            f"{signed_points(value)} points ({signed_points(low)} to {signed_points(high)}; {basis}), and no power law fits the steps "
            "before it."
        )
    value, low, high = fit.gain(2 * now)
    told = f"{signed_points(value)} points ({signed_points(low)} to {signed_points(high)}; {basis})"
    if is_of_folds:
        return f"{2 * now:,} examples like these instead of {now:,} to train on would bring {told}."
    return f"{now:,} more examples like these, twice as many, would bring {told}."


def _worth(fit: LearningFit, name: str) -> str:
    found = fit.worth()
    assert found is not None
    if not fit.follows_law:
        scores = [1 - error for error in fit.errors]
        prompt = 1 - (fit.reference or 0.0)
        reached = [size for size, score in zip(fit.sizes, scores, strict=True) if score >= prompt]
        missed = [size for size, score in zip(fit.sizes, scores, strict=True) if score < prompt]
        least = f"more than {max(missed):,}" if missed else f"fewer than {fit.sizes[0]:,}"
        most = f" and at most {min(reached):,}" if reached and missed and min(reached) > max(missed) else ""
        return f"Your best prompt, {name}, is worth {least}{most} training examples."
    value, low, high = (_rows(fit, rows) for rows in found)
    if found[1] < fit.sizes[0] and found[2] > MAX_FACTOR * fit.sizes[-1]:
        return (
            f"How many training examples your best prompt, {name}, is worth cannot be told: {low} to {high} ({100 * LEVEL:.0f} % interval)."
        )
    interval = "" if low == high else f" ({100 * LEVEL:.0f} % interval: {low} to {high})"
    return f"Your best prompt, {name}, is worth {value} training examples{interval}."


def _rows(fit: LearningFit, rows: float) -> str:
    """Two digits; beyond the data and four times the rows only the bound is said."""
    if rows < fit.sizes[0]:
        return f"fewer than {fit.sizes[0]:,}"
    if rows > MAX_FACTOR * fit.sizes[-1]:
        return f"more than {MAX_FACTOR * fit.sizes[-1]:,}"
    return f"about {round(rows, 1 - math.floor(math.log10(rows))):,.0f}"


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return math.fsum(known) / max(1, len(known))
