"""The decision table: recorded per-item results in, one verdict out. No model, no clock, no network.

L, U are the ends of the two-sided 95 % interval of d = tuned - prompt, L', U' those of the 90 % interval (one-sided 5 %). The
hypotheses "worse by the margin" and "worse at all" are nested, so testing one after the other needs no correction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from luthier.core.types import ArmResult, Comparison, Verdict, VerdictCode
from luthier.verdict import explain
from luthier.verdict.compare import pair_scores
from luthier.verdict.evidence import Contest, Evidence, best_of, best_tuned, gather
from luthier.verdict.probes import ProbeRecord
from luthier.verdict.remarks import remarks
from luthier.verdict.settings import EPSILON, MIN_TEST_ITEMS, DecisionRule


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One row of the table, tried."""

    code: VerdictCode
    holds: bool
    reason: str


def decide(arms: Sequence[ArmResult], rule: DecisionRule, probes: ProbeRecord | None = None) -> Verdict:
    """The verdict on the arms of one run: the first row of the table that holds.

    The best arm of each family is the one with the highest dev score (retrieval beside tuning: see `best_tuned`).
    A failed arm is passed over and named in `reasons`.
    Raises RunError for a damaged record (an item twice, a score out of range, a negative time).
    """
    ran = tuple(arm for arm in arms if arm.failed is None and arm.items)
    reasons = tuple(
        f"{arm.name}: left out, it failed: {arm.failed or 'no items'}" for arm in arms if arm.failed is not None or not arm.items
    )
    prompt, tuned, floor = best_of("prompt", ran, rule), best_tuned(ran, rule), best_of("floor", ran, rule)
    if prompt is None or tuned is None or not pair_scores(tuned, prompt, rule.metric).a:
        return _nothing_to_compare(prompt, tuned, floor, rule, reasons)
    evidence = gather(ran, prompt, tuned, rule, probes)
    tried, matched = _first_match(evidence)
    reasons = (*reasons, _chosen(evidence), *_without_retrieval(best_of("tuned", ran, rule), tuned, rule), *tried)
    conflict = "" if matched == "inconclusive" else _conflict(evidence, matched)
    code: VerdictCode = "inconclusive" if conflict else matched
    reasons = (*reasons, conflict) if conflict else reasons
    contest = evidence.contest
    leans = code == "inconclusive" and not conflict and _leans_to_tuned(contest)
    return Verdict(
        code=code,
        strength=_strength(code, evidence, leans=leans),
        headline=explain.headline(code, contest, leans=leans),
        sentence=explain.sentence(code, evidence, conflict=conflict),
        next_steps=explain.next_steps(code, evidence, conflict=conflict),
        primary=contest.primary,
        secondary=evidence.secondary,
        gates=contest.gates,
        best_prompt=prompt.name,
        best_tuned=tuned.name,
        best_floor=floor.name if floor else None,
        metric=rule.metric,
        margin=rule.margin,
        break_even_requests_per_month=contest.break_even,
        min_detectable_effect=contest.min_detectable_effect,
        remarks=remarks(evidence, code, _answer),
        reasons=reasons,
    )


def _answer(evidence: Evidence) -> tuple[VerdictCode, str]:
    """What the table says of this evidence, conflicts considered: code and headline."""
    _, matched = _first_match(evidence)
    conflict = matched != "inconclusive" and bool(_conflict(evidence, matched))
    code: VerdictCode = "inconclusive" if conflict else matched
    leans = code == "inconclusive" and not conflict and _leans_to_tuned(evidence.contest)
    return code, explain.headline(code, evidence.contest, leans=leans)


def _first_match(evidence: Evidence) -> tuple[tuple[str, ...], VerdictCode]:
    """The rows tried, in order, and the code of the first that holds."""
    n = evidence.contest.primary.n
    if n < MIN_TEST_ITEMS:
        return (f"fewer than {MIN_TEST_ITEMS} items: n = {n}. Holds: no verdict.",), "inconclusive"
    reasons: list[str] = []
    for row in (*_neither_rows(evidence), *_contest_rows(evidence.contest)):
        reasons.append(f"{row.reason}. {'Holds' if row.holds else 'Does not hold'}.")
        if row.holds:
            return tuple(reasons), row.code
    return (*reasons, "no row of the table holds: inconclusive."), "inconclusive"


