"""What the user said matters, and the limits a tuned model must keep. Declared before the locked test is looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass

from luthier.core.errors import ConfigError
from luthier.metrics.catalogue import LOWER_IS_BETTER
from luthier.metrics.cost import Economics, Prices

MIN_TEST_ITEMS = 30  # fewer: no verdict
MIN_CLEAR_ITEMS = 100  # fewer: "leaning" at most
MIN_CLEAR_CLUSTERS = 20
EPSILON = 1e-9  # a difference of exactly the margin counts as the margin, whatever the rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRule:
    """Metric, margin, volume, prices and gate limits. Scores and limits in [0, 1]: 0.05 is 5 points.

    The defaults are conventions made for 300 to 500 test items, not findings. Raises ConfigError for a value that makes no sense.
    """

    metric: str
    margin: float = 0.05  # the smallest difference that matters
    declared_margin: float | None = None  # the one before the test was opened, where `margin` was changed since
    min_quality: float | None = None
    volume_per_month: int | None = None
    prices: Prices
    hosting_usd_per_month: float = 0.0
    labelling_usd: float = 0.0
    months_between_retrains: float = 6.0
    seed: int = 0
    num_folds: int = 1  # more: estimated by cross-fitting, and "leaning" at most
    confirming_metrics: tuple[str, ...] = ()  # higher is better; one that points the other way makes the run inconclusive
    serves_other_work: bool = False  # the tuned model also answers other requests: what it forgets counts
    # What F may do worse than the best prompt P, in score units.
    max_valid_drop: float = 0.01
    max_unsupported_rise: float = 0.02
    max_fabrication_rise: float = 0.02
    max_unsafe_rise: float = 0.02
    max_refusal_rise: float = 0.05
    max_incoherent: float = 0.01  # of the test items a share of F's answers; elsewhere a rise
    max_consistency_drop: float = 0.03
    max_retention_drop: float = 0.05  # relative
    max_following_drop: float = 0.05

    def __post_init__(self) -> None:
        _check("margin", self.margin, 0 < self.margin < 1, "a score above 0 and below 1", "decide.margin: 5")
        if self.min_quality is not None:
            _check("min_quality", self.min_quality, 0 <= self.min_quality <= 1, "a score from 0 to 1", "decide.min_quality: 70")
        if self.volume_per_month is not None:
            _check("volume", self.volume_per_month, self.volume_per_month >= 0, "requests a month >= 0", "decide.volume: 20000")
        for name, amount in (("hosting", self.hosting_usd_per_month), ("labelling", self.labelling_usd)):
            _check(name, amount, amount >= 0, "US dollars >= 0", f"decide.{name}: 0")
        _check("months", self.months_between_retrains, self.months_between_retrains > 0, "a number above 0", "decide.months: 6")
        for metric in (self.metric, *self.confirming_metrics):
            if metric in LOWER_IS_BETTER:
                raise ConfigError(
                    f"{metric} is better when lower; a verdict rests on a score that is better when higher",
                    where="decide.metric",
                    fix="decide.metric: exact",
                )

    @property
    def margin_of_choice(self) -> float:
        """The margin by which arms are chosen on dev: never one that was picked with the test results in view."""
        return self.margin if self.declared_margin is None else self.declared_margin

    @property
    def least_quality(self) -> float:
        """The score below which no arm does the task: the user's minimum, else one margin above nothing."""
        return self.margin if self.min_quality is None else self.min_quality

    @property
    def economics(self) -> Economics:
        """The part that a break-even is computed from."""
        return Economics(
            prices=self.prices,
            hosting_usd_per_month=self.hosting_usd_per_month,
            labelling_usd=self.labelling_usd,
            months_between_retrains=self.months_between_retrains,
        )


def _check(key: str, value: float, is_right: bool, expected: str, fix: str) -> None:
    if not (math.isfinite(value) and is_right):
        raise ConfigError(f"is {value!r}, expected {expected}", where=f"decide.{key}", fix=fix)
