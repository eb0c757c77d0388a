"""Everything a verdict is drawn from, measured once: which arms stand for their family, how they compare, what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean

from luthier.core.types import ArmFamily, ArmResult, Comparison, Estimate, GateResult
from luthier.metrics.cost import break_even, cost_difference, fixed_usd_per_month, item_cost_usd
from luthier.stats.power import min_detectable_effect, min_detectable_effect_from_se
from luthier.verdict.compare import arm_score, compare_arms, latency_ratio, pair_scores, with_holm
from luthier.verdict.gates import check_gates
from luthier.verdict.probes import ProbeRecord
from luthier.verdict.seeds import RecipeDifference, recipe_difference, same_recipe
from luthier.verdict.settings import EPSILON, MIN_CLEAR_CLUSTERS, MIN_CLEAR_ITEMS, DecisionRule

Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """One tuned arm against the best prompt: all that the rows of the decision table look at. `primary` is tuned - prompt."""

    rule: DecisionRule
    prompt: ArmResult
    tuned: ArmResult
    primary: Comparison
    prompt_score: float
    tuned_score: float
    gates: tuple[GateResult, ...]
    saving: Estimate  # US dollars a request, prompt - tuned
    fixed_usd_per_month: float | None
    break_even: Estimate
    speed: Estimate  # tuned / prompt, single requests

    @property
    def is_cheaper(self) -> bool:
        """Shown cheaper a request."""
        return self.saving.low is not None and self.saving.low > 0

    @property
    def is_faster(self) -> bool:
        """Shown faster a request."""
        return self.speed.high is not None and self.speed.high < 1

    @property
    def has_gain(self) -> bool:
        """Shown cheaper or faster, and not dearer over a month at the stated volume (the upper end of v* is reached)."""
        volume, low, fixed = self.rule.volume_per_month, self.saving.low, self.fixed_usd_per_month
        if volume is None or low is None or fixed is None:
            return False
        return (self.is_cheaper or self.is_faster) and low * volume >= fixed

    @property
    def gain_is_excluded(self) -> bool:
        """Whatever the volume: shown not cheaper, and not shown faster."""
        return self.saving.high is not None and self.saving.high <= 0 and not self.is_faster

    @property
    def failed_gates(self) -> tuple[GateResult, ...]:
        """The vetoes."""
        return tuple(gate for gate in self.gates if gate.state == "fail" and gate.vetoes)

    @property
    def unsettled_gates(self) -> tuple[GateResult, ...]:
        """Gates whose interval is too wide to say."""
        return tuple(gate for gate in self.gates if gate.state == "not shown" and gate.vetoes)

    @property
    def is_joint(self) -> bool:
        """The tuned arm keeps examples from retrieval in its prompt."""
        return _is_joint(self.tuned)

    @property
    def is_small(self) -> bool:
        """Too few items, or clusters of them, for more than "leaning"; or items answered by several trainings on overlapping rows."""
        return self.rule.num_folds > 1 or self.primary.n < MIN_CLEAR_ITEMS or self.primary.num_clusters < MIN_CLEAR_CLUSTERS

    @property
    def variance(self) -> float:
        """Variance of one item's difference, clusters and all, read off the interval."""
        se = (self.primary.high95 - self.primary.low95) / (2 * Z95)
        return se * se * self.primary.n

    @property
    def is_right_or_wrong(self) -> bool:
        """Right/wrong scores of items that each stand for themselves: the formulas in the discordance hold."""
        return self.primary.discordance is not None and self.primary.num_clusters == self.primary.n

    @property
    def min_detectable_effect(self) -> float:
        """The smallest true difference that so many items show with 80 % power."""
        if self.is_right_or_wrong and self.primary.discordance:
            return min_detectable_effect(self.primary.n, self.primary.discordance)
        return min(1.0, min_detectable_effect_from_se((self.primary.high95 - self.primary.low95) / (2 * Z95)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The contest between the two best arms, and what stands around it."""

    contest: Contest
    floor: ArmResult | None
    floor_gap: Comparison | None  # floor - the better of the two arms
    scores: Mapping[str, Estimate]  # of every arm that ran
    secondary: tuple[Comparison, ...]
    confirming: tuple[Comparison, ...]  # tuned - prompt on other metrics
    other_seeds: tuple[Contest, ...]
    recipe: RecipeDifference | None


def _mean_usd(arm: ArmResult, rule: DecisionRule) -> float | None:
    costs = [cost for item in arm.items if (cost := item_cost_usd(item, arm.model, rule.prices)) is not None]
    return fmean(costs) if costs else None


def best_of(family: ArmFamily, arms: Sequence[ArmResult], rule: DecisionRule) -> ArmResult | None:
    """The arm with the highest dev score, never the highest test score; of equals the cheaper, then the first by name."""

    def order(arm: ArmResult) -> tuple[bool, float, float, str]:
        cost = _mean_usd(arm, rule)
        return arm.dev_score is None, -(arm.dev_score or 0.0), float("inf") if cost is None else cost, arm.name

    return min((arm for arm in arms if arm.family == family), key=order, default=None)


def best_tuned(arms: Sequence[ArmResult], rule: DecisionRule) -> ArmResult | None:
    """The best tuned arm on dev; one with retrieval only where it gains at least the margin over the best without.

    Retrieval is one more thing to serve and makes every prompt longer, and its dev score is the best of several variants,
    which flatters it by about the margin (docs/methods-statistics.md, Protocol).
    """
    best = best_of("tuned", arms, rule)
    plain = best_of("tuned", [arm for arm in arms if not _is_joint(arm)], rule)
    if best is None or plain is None or not _is_joint(best) or best.dev_score is None or plain.dev_score is None:
        return best
    return best if best.dev_score - plain.dev_score >= rule.margin_of_choice - EPSILON else plain


def _is_joint(arm: ArmResult) -> bool:
    words = (arm.name, *arm.params.keys(), *arm.params.values())
    return any("retriev" in word.lower() for word in words)


def contest_between(prompt: ArmResult, tuned: ArmResult, rule: DecisionRule, probes: ProbeRecord | None = None) -> Contest:
    """Compare one tuned arm with the best prompt arm; `probes` feed the gates on what is not in the test items.

    Raises RunError where they have no scored item in common.
    """
    primary = compare_arms(tuned, prompt, rule.metric, seed=rule.seed)
    pairs = pair_scores(tuned, prompt, rule.metric)
    return Contest(
        rule=rule,
        prompt=prompt,
        tuned=tuned,
        primary=primary,
        prompt_score=fmean(pairs.b),
        tuned_score=fmean(pairs.a),
        gates=check_gates(prompt, tuned, rule, probes),
        saving=cost_difference(prompt, tuned, rule.prices, seed=rule.seed),
        fixed_usd_per_month=fixed_usd_per_month(tuned, rule.economics),
        break_even=break_even(prompt, tuned, rule.economics, seed=rule.seed),
        speed=latency_ratio(tuned, prompt),
    )


def gather(
    arms: Sequence[ArmResult], prompt: ArmResult, tuned: ArmResult, rule: DecisionRule, probes: ProbeRecord | None = None
) -> Evidence:
    """All comparisons of a verdict. `arms` are those that ran, `prompt` and `tuned` the best of them on dev."""
    contest = contest_between(prompt, tuned, rule, probes)
    floor = best_of("floor", arms, rule)
    scores = {arm.name: arm_score(arm, rule.metric, seed=rule.seed) for arm in arms}
    better = tuned if contest.primary.difference >= 0 else prompt
    has_floor_scores = floor is not None and bool(pair_scores(floor, better, rule.metric).a)
    # Other weights of the same shape, prompted the same, cost and take the same: only their answers are compared.
    siblings = tuple(
        replace(
            contest_between(prompt, other, rule, probes),  # probed was the run's own training: it stands for the recipe
            saving=contest.saving,
            fixed_usd_per_month=contest.fixed_usd_per_month,
            break_even=contest.break_even,
            speed=contest.speed,
        )
        for other in same_recipe(tuned, arms)
        if _comparable(other, prompt, rule)
    )
    return Evidence(
        contest=contest,
        floor=floor,
        floor_gap=compare_arms(floor, better, rule.metric, seed=rule.seed) if floor is not None and has_floor_scores else None,
        scores=scores,
        secondary=_secondary(arms, prompt, tuned, rule),
        confirming=tuple(
            compare_arms(tuned, prompt, metric, seed=rule.seed)
            for metric in rule.confirming_metrics
            if pair_scores(tuned, prompt, metric).a
        ),
        other_seeds=siblings,
        recipe=recipe_difference([contest.primary, *(sibling.primary for sibling in siblings)]) if siblings else None,
    )


def _secondary(arms: Sequence[ArmResult], prompt: ArmResult, tuned: ArmResult, rule: DecisionRule) -> tuple[Comparison, ...]:
    """Both best arms against every floor, and each against the other family's remaining arms; Holm-adjusted together."""
    pairs: list[tuple[ArmResult, ArmResult]] = []
    replicates = same_recipe(tuned, arms)
    for arm in arms:
        if arm.family == "floor":
            pairs += [(tuned, arm), (prompt, arm)]
        elif arm.family == "prompt" and arm is not prompt:
            pairs.append((tuned, arm))
        elif arm.family == "tuned" and arm is not tuned and arm not in replicates:
            pairs.append((arm, prompt))
    return with_holm([compare_arms(a, b, rule.metric, seed=rule.seed) for a, b in pairs if _comparable(a, b, rule)])


def _comparable(a: ArmResult, b: ArmResult, rule: DecisionRule) -> bool:
    return bool(pair_scores(a, b, rule.metric).a)
