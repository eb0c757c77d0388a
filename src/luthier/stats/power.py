"""How many items it takes, and how small a difference so many items can show.

Normal approximations for paired scores. Differences and margins are in score units (0.05 = 5 points), `discordance` is the
share of items on which exactly one arm is right. Clustered items count for fewer: multiply by the design effect.
"""

from __future__ import annotations

import math
from statistics import NormalDist

POWER = 0.80
ALPHA = 0.05  # two-sided for a difference, one-sided for a margin


def items_for_difference(difference: float, discordance: float, *, power: float = POWER, alpha: float = ALPHA) -> int | None:
    """Paired right/wrong items needed to show a true `difference`: (z_a/2 + z_b)^2 (discordance - difference^2) / difference^2.

    None where the arms disagree too seldom for a difference of that size to exist.
    """
    if abs(difference) >= discordance:
        return None
    return items_for_variance(difference, discordance - difference**2, power=power, alpha=alpha)


def items_for_variance(difference: float, variance: float, *, power: float = POWER, alpha: float = ALPHA) -> int:
    """Paired items needed to show a true `difference` whose item-level differences have this `variance`."""
    return math.ceil((_z(1 - alpha / 2) + _z(power)) ** 2 * variance / difference**2 - 1e-9)


def items_for_margin(margin: float, variance: float, *, power: float = POWER, alpha: float = ALPHA) -> int:
    """Paired items needed to show "not worse by `margin`" when there is no true difference; `variance` = discordance if right/wrong."""
    return math.ceil((_z(1 - alpha) + _z(power)) ** 2 * variance / margin**2 - 1e-9)


def min_detectable_effect(n: int, discordance: float, *, power: float = POWER, alpha: float = ALPHA) -> float:
    """The smallest true difference that `n` paired right/wrong items show with this power."""
    k = (_z(1 - alpha / 2) + _z(power)) ** 2
    return math.sqrt(k * discordance / (n + k))


def min_detectable_effect_from_se(se: float, *, power: float = POWER, alpha: float = ALPHA) -> float:
    """The same from the standard error of a mean difference: graded scores, clustered items."""
    return (_z(1 - alpha / 2) + _z(power)) * se


def _z(level: float) -> float:
    return NormalDist().inv_cdf(level)
