"""The tuned model against each other model that was prompted beside it: size, quality and what a request saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from luthier.core.types import ArmResult
from luthier.metrics.cost import cost_difference, cost_per_1000
from luthier.verdict.compare import compare_arms, pair_scores
from luthier.verdict.evidence import best_of
from luthier.verdict.explain import points, signed_points
from luthier.verdict.settings import DecisionRule

BILLION = 1e9


def larger_sentences(tuned: ArmResult | None, arms: Sequence[ArmResult], sizes: Mapping[str, int], rule: DecisionRule) -> tuple[str, ...]:
    """One sentence a model other than the tuned one's own base. `sizes` are parameters by `ArmResult.model`; an address has none known."""
    if tuned is None:
        return ()
    own = tuned.model.removesuffix(", tuned")
    ran = [arm for arm in arms if arm.failed is None and arm.items and arm.family == "prompt" and arm.model not in ("", own)]
    others = [best_of("prompt", [arm for arm in ran if arm.model == model], rule) for model in dict.fromkeys(arm.model for arm in ran)]
    return tuple(
        f"{tuned.name} against {other.name}{_size(own, other.model, sizes)}: {'; '.join(_facts(tuned, other, rule))}."
        for other in others
        if other is not None and pair_scores(tuned, other, rule.metric).a
    )


def _size(own: str, other: str, sizes: Mapping[str, int]) -> str:
    if own not in sizes or other not in sizes:
        return ""
    times = sizes[other] / sizes[own]
    return f" ({sizes[own] / BILLION:.2g} against {sizes[other] / BILLION:.2g} billion parameters, {times:.3g} times the size)"


def _facts(tuned: ArmResult, other: ArmResult, rule: DecisionRule) -> Iterator[str]:
    found = compare_arms(tuned, other, rule.metric, seed=rule.seed)
    yield (
        f"{signed_points(found.difference)} points (95 % interval {signed_points(found.low95)} to {signed_points(found.high95)}, "
        f"n = {found.n:,}, margin {points(rule.margin)})"
    )
    saving = cost_difference(other, tuned, rule.prices, seed=rule.seed)
    ours, theirs = (cost_per_1000(arm, rule.prices, seed=rule.seed).value for arm in (tuned, other))
    if saving.value is None or saving.low is None or saving.high is None or not ours or not theirs:
        yield "what a request saves was not measured"
        return
    share = f"{100 * abs(1 - ours / theirs):.0f} % {'less' if ours < theirs else 'more'}"
    yield (
        f"1,000 requests cost {_usd(ours)} instead of {_usd(theirs)}, {share} (saving {_usd(1000 * saving.value)}, 95 % interval "
        f"{_usd(1000 * saving.low)} to {_usd(1000 * saving.high)})"
    )


def _usd(amount: float) -> str:
    size = abs(amount)
    return f"{'-' if amount < 0 else ''}$" + (f"{size:,.2f}" if size >= 1 else f"{size:.2g}")
