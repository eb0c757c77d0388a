"""The words of a verdict. Always effect, interval, n and margin, and always "on data like your test set"."""

from __future__ import annotations

from typing import Literal

from luthier.core.types import ArmResult, Estimate, VerdictCode
from luthier.stats.power import items_for_difference, items_for_margin, items_for_variance
from luthier.verdict.evidence import Contest, Evidence
from luthier.verdict.settings import MIN_CLEAR_ITEMS, MIN_TEST_ITEMS, DecisionRule

Strength = Literal["strong", "clear", "leaning", "none"]

INCONCLUSIVE = "INCONCLUSIVE: cannot tell yet"
MAX_ITEMS = 1_000_000  # a need beyond this is not a plan
SCOPE = "on data like your test set"
KEEP = "Until then keep the prompt: it is reversible."


def headline(code: VerdictCode, contest: Contest, *, leans: bool) -> str:
    """The verdict in a few capitals."""
    joint = "BOTH: fine-tune and keep the prompt/retrieval"
    gain = "cheaper" if contest.is_cheaper else "faster"
    match code:
        case "fine_tune_better":
            return f"{joint}: better quality" if contest.is_joint else "FINE-TUNE: better quality"
        case "fine_tune_as_good_cheaper":
            return f"{joint}: as good, {gain}" if contest.is_joint else f"FINE-TUNE: as good, {gain}"
        case "prompt_better":
            return "PROMPT: better quality"
        case "prompt_as_good_simpler":
            return "PROMPT: as good, simpler"
        case "equivalent_prompt":
            return "EQUIVALENT: keep the prompt"
        case "neither_needed":
            return "NEITHER NEEDED: use the simple baseline"
        case "neither_yet":
            return "NEITHER YET: larger model or more and better data"
        case "blocked":
            return f"FINE-TUNE BLOCKED BY {', '.join(gate.name for gate in contest.failed_gates)}"
        case "inconclusive":
            return "INCONCLUSIVE, leaning fine-tune" if leans else INCONCLUSIVE


def sentence(code: VerdictCode, evidence: Evidence, *, conflict: str) -> str:
    """One plain paragraph with effect, interval, n and margin."""
    contest = evidence.contest
    primary, rule = contest.primary, contest.rule
    tuned, prompt, effect = contest.tuned.name, contest.prompt.name, _effect(contest)
    margin = f"the margin of {points(rule.margin)}"
    match code:
        case "fine_tune_better":
            return f"{tuned} beats {prompt} by {effect}.{_floor_note(evidence)}{_gate_note(contest)}"
        case "prompt_better":
            return f"{prompt} beats {tuned}: tuned minus prompt {effect}.{_floor_note(evidence)}"
        case "fine_tune_as_good_cheaper":
            real = (
                " The difference is real but smaller than you said matters." if primary.low95 > 0 and primary.high90 < rule.margin else ""
            )
            notes = f"{_floor_note(evidence)}{_gate_note(contest)}"
            return f"{tuned} is not worse than {prompt} by {margin}: {effect}.{real} {_gain(contest)}{notes}"
        case "prompt_as_good_simpler":
            return (
                f"{prompt} is not worse than {tuned} by {margin}: tuned minus prompt {effect}. {_no_gain(contest)}{_floor_note(evidence)}"
            )
        case "equivalent_prompt":
            return f"{tuned} and {prompt} are within {margin} of each other: {effect}. {_pays(contest.break_even)}{_floor_note(evidence)}"
        case "neither_needed":
            gap = evidence.floor_gap
            assert gap is not None
            return (
                f"{gap.a}, without a language model, is not worse than {gap.b} by {margin}: {signed_points(gap.difference)} points "
                f"(90 % interval {_range(gap.low90, gap.high90)}, n = {gap.n:,}) {SCOPE}."
            )
        case "neither_yet" if may_be_reached(evidence):
            best = highest(evidence)
            found = evidence.scores[best]
            return (
                f"No arm was measured at {points(rule.least_quality)} points {SCOPE}: the best, {best}, has {points(found.value or 0.0)} "
                f"(95 % interval {_range(found.low or 0.0, found.high or 0.0)}, n = {found.n:,}), which does not rule it out. "
                f"Tuned minus prompt: {effect}."
            )
        case "neither_yet":
            best, top = max(((name, score.high or 0.0) for name, score in evidence.scores.items()), key=lambda pair: pair[1])
            return (
                f"No arm reaches {points(rule.least_quality)} points {SCOPE}: no 95 % interval ends higher than {best}'s, at {points(top)} "
                f"(n = {evidence.scores[best].n:,}). Tuned minus prompt: {effect}."
            )
        case "blocked":
            return f"{tuned} would be chosen ({effect}), but: {' '.join(gate.message for gate in contest.failed_gates)}"
        case "inconclusive":
            return _inconclusive(contest, conflict)


