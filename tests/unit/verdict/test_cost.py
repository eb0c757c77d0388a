from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.verdict.made_arms import METRIC, arm, prices

from luthier.core.errors import ConfigError, RunError
from luthier.core.types import ArmResult, ItemScore
from luthier.metrics.cost import Economics, Prices, break_even, cost_difference, cost_per_1000, cost_per_1000_correct, item_cost_usd

API = Prices(
    usd_per_hour=0.0,
    usd_per_m_input=2.0,
    usd_per_m_cached_input=0.5,
    usd_per_m_output=8.0,
    source="test",
    date="2026-01-01",
    api_models=frozenset({"remote"}),
)


def _item(**values: object) -> ItemScore:
    return ItemScore(**{"item_id": "i", "cluster": "c", "text": "", "gold": "", "values": {}, **values})  # type: ignore[arg-type]


def _two(prompt_seconds: float | None, tuned_seconds: float | None, n: int = 60) -> tuple[ArmResult, ArmResult]:
    scores = [1.0] * n
    return arm("p", scores, family="prompt", seconds=prompt_seconds), arm("t", scores, family="tuned", seconds=tuned_seconds)


def test_self_hosted_cost_is_time_at_the_hourly_price() -> None:
    assert item_cost_usd(_item(latency_s=2.0), "small", prices(3.6)) == pytest.approx(0.002)
    assert item_cost_usd(_item(), "small", prices(3.6)) is None


def test_token_cost_counts_cached_input_at_its_own_price() -> None:
    item = _item(latency_s=9.0, num_prompt_tokens=1000, num_cached_tokens=400, num_new_tokens=50)
    assert item_cost_usd(item, "remote", API) == pytest.approx((600 * 2 + 400 * 0.5 + 50 * 8) / 1e6)
    assert item_cost_usd(item, "remote", replace(API, usd_per_m_cached_input=None)) == pytest.approx((1000 * 2 + 50 * 8) / 1e6)
    assert item_cost_usd(item, "small", API) == 0.0  # on the user's own machine, which costs nothing here
    assert item_cost_usd(_item(latency_s=9.0), "remote", API) is None


@pytest.mark.parametrize(
    "change",
    [
        {"usd_per_hour": -1.0},
        {"usd_per_hour": float("nan")},
        {"api_models": frozenset()},
        {"usd_per_m_output": None},
        {"usd_per_m_input": None, "usd_per_m_output": None},
    ],
)
def test_prices_that_make_no_sense_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        replace(API, **change)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_damaged_time_is_not_a_price(seconds: float) -> None:
    with pytest.raises(RunError, match="item i"):
        item_cost_usd(_item(latency_s=seconds), "small", prices())


def test_a_remote_answer_without_token_prices_has_no_cost_rather_than_that_of_this_machine() -> None:
    unpriced = replace(API, usd_per_hour=3.6, usd_per_m_input=None, usd_per_m_output=None, usd_per_m_cached_input=None)
    item = _item(latency_s=9.0, num_prompt_tokens=1000, num_new_tokens=50)
    assert item_cost_usd(item, "remote", unpriced) is None
    assert item_cost_usd(item, "small", unpriced) == pytest.approx(0.009)


def test_cost_per_1000() -> None:
    result = arm("p", [1.0] * 60, family="prompt", seconds=1.0)
    found = cost_per_1000(result, prices(3.6), seed=0)
    mean_s = sum(item.latency_s or 0 for item in result.items) / 60
    assert found.value == pytest.approx(mean_s)  # 1,000 x seconds x 0.001 dollars
    assert found.low is not None and found.high is not None
    assert (found.low, found.high) == (pytest.approx(0.9 * mean_s, rel=0.01), pytest.approx(1.1 * mean_s, rel=0.01))  # drift
    assert "drift" in found.method
    assert found == cost_per_1000(result, prices(3.6), seed=0)


def test_items_without_a_time_are_left_out_and_counted() -> None:
    result = arm("p", [1.0] * 60, family="prompt")
    result = replace(result, items=(*result.items[:50], *(replace(item, latency_s=None) for item in result.items[50:])))
    found = cost_per_1000(result, prices(), seed=0)
    assert found.n == 50
    assert "10 items without a cost left out" in found.method
    nothing = cost_per_1000(arm("p", [1.0] * 60, family="prompt", seconds=None), prices(), seed=0)
    assert (nothing.value, nothing.n) == (None, 0)
    assert cost_per_1000(replace(result, items=(), failed="x"), prices(), seed=0).value is None