def _neither_rows(evidence: Evidence) -> Iterator[_Row]:
    """Is any arm good enough, and is a language model needed for it?"""
    rule, gap = evidence.contest.rule, evidence.floor_gap
    tops = {name: score.high for name, score in evidence.scores.items() if score.high is not None}
    name = max(tops, key=lambda key: tops[key])
    least = f"the minimum {_points(rule.least_quality)}" if rule.min_quality is not None else f"one margin, {_points(rule.margin)}"
    yield _Row(
        code="neither_yet",
        holds=tops[name] < rule.least_quality,
        reason=f"neither yet: the highest upper end of all arms is {_points(tops[name])} ({name}), to lie below {least}",
    )
    if gap is None:
        yield _Row(code="neither_needed", holds=False, reason="neither needed: no simple baseline was scored")
        return
    is_as_good, is_enough = gap.low90 > -rule.margin, tops.get(gap.a, 0.0) >= rule.least_quality
    if rule.min_quality is not None:  # a baseline that was measured below what was asked for is no answer, however well it compares
        highest = explain.highest(evidence)
        yield _Row(
            code="neither_yet",
            holds=is_as_good and is_enough and (evidence.scores[highest].value or 0.0) < rule.least_quality,
            reason=f"neither yet, leaning: {gap.a} is as good as any arm, and the highest score, that of {highest}, lies below {least}",
        )
    below = "" if is_enough else f", but its own upper end is below {least}"
    reason = f"neither needed: {gap.a} minus {gap.b}, the better arm, is {_interval90(gap)}, to lie above {_signed(-rule.margin)}{below}"
    yield _Row(code="neither_needed", holds=is_as_good and is_enough, reason=reason)


def _contest_rows(contest: Contest) -> Iterator[_Row]:
    """The rows on tuned against prompt, top to bottom."""
    rule, primary, margin = contest.rule, contest.primary, contest.rule.margin
    d = primary.difference
    failed = ", ".join(gate.name for gate in contest.failed_gates)
    gates = f"gates failed: {failed}" if failed else "no gate failed"

    def tuned_row(code: VerdictCode, holds: bool, reason: str) -> Iterator[_Row]:
        yield _Row(code="blocked" if holds and failed else code, holds=holds, reason=f"{reason}; {gates}")

    yield from tuned_row(
        "fine_tune_better",
        primary.low95 > 0 and d >= margin - EPSILON,
        f"fine-tune, better: d = {_interval95(primary)}, to lie above 0 with d at least {_points(margin)}",
    )
    yield _Row(
        code="prompt_better",
        holds=primary.high95 < 0 and d <= -margin + EPSILON,
        reason=f"prompt, better: d = {_interval95(primary)}, to lie below 0 with d at most {_signed(-margin)}",
    )
    tuned_not_worse, prompt_not_worse = primary.low90 > -margin, primary.high90 < margin
    small = "; real but smaller than you said matters, so economics decide" if primary.low95 > 0 and prompt_not_worse else ""
    yield from tuned_row(
        "fine_tune_as_good_cheaper",
        tuned_not_worse and contest.has_gain,
        f"fine-tune, as good and cheaper or faster: d = {_interval90(primary)}, to lie above {_signed(-margin)}{small}; "
        f"{_economics(contest)}",
    )
    volume = rule.volume_per_month
    has_no_gain = not contest.has_gain if volume is not None else (not tuned_not_worse or contest.gain_is_excluded)
    yield _Row(
        code="prompt_as_good_simpler",
        holds=prompt_not_worse and has_no_gain,
        reason=f"prompt, as good and simpler: d = {_interval90(primary)}, to lie below {_signed(margin)}; {_economics(contest)}",
    )
    yield _Row(
        code="equivalent_prompt",
        holds=tuned_not_worse and prompt_not_worse and volume is None,
        reason=f"equivalent: d = {_interval90(primary)}, to lie within {_points(margin)} of 0, and no volume given"
        if volume is None
        else f"equivalent: a volume was given ({volume:,} requests a month)",
    )


def _economics(contest: Contest) -> str:
    """What is known of cost and speed, in one phrase."""
    saving, speed, pays = contest.saving, contest.speed, contest.break_even
    if saving.value is None:
        cost = "cost a request not measured"
    else:
        ends = "no interval" if saving.low is None or saving.high is None else f"[{1000 * saving.low:.4g}, {1000 * saving.high:.4g}]"
        cost = f"saves {1000 * saving.value:.4g} USD {ends} in 1,000 requests{', that is, costs more' if saving.value < 0 else ''}"
    time = "speed not measured" if speed.value is None else f"takes {speed.value:.2f} times as long{_ends(speed.low, speed.high)}"
    if pays.value is None:
        even = f"break-even {pays.method}"
    else:
        even = f"pays from {pays.value:,.0f} requests a month [{pays.low or 0:,.0f}, {pays.high or 0:,.0f}]"
    volume = contest.rule.volume_per_month
    return f"{cost}, {time}, {even}, {'no volume given' if volume is None else f'volume {volume:,}'}"


