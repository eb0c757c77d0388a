"""Two arms on the items both answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from luthier.core.errors import RunError
from luthier.core.types import ArmResult, Comparison, Estimate, ItemScore
from luthier.stats.bootstrap import NUM_DRAWS
from luthier.stats.holm import holm
from luthier.stats.intervals import mean_estimate, paired_difference, quantile_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Scores of two arms on the same items, in the order of the first arm's items."""

    a: tuple[float, ...]
    b: tuple[float, ...]
    clusters: tuple[str, ...]
    num_left_out: int  # items not answered by both, or unscored in either

    @property
    def mean_a(self) -> float | None:
        """Mean score of the first arm on the paired items."""
        return fmean(self.a) if self.a else None

    @property
    def mean_b(self) -> float | None:
        """Mean score of the second arm on the paired items."""
        return fmean(self.b) if self.b else None


def pair_scores(a: ArmResult, b: ArmResult, metric: str, *, missing: float | None = None) -> Pairs:
    """Join two arms by item. Items without a score in either are left out and counted, or score `missing` where it is given.

    Raises RunError for an item that stands twice in an arm, or in another cluster in the other arm.
    """
    items_b = _by_id(b)
    _by_id(a)
    pairs: list[tuple[float, float, str]] = []
    for item in a.items:
        other = items_b.get(item.item_id)
        if other is None:
            continue
        if other.cluster != item.cluster:
            raise RunError(
                f"cluster is {item.cluster!r} in {a.name!r} and {other.cluster!r} in {b.name!r}",
                where=f"item {item.item_id}",
                fix="measure both arms on the same split",
            )
        score_a, score_b = _score(item, metric, missing), _score(other, metric, missing)
        if score_a is not None and score_b is not None:
            pairs.append((score_a, score_b, item.cluster))
    num_items = len({item.item_id for item in a.items} | set(items_b))
    return Pairs(
        a=tuple(p[0] for p in pairs), b=tuple(p[1] for p in pairs), clusters=tuple(p[2] for p in pairs), num_left_out=num_items - len(pairs)
    )


def compare_arms(a: ArmResult, b: ArmResult, metric: str, *, seed: int, num_draws: int = NUM_DRAWS) -> Comparison:
    """Paired difference `a - b` with two-sided 95 and 90 % intervals.

    Right/wrong scores of items that each stand for themselves: Tango score interval and McNemar mid-p. Graded scores or
    clustered items: cluster bootstrap and sign flips (`stats.intervals.paired_difference`).
    Raises RunError where the two arms have no scored item in common.
    """
    return compare_pairs(pair_scores(a, b, metric), a.name, b.name, metric, seed=seed, num_draws=num_draws)


def compare_pairs(pairs: Pairs, a: str, b: str, metric: str, *, seed: int, num_draws: int = NUM_DRAWS) -> Comparison:
    """`compare_arms` on scores already joined."""
    if not pairs.a:
        raise RunError(
            f"{a!r} and {b!r} have no item that both answered and that has a score for {metric!r}",
            where="comparison",
            fix="measure both arms on the same split, or choose another decide.metric",
        )
    is_binary = all(score in (0.0, 1.0) for score in (*pairs.a, *pairs.b))
    found = paired_difference(
        [x - y for x, y in zip(pairs.a, pairs.b, strict=True)], pairs.clusters, is_binary=is_binary, seed=seed, num_draws=num_draws
    )
    left_out = f"; {pairs.num_left_out} items left out (not scored in both)" if pairs.num_left_out else ""
    return Comparison(
        a=a,
        b=b,
        metric=metric,
        n=found.n,
        num_clusters=found.num_clusters,
        difference=found.difference,
        low95=found.interval95[0],
        high95=found.interval95[1],
        low90=found.interval90[0],
        high90=found.interval90[1],
        p_value=found.p_value,
        method=found.method + left_out,
        discordance=found.discordance,
    )


def with_holm(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The secondary comparisons with their p values adjusted for each other."""
    adjusted = holm([comparison.p_value for comparison in comparisons])
    return tuple(replace(comparison, p_holm=p) for comparison, p in zip(comparisons, adjusted, strict=True))


def arm_score(arm: ArmResult, metric: str, *, seed: int) -> Estimate:
    """Mean score of one arm over the items that could be scored."""
    scored = [(score, item.cluster) for item in arm.items if (score := item.values.get(metric)) is not None]
    return mean_estimate([score for score, _ in scored], [cluster for _, cluster in scored], seed=seed)


def latency_ratio(a: ArmResult, b: ArmResult) -> Estimate:
    """Median over paired single requests of a's time / b's time, with its order-statistic interval. Below 1: `a` is faster."""
    paired = len(a.latencies_s) == len(b.latencies_s)
    ratios = [x / y for x, y in zip(a.latencies_s, b.latencies_s, strict=False) if y > 0] if paired else []
    return quantile_interval(ratios, 0.5)


def _score(item: ItemScore, metric: str, missing: float | None) -> float | None:
    score = item.values.get(metric)
    return missing if score is None else score


def _by_id(arm: ArmResult) -> dict[str, ItemScore]:
    items = {item.item_id: item for item in arm.items}
    if len(items) != len(arm.items):
        raise RunError(f"arm {arm.name!r} has an item twice", where="items", fix="measure this arm again")
    return items