def test_cost_of_right_answers() -> None:
    result = arm("p", [1.0] * 30 + [0.0] * 30, family="prompt")
    every, right = cost_per_1000(result, prices(), seed=0), cost_per_1000_correct(result, METRIC, prices(), seed=0)
    assert every.value is not None and right.value is not None
    assert right.value == pytest.approx(2 * every.value)
    assert right.low is not None and right.high is not None and right.low < right.value < right.high
    none_right = cost_per_1000_correct(arm("p", [0.0] * 30, family="prompt"), METRIC, prices(), seed=0)
    assert (none_right.value, none_right.method) == (None, "no right answer")
    rare = cost_per_1000_correct(arm("p", [1.0] + [0.0] * 39, family="prompt"), METRIC, prices(), seed=0)
    assert rare.value is not None
    assert rare.high is None  # some draws hold no right answer at all


def test_break_even_by_hand() -> None:
    prompt, tuned = _two(3.0, 1.0)
    economics = Economics(prices=prices(3.6), hosting_usd_per_month=20.0, labelling_usd=59.9, months_between_retrains=6)
    saving = cost_difference(prompt, tuned, prices(3.6), seed=0)
    found = break_even(prompt, tuned, economics, seed=0)
    assert saving.value is not None and saving.low is not None and saving.high is not None
    # training: 100 s x 0.001 dollars = 0.10
    fixed = 20.0 + (0.1 + 59.9) / 6
    assert found.value == pytest.approx(fixed / saving.value)
    assert (found.low, found.high) == pytest.approx((fixed / saving.high, fixed / saving.low))
    assert 30 / 0.0022 < found.value < 30 / 0.002


def test_pairing_takes_out_what_items_have_in_common() -> None:
    """Costs vary from item to item, alike in both arms; the difference varies far less. Tokens do not drift."""
    prompt, tuned = (
        replace(
            one,
            model="remote",
            items=tuple(replace(item, num_prompt_tokens=1_000 + 9 * i + more, num_new_tokens=5) for i, item in enumerate(one.items)),
        )
        for one, more in zip(_two(1.0, 1.0), (20, 0), strict=True)
    )
    saving = cost_difference(prompt, tuned, API, seed=0)
    assert saving.low is not None and saving.low > 0
    assert "drift" not in saving.method


def test_a_difference_within_the_drift_of_the_machine_is_not_shown() -> None:
    found = [cost_difference(*_two(1.0, seconds), prices(3.6), seed=0) for seconds in (0.95, 0.7)]
    assert found[0].low is not None and found[0].low < 0 < (found[0].value or 0)
    assert found[1].low is not None and found[1].low > 0


@pytest.mark.parametrize(("prompt_seconds", "tuned_seconds"), [(1.0, 1.0), (1.0, 3.0)])
def test_no_break_even_without_a_saving(prompt_seconds: float, tuned_seconds: float) -> None:
    prompt, tuned = _two(prompt_seconds, tuned_seconds)
    found = break_even(prompt, tuned, Economics(prices=prices()), seed=0)
    assert found.value is None
    assert found.method.startswith("never or not determined")


def test_break_even_that_was_not_measured_says_what_is_missing() -> None:
    prompt, tuned = _two(None, 1.0)
    assert "no costs" in break_even(prompt, tuned, Economics(prices=prices()), seed=0).method
    prompt, tuned = _two(3.0, 1.0)
    found = break_even(prompt, replace(tuned, train_seconds=None), Economics(prices=prices()), seed=0)
    assert (found.value, found.method) == (None, "not measured: training time not recorded")


def test_no_fixed_costs_pay_at_once() -> None:
    prompt, tuned = _two(3.0, 1.0)
    found = break_even(prompt, replace(tuned, train_seconds=0.0), Economics(prices=prices()), seed=0)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_one_item_has_a_cost_and_no_interval() -> None:
    found = cost_per_1000(arm("p", [1.0], family="prompt"), prices(), seed=0)
    assert found.value is not None
    assert (found.low, found.high) == (None, None)
