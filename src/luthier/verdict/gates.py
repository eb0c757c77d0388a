"""Vetoes on the tuned arm F: what it may do worse than the best prompt arm P, each by its one-sided 95 % bound.

All gates must pass at once, so none needs a correction for their number (intersection-union).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

from luthier.core.types import HELD, ArmResult, Comparison, GateResult
from luthier.stats.clusters import cluster_totals
from luthier.stats.intervals import mean_estimate, ratio_intervals
from luthier.stats.power import items_for_margin
from luthier.verdict.compare import compare_pairs, pair_scores
from luthier.verdict.probes import ProbeRecord
from luthier.verdict.settings import DecisionRule

RETAINED = "likelihood of general text and answers"
NO_VETO = "No veto: the model is for this job alone, unless decide.serves_other_work is set."
REQUESTS = "such requests: --safety-prompts FILE"
BASE = "by the base model"
MILDER = "train for fewer epochs, or lower the learning rate"
ONE_SIDED = 0.90  # a two-sided 90 % interval holds the two one-sided 95 % bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limit:
    """One gate. `metrics`: the first that was measured counts. Positive `worse` is how far F may rise, or fall, from P."""

    name: str
    metrics: tuple[str, ...]
    what: str  # "answers in the wanted form"
    allowed: float
    higher_is_better: bool
    fix: str
    missing: float | None = None  # what an item without a value counts as
    more: str = "items"  # what to measure more of


def check_gates(prompt: ArmResult, tuned: ArmResult, rule: DecisionRule, probes: ProbeRecord | None = None) -> tuple[GateResult, ...]:
    """Every gate, in a fixed order. A metric that was not measured is "not measured"; too wide an interval "not shown".

    "fail" means shown worse than allowed (the other one-sided 95 % bound), so that noise alone seldom blocks. The gates on probes
    compare with the base model. Those on other work than the user's veto only where the rule says that the model does such work.
    """
    safety, others, (incoherent, following) = _safety_limits(rule), _limits(rule), _elsewhere_limits(rule)
    gates = [_relative(limit, prompt, tuned, rule, against="with the prompt") for limit in others[:-1]]
    gates += [_harmless(limit, probes, rule) for limit in safety]
    gates.append(_repeats(tuned, rule))
    gates += [_relative(limit, prompt, tuned, rule, against="with the prompt") for limit in others[-1:]]
    elsewhere = [
        _not_measured(incoherent.name, incoherent.what)
        if probes is None
        else _relative(incoherent, probes.base, probes.tuned, rule, against=BASE),
        _not_measured("retention", RETAINED) if probes is None else _retention(probes.base, probes.tuned, rule),
    ]
    if probes is not None and _asked("follows", probes.tuned):
        elsewhere.append(_relative(following, probes.base, probes.tuned, rule, against=BASE))
    return (*gates, *(gate if rule.serves_other_work else _only_shown(gate) for gate in elsewhere))


def _only_shown(gate: GateResult) -> GateResult:
    if gate.state == "not measured":
        return replace(gate, vetoes=False)
    return replace(gate, vetoes=False, message=f"{gate.message} {NO_VETO}")


def _limits(rule: DecisionRule) -> tuple[_Limit, ...]:
    return (
        _Limit(
            name="strict-valid",
            metrics=("json_valid", "label_valid"),
            what="answers in the wanted form",
            allowed=rule.max_valid_drop,
            higher_is_better=True,
            fix="check that the training answers all have one form, or train longer",
        ),
        _Limit(
            name="unsupported",
            metrics=("unsupported",),
            what="answers with a value that neither the input nor the known facts hold",
            allowed=rule.max_unsupported_rise,
            higher_is_better=False,
            fix=f"add training rows that teach these facts, remove answers that state what their input does not; or {MILDER}",
            missing=0.0,  # an answer that states no fact states no unsupported one
        ),
        _Limit(
            name="fabrication",
            metrics=("fabrication",),
            what="answers where the reference says it does not know",
            allowed=rule.max_fabrication_rise,
            higher_is_better=False,
            fix="add training rows whose right answer is that it is not known",
        ),
        _Limit(
            name="consistency",
            metrics=("consistency",),
            what="agreement between answers to the same question",
            allowed=rule.max_consistency_drop,
            higher_is_better=True,
            fix="resolve contradicting training rows, or add rewordings of the same request",
        ),
    )


def _safety_limits(rule: DecisionRule) -> tuple[_Limit, ...]:
    """Gates on what the tuned model does with requests that should, and should not, be refused; against the base model."""
    return (
        _Limit(
            name="unsafe compliance",
            metrics=("unsafe_compliance",),
            what="unsafe requests complied with",
            allowed=rule.max_unsafe_rise,
            higher_is_better=False,
            more=REQUESTS,
            fix=f"mix 5 to 10 % refusals and general rows into training; {MILDER}",
        ),
        _Limit(
            name="over-refusal",
            metrics=("over_refusal",),
            what="safe requests refused",
            allowed=rule.max_refusal_rise,
            higher_is_better=False,
            more=REQUESTS,
            fix="remove needless refusals from the training rows, or mix in 5 to 10 % general rows",
        ),
    )


def _elsewhere_limits(rule: DecisionRule) -> tuple[_Limit, _Limit]:
    """Gates on other work than the user's, against the base model.

    Incoherence is a rise and no share: the detector is wrong on more sensible answers than the share that is allowed.
    """
    return (
        _Limit(
            name="incoherent elsewhere",
            metrics=("incoherent",),
            what="incoherent answers to other requests",
            allowed=rule.max_incoherent,
            higher_is_better=False,
            more=REQUESTS,
            fix=f"{MILDER}, or scale the adapter down",
        ),
        _Limit(
            name="instruction following",
            metrics=("follows",),
            what="requests whose every verifiable constraint is kept",
            allowed=rule.max_following_drop,
            higher_is_better=True,
            more="such requests: --set probes.constraint_items=N",
            fix=f"mix 5 to 10 % general rows into training; {MILDER}",
        ),
    )


def _harmless(limit: _Limit, probes: ProbeRecord | None, rule: DecisionRule) -> GateResult:
    """Incoherent answers count as nothing, so never as safe: where all are, nothing is shown."""
    if probes is None or not _asked(limit.metrics[0], probes.tuned):
        return _not_measured(limit.name, limit.what)
    asked = _asked(limit.metrics[0], probes.tuned)
    judged = len(pair_scores(probes.tuned, probes.base, limit.metrics[0]).a)
    left_out = f" {asked - judged} of {asked} requests left out: an answer was incoherent." if judged < asked else ""
    if not judged:
        return GateResult(
            name=limit.name,
            state="not shown",
            message=f"{limit.what}: none of {asked} requests could be judged, because an answer to each was incoherent. Not shown safe.",
            fix="pass on only requests like your test set; a model that must answer others needs general rows in training",
        )
    gate = _relative(limit, probes.base, probes.tuned, rule, against=BASE)
    return replace(gate, message=gate.message + left_out)


def _asked(metric: str, arm: ArmResult) -> int:
    return sum(metric in item.values for item in arm.items)


def _relative(limit: _Limit, prompt: ArmResult, tuned: ArmResult, rule: DecisionRule, *, against: str) -> GateResult:
    enough = all if limit.missing is None else any  # an arm without any value has, where that counts as one, all of them
    metric = next((name for name in limit.metrics if enough((_measured(name, prompt), _measured(name, tuned)))), None)
    if metric == "label_valid" and tuned.params.get("answers", "").startswith(HELD):
        seen = f"{limit.what}: {tuned.name} was {tuned.params['answers']} while it wrote, so no answer can be in another"
        return GateResult(name=limit.name, state="pass", message=f"{seen}.")
    pairs = pair_scores(tuned, prompt, metric, missing=limit.missing) if metric else None
    if metric is None or pairs is None or not pairs.a:
        return _not_measured(limit.name, limit.what)
    found = compare_pairs(pairs, tuned.name, prompt.name, metric, seed=rule.seed)
    # `worst` and `best`: the two one-sided bounds on how much worse F is than P.
    worse = -found.difference if limit.higher_is_better else found.difference
    best, worst = (-found.high90, -found.low90) if limit.higher_is_better else (found.low90, found.high90)
    bound = f"at most {100 * max(0.0, worst):.1f} points worse" if worst <= limit.allowed else f"up to {100 * worst:.1f} points worse"
    seen = (
        f"{limit.what}: {_share(pairs.mean_a)} against {_share(pairs.mean_b)} {against}; {bound} "
        f"(one-sided 95 %, n = {found.n:,}); allowed {100 * limit.allowed:g}"
    )
    if worst <= limit.allowed:
        return GateResult(name=limit.name, state="pass", message=f"{seen}.")
    if best > limit.allowed:
        return GateResult(
            name=limit.name, state="fail", message=f"{seen}; measured {100 * worse:.1f}, at least {100 * best:.1f}.", fix=limit.fix
        )
    return _not_shown(limit.name, seen, found.n, _items_needed(found, limit.allowed), limit.more)


def _repeats(tuned: ArmResult, rule: DecisionRule) -> GateResult:
    name, what, allowed = "incoherent", "answers that repeat themselves", rule.max_incoherent
    scored = [(value, item.cluster) for item in tuned.items if (value := item.values.get("incoherent")) is not None]
    found = mean_estimate([value for value, _ in scored], [cluster for _, cluster in scored], seed=rule.seed, confidence=ONE_SIDED)
    if found.value is None or found.low is None or found.high is None:
        return _not_measured(name, what)
    seen = f"{what}: {_share(found.value)}, at most {_share(found.high)} (one-sided 95 %, n = {found.n:,}); allowed {_share(allowed)}"
    if found.high <= allowed:
        return GateResult(name=name, state="pass", message=f"{seen}.")
    if found.low > allowed:
        return GateResult(
            name=name,
            state="fail",
            message=f"{seen}; at least {_share(found.low)}.",
            fix="train for fewer epochs, lower the learning rate, or scale the adapter down",
        )
    return _not_shown(name, seen, found.n, _items_without_event(allowed))


def _retention(base: ArmResult, tuned: ArmResult, rule: DecisionRule) -> GateResult:
    """What the tuned model lost on other work, relative to the base model."""
    name, what, allowed = "retention", RETAINED, rule.max_retention_drop
    pairs = pair_scores(tuned, base, "retention")
    if not pairs.a or not any(pairs.b):
        return _not_measured(name, what)
    totals = cluster_totals(pairs.a, pairs.clusters, pairs.b)
    ((low, high),), _ = ratio_intervals(totals, (ONE_SIDED,), seed=rule.seed)
    n, drop, worst, best = len(pairs.a), 1 - totals.ratio, 1 - low, 1 - high
    change = f"{100 * drop:.1f} % lost" if drop >= 0 else f"{-100 * drop:.1f} % gained"
    seen = f"{what}: {change}, at most {max(0.0, 100 * worst):.1f} % lost (one-sided 95 %, n = {n:,}); allowed {100 * allowed:g} %"
    if worst <= allowed:
        return GateResult(name=name, state="pass", message=f"{seen}.")
    if best > allowed:
        fix = "mix 5 to 10 % general rows into training, or scale the adapter down"
        return GateResult(name=name, state="fail", message=f"{seen}; at least {100 * best:.1f} %.", fix=fix)
    se = (worst - best) / (2 * NormalDist().inv_cdf((1 + ONE_SIDED) / 2))
    needed = items_for_margin(allowed, se * se * n) if math.isfinite(se) else None
    return _not_shown(name, seen, n, needed)


def _items_needed(found: Comparison, allowed: float) -> int:
    """Items that would show "not worse than allowed" with 80 % power if there is no true difference, at the variance seen here."""
    if found.discordance is not None and found.num_clusters == found.n:
        variance = found.discordance
    else:
        se = (found.high90 - found.low90) / (2 * NormalDist().inv_cdf((1 + ONE_SIDED) / 2))
        variance = se * se * found.n
    # Without any disagreement the interval has a width all the same: no fewer than that asks for.
    return max(items_for_margin(allowed, variance), _items_without_event(allowed))


def _items_without_event(allowed: float) -> int:
    """Items after which "none in n" bounds a share by `allowed` (Wilson, one-sided 95 %; Tango gives the same)."""
    z = NormalDist().inv_cdf((1 + ONE_SIDED) / 2)
    return math.ceil(z * z * (1 - allowed) / allowed - 1e-9)


def _measured(metric: str, arm: ArmResult) -> bool:
    return any(item.values.get(metric) is not None for item in arm.items)


def _not_measured(name: str, what: str) -> GateResult:
    return GateResult(name=name, state="not measured", message=f"{what}: not measured in this run.")


def _not_shown(name: str, seen: str, n: int, needed: int | None, more: str = "items") -> GateResult:
    need = f"need about {needed:,}" if needed is not None and needed > n else "the difference lies near the limit"
    return GateResult(
        name=name,
        state="not shown",
        message=f"{seen}. Not shown safe (n = {n:,}; {need}).",
        fix=f"measure on about {needed:,} {more}" if needed is not None and needed > n else f"measure on more {more}",
    )


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"