def highest(evidence: Evidence) -> str:
    """The arm with the highest score, baselines included."""
    return max(evidence.scores, key=lambda name: evidence.scores[name].value or 0.0)


def may_be_reached(evidence: Evidence) -> bool:
    """Whether the interval of some arm ends at the least quality or above."""
    return any((score.high or 0.0) >= evidence.contest.rule.least_quality for score in evidence.scores.values())


def next_steps(code: VerdictCode, evidence: Evidence, *, conflict: str) -> tuple[str, ...]:
    """What to do now; for an inconclusive verdict what would settle it."""
    contest = evidence.contest
    setting = f"Use the prompt of {contest.prompt.name}{_params(contest.prompt)}."
    match code:
        case "fine_tune_better" | "fine_tune_as_good_cheaper":
            keep = (f"Serve it with the retrieval it was measured with{_params(contest.tuned)}.",) if contest.is_joint else ()
            gates = tuple(f"Not shown safe: {gate.name}. To show it, {gate.fix}." for gate in contest.unsettled_gates)
            return ("Try the tuned model: luthier chat RUN", *keep, *gates)
        case "prompt_better":
            return (setting, "If you still want to fine-tune: add training rows where the tuned answers are wrong, see the report.")
        case "prompt_as_good_simpler" | "equivalent_prompt":
            return (setting, *_volume_step(contest))
        case "neither_needed":
            floor = evidence.floor.name if evidence.floor else "the baseline"
            return (f"Use {floor}: nothing to serve, nothing to maintain.", "Come back when its errors cost you; they are in the report.")
        case "neither_yet":
            return (
                "Measure a larger model beside it, in a new run: --larger-model NAME (luthier models list), or --endpoint ADDRESS.",
                "Read the wrong answers in the report: wrong or unclear references cap every arm.",
            )
        case "blocked":
            return (*(f"{gate.name}: {gate.fix}." for gate in contest.failed_gates), f"Until then: {setting}")
        case "inconclusive":
            return _settling_steps(contest, conflict)


def items_for_the_margin(contest: Contest) -> int:
    """Test items that would tell a difference of the margin at the disagreement seen, with 80 % power."""
    primary, margin = contest.primary, contest.rule.margin
    if contest.is_right_or_wrong and primary.discordance:
        return items_for_difference(margin, primary.discordance) or items_for_margin(margin, primary.discordance)
    return items_for_variance(margin, contest.variance)


def items_needed(contest: Contest) -> int | None:
    """Test items that would settle it: those for the margin; where they are there already, those for the nearest border.

    The measured difference then lies near a border of the table: the margin, or 0 for a difference of the margin or more.
    None: no number of items that is a plan.
    """
    primary, margin, variance = contest.primary, contest.rule.margin, contest.variance
    needed = items_for_the_margin(contest)
    if needed <= primary.n:
        d = primary.difference
        gap = margin - abs(d)
        border = items_for_variance(d, variance) if abs(d) >= margin else (items_for_margin(gap, variance) if gap > 1e-6 else MAX_ITEMS + 1)
        needed = max(needed, border)
    needed = max(needed, MIN_CLEAR_ITEMS)
    return None if needed > MAX_ITEMS else needed


