"""Several training runs of one recipe: does fine-tuning win as a recipe, or only this checkpoint?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

from luthier.core.types import ArmResult, Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeDifference:
    """Mean difference over training seeds with its 95 % interval."""

    difference: float
    low95: float
    high95: float
    num_seeds: int
    seed_sd: float


def same_recipe(arm: ArmResult, arms: Sequence[ArmResult]) -> tuple[ArmResult, ...]:
    """The other arms of the same family, description and settings that were trained from another seed."""
    return tuple(
        other
        for other in arms
        if other.seed != arm.seed
        and other.family == arm.family
        and other.description == arm.description
        and dict(other.params) == dict(arm.params)
    )


def recipe_difference(comparisons: Sequence[Comparison]) -> RecipeDifference:
    """SE^2 = SE_items^2 + s_seed^2 / S; half width: the normal quantile and Student's t with S - 1 df, weighed by the two (Cochran 1964).

    Choosing one of the quantiles by which error is seen to dominate covered 87 % with two seeds and a spread of three times the items'
    error: the few seeds that happen to agree are then taken for certain. The items are the same for all seeds, so their error does not
    shrink with the number of seeds. Raises ValueError for fewer than two comparisons.
    """
    from scipy.special import stdtrit  # slow to load

    num_seeds = len(comparisons)
    if num_seeds < 2:
        raise ValueError(f"{num_seeds} seeds: a spread needs two")
    differences = [comparison.difference for comparison in comparisons]
    z = NormalDist().inv_cdf(0.975)
    items = fmean(((c.high95 - c.low95) / (2 * z)) ** 2 for c in comparisons)
    seeds = variance(differences)
    of_seeds = seeds / num_seeds
    total = items + of_seeds  # 0 only where every interval is a point
    factor = (items * z + of_seeds * float(stdtrit(num_seeds - 1, 0.975))) / total if total > 0 else z
    half = factor * math.sqrt(total)
    mean = fmean(differences)
    return RecipeDifference(
        difference=mean, low95=max(-1.0, mean - half), high95=min(1.0, mean + half), num_seeds=num_seeds, seed_sd=math.sqrt(seeds)
    )