def _conflict(evidence: Evidence, code: VerdictCode) -> str:
    """Why seeds or metrics take back a verdict on tuned against prompt; empty if they do not."""
    primary = evidence.contest.primary
    for other in evidence.confirming:
        if (primary.low95 > 0 and other.high95 < 0) or (primary.high95 < 0 and other.low95 > 0):
            return f"metrics disagree: {primary.metric} {_interval95(primary)}, {other.metric} {_interval95(other)}"
    if code in ("neither_needed", "neither_yet"):
        return ""
    codes = {evidence.contest.tuned.seed: code}
    for sibling in evidence.other_seeds:
        codes[sibling.tuned.seed] = next((row.code for row in _contest_rows(sibling) if row.holds), "inconclusive")
    if len(set(codes.values())) > 1:
        return "training seeds disagree: " + ", ".join(f"seed {seed} says {found}" for seed, found in sorted(codes.items()))
    return ""


def _leans_to_tuned(contest: Contest) -> bool:
    """The half-way state: tuned shown not worse, prompt not shown not worse, no economic gain."""
    primary, margin = contest.primary, contest.rule.margin
    return (
        primary.n >= MIN_TEST_ITEMS
        and primary.low90 > -margin
        and primary.high90 >= margin
        and not contest.has_gain
        and not contest.failed_gates
    )


def _strength(code: VerdictCode, evidence: Evidence, *, leans: bool) -> explain.Strength:
    contest, gap = evidence.contest, evidence.floor_gap
    if code == "inconclusive":
        return "leaning" if leans else "none"
    if contest.is_small or (code == "neither_yet" and explain.may_be_reached(evidence)):
        return "leaning"
    if code not in ("neither_needed", "neither_yet") and gap is not None and gap.high95 >= 0:
        return "leaning"  # better than its rival, but not shown better than what needs no language model
    primary, margin = contest.primary, contest.rule.margin
    if code == "fine_tune_better" and primary.low95 >= margin and not contest.unsettled_gates:
        return "strong"
    return "strong" if code == "prompt_better" and primary.high95 <= -margin else "clear"


def _chosen(evidence: Evidence) -> str:
    """Which arms stand for their families and why; with several training seeds the recipe's own interval."""
    contest, recipe = evidence.contest, evidence.recipe
    named = [(arm.name, arm.dev_score) for arm in (contest.prompt, contest.tuned, evidence.floor) if arm is not None]
    chosen = ", ".join(f"{name} ({'no dev score' if score is None else _points(score)})" for name, score in named)
    seeds = ""
    if recipe is not None:
        seeds = (
            f"; the recipe over {recipe.num_seeds} training seeds: {_signed(recipe.difference)} "
            f"[{_signed(recipe.low95)}, {_signed(recipe.high95)}], spread between seeds {_points(recipe.seed_sd)}"
        )
    return f"best on dev, not on test: {chosen}{seeds}"


def _without_retrieval(highest: ArmResult | None, tuned: ArmResult, rule: DecisionRule) -> tuple[str, ...]:
    """Why the tuned arm is not the one with the highest dev score."""
    if highest is None or highest is tuned or highest.dev_score is None or tuned.dev_score is None:
        return ()
    gain, margin = _signed(highest.dev_score - tuned.dev_score), _points(rule.margin_of_choice)
    return (f"{highest.name}: {gain} on dev over {tuned.name}, less than the margin {margin}: not worth another part to serve",)


def _nothing_to_compare(
    prompt: ArmResult | None, tuned: ArmResult | None, floor: ArmResult | None, rule: DecisionRule, reasons: tuple[str, ...]
) -> Verdict:
    missing = explain.missing_reason(prompt, tuned, rule)
    return Verdict(
        code="inconclusive",
        strength="none",
        headline=explain.INCONCLUSIVE,
        sentence=f"{missing} No difference was measured, so nothing is known about it. Until then keep the prompt: it is reversible.",
        next_steps=explain.missing_steps(prompt, tuned, rule),
        primary=None,
        secondary=(),
        gates=(),
        best_prompt=prompt.name if prompt else None,
        best_tuned=tuned.name if tuned else None,
        best_floor=floor.name if floor else None,
        metric=rule.metric,
        margin=rule.margin,
        break_even_requests_per_month=None,
        min_detectable_effect=None,
        reasons=(*reasons, missing),
    )


def _points(score: float) -> str:
    return f"{100 * score:.1f}"


def _signed(difference: float) -> str:
    return explain.signed_points(difference)


def _interval95(comparison: Comparison) -> str:
    return f"{_signed(comparison.difference)} [{_signed(comparison.low95)}, {_signed(comparison.high95)}] (95 %, n = {comparison.n:,})"


def _interval90(comparison: Comparison) -> str:
    return f"{_signed(comparison.difference)} [{_signed(comparison.low90)}, {_signed(comparison.high90)}] (90 %, n = {comparison.n:,})"


def _ends(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