def missing_reason(prompt: ArmResult | None, tuned: ArmResult | None, rule: DecisionRule) -> str:
    """Why there is no primary comparison."""
    if prompt is None and tuned is None:
        return "No prompt arm and no tuned arm ran."
    if prompt is None:
        return "No prompt arm ran, so the tuned arm has nothing to be measured against."
    if tuned is None:
        return "No tuned arm ran, so the prompt has nothing to be measured against."
    return f"{tuned.name} and {prompt.name} have no item with a score for {rule.metric} in common."


def missing_steps(prompt: ArmResult | None, tuned: ArmResult | None, rule: DecisionRule) -> tuple[str, ...]:
    """How to get a primary comparison."""
    if prompt is not None and tuned is not None:
        return (f"Choose a metric that both arms have instead of {rule.metric}: decide.metric, in a new run.",)
    what = "the prompt and the tuned arms" if prompt is tuned else "the prompt arms" if prompt is None else "the tuned arms"
    return (f"Mend what made {what} fail (the report says what), or do not skip them, and run again: finished arms are kept.",)


def points(score: float) -> str:
    """A score as points: 0.823 -> "82.3"."""
    return f"{100 * score:.1f}"


def signed_points(difference: float) -> str:
    """A difference as points with its sign, never "-0.0": 0.11 -> "+11.0"."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _inconclusive(contest: Contest, conflict: str) -> str:
    """Five facts: difference and interval; disagreement and n; items needed; what to do by default; what would settle it."""
    primary, rule = contest.primary, contest.rule
    needed, for_margin = items_needed(contest), items_for_the_margin(contest)
    seen = f"the disagreement seen ({100 * primary.discordance:.0f} %)" if primary.discordance is not None else "the spread seen"
    if primary.n < MIN_TEST_ITEMS:
        why = f"Fewer than {MIN_TEST_ITEMS} items carry no verdict."
    elif conflict:
        why = f"{conflict[0].upper()}{conflict[1:]}."
    else:
        why = ""
    if needed is None:
        need = f"At {seen}, no practical number of items tells it from the margin of {points(rule.margin)}."
    elif needed <= primary.n:
        need = f"At {seen}, telling a {_plain(rule.margin)}-point difference needs about {needed:,} items; they are there."
    elif for_margin <= primary.n:
        border = "0" if abs(primary.difference) >= rule.margin else f"the margin of {points(rule.margin)}"
        need = f"At {seen}, telling {signed_points(primary.difference)} from {border} needs about {needed:,} test items (80 % power)."
    else:
        need = f"At {seen}, telling a {_plain(rule.margin)}-point difference needs about {needed:,} test items (80 % power)."
    parts = (f"Tuned minus prompt: {_effect(contest)}.", why, need, KEEP, f"To settle it: {_settling_steps(contest, conflict)[0]}")
    return " ".join(part for part in parts if part)


def _settling_steps(contest: Contest, conflict: str) -> tuple[str, ...]:
    needed, n = items_needed(contest), contest.primary.n
    steps: list[str] = []
    if conflict.startswith("training seeds"):
        steps.append("train three or more seeds and compare the recipe, not one checkpoint.")
    elif conflict:
        steps.append("decide which of the metrics is the one that matters, in a new run.")
    if n < MIN_TEST_ITEMS:
        levels = f"{MIN_TEST_ITEMS} carry a leaning verdict at most, {MIN_CLEAR_ITEMS} a clear one"
        steps.append(f"label at least {MIN_CLEAR_ITEMS - n} more test items; {levels}.")
    elif needed is not None and needed > n:
        steps.append(f"label about {needed - n:,} more test items.")
    if contest.rule.volume_per_month is None and not contest.gain_is_excluded and contest.primary.low90 > -contest.rule.margin:
        steps.append("say how many requests a month you expect, then cost can decide: luthier decide RUN --volume N")
    if contest.primary.high95 < 0:
        steps.append("more of the same test items would only tell how much worse the tuned arm is.")
    else:
        steps.append("add training rows where the tuned answers are wrong, so that the difference itself grows.")
    steps += [f"whatever the quality, {gate.name} failed: {gate.fix}." for gate in contest.failed_gates]
    return (*steps, f"{KEEP} It is {contest.prompt.name}{_params(contest.prompt)}.")


def _effect(contest: Contest) -> str:
    """ "+11.0 points (82.3 against 71.3; 95 % interval +7.0 to +15.0, n = 300, margin 5.0) on data like your test set"."""
    primary, folds = contest.primary, contest.rule.num_folds
    folds = f", estimated by cross-fitting over {folds} trainings" if folds > 1 else ""
    return (
        f"{signed_points(primary.difference)} points ({points(contest.tuned_score)} against {points(contest.prompt_score)}; "
        f"95 % interval {_range(primary.low95, primary.high95)}, n = {primary.n:,}, margin {points(contest.rule.margin)}) {SCOPE}{folds}"
    )


def _range(low: float, high: float) -> str:
    return f"{signed_points(low)} to {signed_points(high)}"


def _plain(margin: float) -> str:
    return f"{100 * margin:g}"


def _gain(contest: Contest) -> str:
    gains: list[str] = []
    volume = contest.rule.volume_per_month
    if contest.is_cheaper and contest.saving.value is not None:
        gains.append(f"it saves {_usd(1000 * contest.saving.value)} in 1,000 requests and pays at {volume or 0:,} a month")
    if contest.is_faster and contest.speed.value is not None:
        gains.append(f"it answers in {100 * contest.speed.value:.0f} % of the time")
    text = ", and ".join(gains)
    return f"{text[:1].upper()}{text[1:]}." + (f" {_pays(contest.break_even)}" if contest.break_even.value else "")


def _no_gain(contest: Contest) -> str:
    volume = contest.rule.volume_per_month
    if volume is None and (contest.is_cheaper or contest.is_faster):
        return "Tuning is cheaper or faster, but not shown to be as good."
    if volume is None:
        return "No volume was given, and no gain in cost was shown."
    return f"Fine-tuning is not shown to pay at {volume:,} requests a month. {_pays(contest.break_even)}"


def _pays(pays: Estimate) -> str:
    if pays.value is None or pays.low is None or pays.high is None:
        return f"Break-even: {pays.method}."
    return f"Fine-tuning pays from about {pays.value:,.0f} requests a month (95 % interval {pays.low:,.0f} to {pays.high:,.0f})."


def _floor_note(evidence: Evidence) -> str:
    """Where the better arm is not shown to beat the best one without a model: nobody should build it unaware of that."""
    gap = evidence.floor_gap
    if gap is None or gap.high95 < 0:
        return ""
    score = evidence.scores[gap.a].value
    shown = "" if score is None else f" ({points(score)})"
    return f" But {gap.b} is not shown to beat {gap.a}{shown}, which needs no language model."


def _gate_note(contest: Contest) -> str:
    """Only what may be wrong; gates that passed need no words."""
    names = ", ".join(gate.name for gate in contest.unsettled_gates)
    return f" Not shown safe: {names}." if names else ""


def _volume_step(contest: Contest) -> tuple[str, ...]:
    if contest.rule.volume_per_month is not None or contest.primary.low90 <= -contest.rule.margin:
        return ()  # no volume makes up for answers that are not shown to be as good
    if contest.break_even.value is not None:
        return (f"{_pays(contest.break_even)} If you expect more: luthier decide RUN --volume N",)
    return ()


def _params(arm: ArmResult) -> str:
    return f" ({', '.join(f'{key} {value}' for key, value in arm.params.items())})" if arm.params else ""


def _usd(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.2g}"
