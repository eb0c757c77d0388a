"""Numbers as people read them, and the items where two arms differ."""

from __future__ import annotations

import dataclasses
import math

import pytest
from tests.fixtures import reports

from luthier.core.types import ArmResult, Estimate, ItemScore
from luthier.report import numbers
from luthier.report.model import ItemGroups, pair_items


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (numbers.points(0.8234), "82.3"),
        (numbers.points(None), "—"),
        (numbers.points(math.nan), "not a number"),
        (numbers.signed_points(0.11), "+11.0"),
        (numbers.signed_points(-0.0345), "−3.5"),
        (numbers.signed_points(-0.0000001), "0.0"),
        (numbers.signed_points(0.0), "0.0"),
        (numbers.signed_points(None), "—"),
        (numbers.usd(0.0214), "$0.021"),
        (numbers.usd(0.0), "$0.00"),
        (numbers.usd(None), "—"),
        (numbers.usd(12.345), "$12.35"),
        (numbers.usd(1234567.8), "$1,234,568"),
        (numbers.usd(-0.5), "−$0.50"),
        (numbers.usd(4.2e-7), "< $0.0001"),
        (numbers.usd(-4.2e-7), "−$0.00000042"),
        (numbers.usd_interval(Estimate(value=2e-6, low=1e-6, high=3e-6, n=9, method="")), ""),
        (numbers.duration(0.0021), "2.1 ms"),
        (numbers.duration(0.204), "204 ms"),
        (numbers.duration(0.9996), "1.00 s"),
        (numbers.duration(1.2), "1.20 s"),
        (numbers.duration(59.999), "1 min 00 s"),
        (numbers.duration(451), "7 min 31 s"),
        (numbers.duration(7500), "2 h 05 min"),
        (numbers.duration(None), "—"),
        (numbers.duration(math.inf), "infinite"),
        (numbers.duration_interval(Estimate(value=2.0, low=1.0, high=None, n=6, method="")), "[1.00 s, …], n = 6"),
        (numbers.duration_interval(Estimate(value=2.0, low=None, high=None, n=2, method="")), "n = 2"),
        (numbers.duration_interval(Estimate(value=None, low=None, high=None, n=0, method="")), ""),
        (numbers.usd_interval(Estimate(value=0.02, low=0.01, high=0.03, n=9, method="")), "[$0.010, $0.030]"),
        (numbers.count(12400), "12,400"),
        (numbers.count(-0.2), "0"),
        (numbers.p_value(0.0004), "< 0.001"),
        (numbers.p_value(0.0412), "0.041"),
        (numbers.share(0.237), "23.7 %"),
        (numbers.significant(2e-4), "0.0002"),
        (numbers.significant(5e-5), "5e−05"),
        (numbers.plain(812345.0), "812,345"),
        (numbers.plain(451.2), "451.2"),
        (numbers.gib(1.619), "1.62 GiB"),
        (numbers.moment("2026-11-14T16:42:08+00:00"), "2026-11-14 16:42 UTC"),
        (numbers.moment("2026-11-14T16:42:08+02:00"), "2026-11-14 16:42 +0200"),
        (numbers.moment("yesterday"), "yesterday"),
        (numbers.interval(Estimate(value=0.5, low=0.4, high=0.62, n=9, method="")), "[40.0, 62.0]"),
        (numbers.interval(Estimate(value=None, low=None, high=None, n=0, method="")), ""),
    ],
)
def test_number(shown: str, expected: str) -> None:
    assert shown == expected


def _arm(name: str, values: dict[str, float | None]) -> ArmResult:
    items = tuple(
        ItemScore(item_id=key, cluster=key, text=f"{name} says", gold="g", values={"accuracy": value}) for key, value in values.items()
    )
    return ArmResult(name=name, family="prompt", model="", description="", items=items)


def _pairs(prompt: dict[str, float | None], tuned: dict[str, float | None]) -> ItemGroups | None:
    model = reports.clear_win(24)
    verdict = dataclasses.replace(model.verdict, best_prompt="p", best_tuned="t")
    return pair_items(
        dataclasses.replace(model, verdict=verdict, arms=(_arm("p", prompt), _arm("t", tuned)), item_inputs={"a": "input of a"})
    )


def test_pairs_are_sorted_into_won_lost_and_both_wrong() -> None:
    groups = _pairs({"a": 0, "b": 1, "c": 0, "d": 1, "e": None, "only_p": 1}, {"d": 1, "c": 0, "b": 0, "a": 1, "e": 1, "x": 0, "y": 1})
    assert groups is not None
    assert [pair.item_id for pair in groups.tuned_better] == ["a"]
    assert [pair.item_id for pair in groups.prompt_better] == ["b"]
    assert [pair.item_id for pair in groups.both_wrong] == ["c"]
    assert (groups.num_both_right, groups.num_unscored, groups.num_unpaired, groups.num_scored) == (1, 1, 3, 4)
    won = groups.tuned_better[0]
    assert (won.input, won.prompt_answer, won.tuned_answer) == ("input of a", "p says", "t says")
    assert groups.prompt_better[0].input is None


def test_a_pair_says_which_passages_were_shown() -> None:
    model = reports.clear_win(24)
    arms = [_arm("p", {"a": 0}), _arm("t", {"a": 1})]
    shown = dataclasses.replace(arms[0].items[0], sources=("rules/cards.md:2", "fees.txt:1"))
    verdict = dataclasses.replace(model.verdict, best_prompt="p", best_tuned="t")
    groups = pair_items(dataclasses.replace(model, verdict=verdict, arms=(dataclasses.replace(arms[0], items=(shown,)), arms[1])))
    assert groups is not None and "passages shown: rules/cards.md:2, fees.txt:1" in groups.tuned_better[0].note


def test_graded_scores_show_the_largest_gap_first() -> None:
    groups = _pairs({"a": 0.5, "b": 0.1, "c": 0.9}, {"a": 0.6, "b": 0.9, "c": 0.2})
    assert groups is not None
    assert [pair.item_id for pair in groups.tuned_better] == ["b", "a"]
    assert [pair.item_id for pair in groups.prompt_better] == ["c"]


def test_no_pairs_without_two_arms() -> None:
    assert pair_items(reports.nothing_compared()) is None
