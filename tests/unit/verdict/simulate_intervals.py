"""Coverage of what a verdict shows beside the difference, and verdicts on planted effects; shared by the fast and the slow tier."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from tests.unit.verdict.made_arms import METRIC, arm, prices, rule

from luthier.core.types import ArmResult, Comparison, Estimate, ItemScore, TaskProfile
from luthier.metrics.aggregate import aggregates
from luthier.metrics.cost import DRIFT, Economics, break_even
from luthier.verdict.rules import decide
from luthier.verdict.seeds import recipe_difference

Array = np.ndarray
QUALITY = ("fine_tune_better", "prompt_better")
Z95 = NormalDist().inv_cdf(0.975)
TEXT = TaskProfile(kind="text", evidence="")
LEVELS = 200  # of a graded score


def recipe_coverage(num_seeds: int, spread: float, runs: int = 2_000) -> float:
    """Trainings that differ by `spread` times the error of the items, which they share."""
    generator = np.random.default_rng(20260201)
    se, truth, hits = 0.01, 0.05, 0
    for _ in range(runs):
        items = generator.normal(truth, se)
        seen = generator.normal(items, spread * se, size=num_seeds)
        found = recipe_difference([_seen(float(d), se) for d in seen])
        hits += found.low95 <= truth <= found.high95
    return hits / runs


def _seen(difference: float, se: float) -> Comparison:
    return Comparison(
        a="tuned", b="prompt", metric=METRIC, n=300, num_clusters=300, difference=difference, p_value=None, method="",
        low95=difference - Z95 * se, high95=difference + Z95 * se, low90=difference - 1.645 * se, high90=difference + 1.645 * se,
    )  # fmt: skip


def _timed(name: str, seconds: Array, clusters: list[str]) -> ArmResult:
    family = "tuned" if name == "tuned" else "prompt"
    items = tuple(
        ItemScore(item_id=str(i), cluster=cluster, text="", gold="", values={}, latency_s=float(s))
        for i, (s, cluster) in enumerate(zip(seconds, clusters, strict=True))
    )
    return ArmResult(name=name, family=family, model="small", description="", items=items, train_seconds=3600.0)


def break_even_coverage(num_clusters: int, runs: int, *, size: int = 1, drift: bool = True) -> float:
    """Skewed times, paired by item; each arm on a machine that is a little faster or slower while it is measured.

    Of all runs: one whose saving is not determined says so, and counts as covered (its interval has no upper end).
    """
    generator = np.random.default_rng(20260202)
    economics = Economics(prices=prices(3.6), hosting_usd_per_month=20.0)
    prompt_s, tuned_s, hits = 3.0, 1.0, 0
    clusters = [str(i // size) for i in range(num_clusters * size)]
    truth = (20.0 + 3.6 / 6) / ((prompt_s - tuned_s) * 0.001)
    for run in range(runs):
        length = np.repeat(generator.gamma(1.5, 1 / 1.5, num_clusters), size)
        speeds = generator.normal(1.0, DRIFT / Z95 if drift else 0.0, 2)
        own = generator.gamma(8, 1 / 8, (2, len(length)))
        arms = [
            _timed(name, s * length * own[k] * speeds[k], clusters) for k, (name, s) in enumerate((("p", prompt_s), ("tuned", tuned_s)))
        ]
        found = break_even(arms[0], arms[1], economics, seed=run)
        hits += found.value is None or _holds(found, truth)
    return hits / runs


def abstention_coverage(metric: str, n: int, runs: int, *, size: int = 1, declines: float = 0.85) -> float:
    """Four items in ten have no answer; `declines` of those are declined, and one in ten of the others. Clusters of `size` alike."""
    generator = np.random.default_rng(20260203)
    truth = declines if metric == "abstention_recall" else 0.4 * declines / (0.4 * declines + 0.6 * 0.1)
    hits = 0
    for run in range(runs):
        has_none, said = (np.repeat(generator.random(n // size), size) for _ in range(2))
        made = [
            ItemScore(item_id=str(i), cluster=str(i // size), text="", gold="", values=_abstention(a < 0.4, u, declines))
            for i, (a, u) in enumerate(zip(has_none, said, strict=True))
        ]
        hits += _holds(aggregates(made, TEXT, seed=run)[metric], truth)
    return hits / runs


def _abstention(has_none: bool, uniform: float, declines: float) -> dict[str, float | None]:
    if has_none:
        return {"fabrication": float(uniform >= declines), "over_abstention": None}
    return {"fabrication": None, "over_abstention": float(uniform < 0.1)}


def found_better(n: int, difference: float, runs: int, *, discordance: float | None, margin: float, size: int = 1) -> tuple[float, float]:
    """Share of runs in which `decide` says that the tuned arm is better, and in which that either is. Graded without a discordance.

    Graded: differences uniform over 0.3 around the true one, on a scale of 200 steps. Clusters of `size` items that answer alike.
    """
    generator = np.random.default_rng(20260204)
    clusters = [f"c{i // size:04d}" for i in range(n)]
    better = either = 0
    for run in range(runs):
        uniform = np.repeat(generator.random(-(-n // size)), size)[:n]
        base = np.repeat(generator.random(-(-n // size)), size)[:n]
        if discordance is None:
            prompt = 0.2 + 0.6 * np.round(base * LEVELS) / LEVELS
            tuned = np.clip(prompt + difference + 0.3 * (uniform - 0.5), 0, 1)
        else:
            first = (discordance + difference) / 2
            prompt = np.where(uniform < first, 0.0, np.where(uniform < discordance, 1.0, base < 0.7))
            tuned = np.where(uniform < first, 1.0, np.where(uniform < discordance, 0.0, base < 0.7))
        arms = [
            arm(name, [float(x) for x in scores], family=family, seconds=None, clusters=clusters)  # type: ignore[arg-type]
            for name, family, scores in (("prompt", "prompt", prompt), ("tuned", "tuned", tuned))
        ]
        code = decide(arms, rule(margin=margin, seed=run)).code
        better, either = better + (code == "fine_tune_better"), either + (code in QUALITY)
    return better / runs, either / runs


GRADED_VARIANCE = 0.3**2 / 12


def _holds(found: Estimate, truth: float) -> bool:
    assert found.low is not None and found.high is not None and not math.isnan(found.low + found.high)
    return found.low - 1e-12 <= truth <= found.high + 1e-12
