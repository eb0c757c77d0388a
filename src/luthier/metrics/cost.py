"""What requests cost, and from how many a month fine-tuning pays.

A self-hosted answer costs its share of the batched wall time at the price of the machine: the cost at 100 % utilisation. A
service that is busy a third of the time costs three times as much. Items of one batch share its time, so the spread between
items says little; what counts is the drift of the machine between two arms, timed minutes apart: `DRIFT` of each measured cost
is added to its interval, in quadrature. No built-in price is true: every price comes from the user, with its source and date.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from luthier.core.errors import ConfigError, RunError
from luthier.core.types import ArmResult, Estimate, ItemScore
from luthier.stats.clusters import cluster_totals
from luthier.stats.intervals import ratio_intervals

SECONDS_PER_HOUR = 3600
TOKENS_PER_PRICE = 1_000_000
DRIFT = 0.10  # 95 % bound on how far the speed of a machine moves between two arms; seen: up to 20 % between phases of an hour
NOT_DETERMINED = "never or not determined"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US dollars. Token prices (a million tokens) hold for the models named in `api_models`; all else runs on the user's machine.

    A missing cached-input price is the input price. Without token prices, answers of `api_models` have no cost that is known.
    Raises ConfigError for a negative price, or for token prices without a model they hold for.
    """

    usd_per_hour: float
    usd_per_m_input: float | None = None
    usd_per_m_cached_input: float | None = None
    usd_per_m_output: float | None = None
    source: str
    date: str  # ISO 8601
    api_models: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        tokens = (self.usd_per_m_input, self.usd_per_m_cached_input, self.usd_per_m_output)
        for price in (self.usd_per_hour, *tokens):
            if price is not None and not (math.isfinite(price) and price >= 0):
                raise ConfigError(f"price is {price!r}, expected US dollars >= 0", where="prices", fix="usd_per_hour: 0.10")
        has_prices = any(price is not None for price in tokens)
        if has_prices and (not self.api_models or self.usd_per_m_input is None or self.usd_per_m_output is None):
            raise ConfigError(
                "token prices need an input price, an output price and a model behind an address that they hold for",
                where="decide.usd_per_m_input",
                fix="--usd-per-m-input 0.15 --usd-per-m-output 0.60, in a run with --endpoint",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Economics:
    """What a break-even is computed from: prices, and the fixed costs of a tuned model in US dollars."""

    prices: Prices
    hosting_usd_per_month: float = 0.0
    labelling_usd: float = 0.0
    months_between_retrains: float = 6.0


def item_cost_usd(item: ItemScore, model: str, prices: Prices) -> float | None:
    """One answer in US dollars; None where time or tokens were not recorded.

    Raises RunError for a negative or non-finite time or count: a damaged record must not become a price.
    """
    counts = (item.latency_s, item.num_prompt_tokens, item.num_cached_tokens, item.num_new_tokens)
    if any(count is not None and not (math.isfinite(count) and count >= 0) for count in counts):
        raise RunError("a time or token count is negative or not finite", where=f"item {item.item_id}", fix="measure this arm again")
    if model not in prices.api_models:
        return None if item.latency_s is None else item.latency_s * prices.usd_per_hour / SECONDS_PER_HOUR
    if prices.usd_per_m_input is None or prices.usd_per_m_output is None or item.num_prompt_tokens is None or item.num_new_tokens is None:
        return None
    cached = min(item.num_cached_tokens or 0, item.num_prompt_tokens)
    cached_price = prices.usd_per_m_input if prices.usd_per_m_cached_input is None else prices.usd_per_m_cached_input
    inputs = (item.num_prompt_tokens - cached) * prices.usd_per_m_input + cached * cached_price
    return (inputs + item.num_new_tokens * prices.usd_per_m_output) / TOKENS_PER_PRICE


def cost_per_1000(arm: ArmResult, prices: Prices, *, seed: int) -> Estimate:
    """US dollars for 1,000 requests; 95 % interval: bootstrap over items, and drift. None where no item has a cost."""
    known = [(cost, item.cluster) for item in arm.items if (cost := item_cost_usd(item, arm.model, prices)) is not None]
    costs, clusters = [cost for cost, _ in known], [cluster for _, cluster in known]
    found = _scaled_ratio(costs, [1.0] * len(known), clusters, len(arm.items), seed=seed)
    return _with_drift(found, _drift(arm, found.value, prices))


def cost_per_1000_correct(arm: ArmResult, metric: str, prices: Prices, *, seed: int) -> Estimate:
    """US dollars for 1,000 right answers: total cost over total score. None where nothing is right; an infinite end is None."""
    known = [
        (cost, score, item.cluster)
        for item in arm.items
        if (cost := item_cost_usd(item, arm.model, prices)) is not None and (score := item.values.get(metric)) is not None
    ]
    costs, scores, clusters = [k[0] for k in known], [k[1] for k in known], [k[2] for k in known]
    if known and math.fsum(scores) <= 0:
        return Estimate(value=None, low=None, high=None, n=len(known), method="no right answer")
    found = _scaled_ratio(costs, scores, clusters, len(arm.items), seed=seed)
    return _with_drift(found, _drift(arm, found.value, prices))


def cost_difference(prompt_arm: ArmResult, tuned_arm: ArmResult, prices: Prices, *, seed: int) -> Estimate:
    """Prompt minus tuned in US dollars a request, on the items both answered; positive: the tuned arm is cheaper.

    The interval is paired over items, and holds the drift of either arm.
    """
    prompt_items = {item.item_id: item for item in prompt_arm.items}
    differences: list[float] = []
    clusters: list[str] = []
    prompt_usd = tuned_usd = 0.0
    for item in tuned_arm.items:
        other = prompt_items.get(item.item_id)
        tuned_cost = item_cost_usd(item, tuned_arm.model, prices)
        prompt_cost = None if other is None else item_cost_usd(other, prompt_arm.model, prices)
        if tuned_cost is not None and prompt_cost is not None:
            differences.append(prompt_cost - tuned_cost)
            clusters.append(item.cluster)
            prompt_usd, tuned_usd = prompt_usd + prompt_cost, tuned_usd + tuned_cost
    if not differences:
        return Estimate(value=None, low=None, high=None, n=0, method="not measured")
    totals = cluster_totals(differences, clusters)
    ((low, high),), method = ratio_intervals(totals, (0.95,), seed=seed)
    found = Estimate(value=totals.ratio, low=_finite(low), high=_finite(high), n=len(differences), method=f"paired {method} 95 %")
    n = len(differences)
    drift = math.hypot(_drift(prompt_arm, prompt_usd / n, prices), _drift(tuned_arm, tuned_usd / n, prices))
    return _with_drift(found, drift)


def fixed_usd_per_month(tuned_arm: ArmResult, economics: Economics) -> float | None:
    """H + (T + L) / R: hosting, and training and labelling spread over the months between two trainings. None: training not timed."""
    if economics.months_between_retrains <= 0:
        raise ConfigError(
            f"months between trainings is {economics.months_between_retrains!r}, expected > 0",
            where="decide.months",
            fix="decide.months: 6",
        )
    if tuned_arm.train_seconds is None:
        return None
    training_usd = tuned_arm.train_seconds * economics.prices.usd_per_hour / SECONDS_PER_HOUR
    one_off_usd = training_usd + economics.labelling_usd
    return economics.hosting_usd_per_month + one_off_usd / economics.months_between_retrains


def break_even(prompt_arm: ArmResult, tuned_arm: ArmResult, economics: Economics, *, seed: int) -> Estimate:
    """Requests a month from which the tuned arm is cheaper: v* = (H + (T + L) / R) / (c_P - c_F).

    The interval is that of the bootstrapped cost difference, carried through. `value` is None where that interval reaches 0
    (never, or not determined) or something was not measured; `method` says which.
    """
    saving = cost_difference(prompt_arm, tuned_arm, economics.prices, seed=seed)
    fixed = fixed_usd_per_month(tuned_arm, economics)
    if saving.value is None or fixed is None:
        missing = "no costs of items both arms answered" if saving.value is None else "training time not recorded"
        return Estimate(value=None, low=None, high=None, n=saving.n, method=f"not measured: {missing}")
    if saving.low is None or saving.high is None or saving.low <= 0:
        return Estimate(value=None, low=None, high=None, n=saving.n, method=f"{NOT_DETERMINED}: the saving a request may be 0 or less")
    return Estimate(value=fixed / saving.value, low=fixed / saving.high, high=fixed / saving.low, n=saving.n, method=saving.method)


def _scaled_ratio(costs: Sequence[float], over: Sequence[float], clusters: Sequence[str], num_items: int, *, seed: int) -> Estimate:
    """1,000 x sum(costs) / sum(over) with its interval; items without a cost are left out and counted."""
    if not costs:
        return Estimate(value=None, low=None, high=None, n=0, method="not measured")
    totals = cluster_totals(costs, clusters, over)
    ((low, high),), method = ratio_intervals(totals, (0.95,), seed=seed)
    left_out = f"; {num_items - len(costs)} items without a cost left out" if num_items > len(costs) else ""
    return Estimate(
        value=1000 * totals.ratio,
        low=None if math.isinf(low) else 1000 * max(0.0, low),
        high=_finite(1000 * high),
        n=len(costs),
        method=f"{method} 95 %{left_out}",
    )


def _drift(arm: ArmResult, cost: float | None, prices: Prices) -> float:
    """What the speed of the machine may have moved a cost by; nothing where tokens are paid for."""
    return 0.0 if cost is None or arm.model in prices.api_models else DRIFT * cost


def _with_drift(found: Estimate, drift: float) -> Estimate:
    """The interval widened by an independent error of `drift`."""
    if found.value is None or drift <= 0:
        return found
    low = None if found.low is None else found.value - math.hypot(found.value - found.low, drift)
    high = None if found.high is None else found.value + math.hypot(found.high - found.value, drift)
    return replace(found, low=low, high=high, method=f"{found.method}, {100 * DRIFT:g} % drift of the machine")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
