"""Precision and recall of abstention, from scores that are recorded anyway."""

from __future__ import annotations

import pytest

from luthier.core.types import ItemScore, TaskProfile
from luthier.metrics.aggregate import AGGREGATE_MEANINGS, aggregates


def _item(n: int, fabrication: float | None, over_abstention: float | None) -> ItemScore:
    values = {"fabrication": fabrication, "over_abstention": over_abstention}
    return ItemScore(item_id=f"i{n}", cluster=f"i{n}", text="a", gold="A.", values=values)


def test_precision_and_recall_of_declining() -> None:
    items = [*(_item(n, 0.0, None) for n in range(6)), *(_item(n, 1.0, None) for n in range(6, 10))]  # 10 unanswerable, 6 declined
    items += [*(_item(n, None, 1.0) for n in range(10, 12)), *(_item(n, None, 0.0) for n in range(12, 30))]  # 20 answerable, 2 declined
    found = aggregates(items, TaskProfile(kind="text", evidence=""), seed=0)
    assert set(found) == {"abstention_precision", "abstention_recall"} <= set(AGGREGATE_MEANINGS)
    assert (found["abstention_precision"].value, found["abstention_precision"].n) == (pytest.approx(6 / 8), 8)
    assert (found["abstention_recall"].value, found["abstention_recall"].n) == (pytest.approx(6 / 10), 10)
    assert (found["abstention_recall"].low or 0) < 0.6 < (found["abstention_recall"].high or 0)


def test_nothing_that_does_not_apply() -> None:
    items = [_item(n, None, 0.0) for n in range(5)]
    assert aggregates(items, TaskProfile(kind="text", evidence=""), seed=0) == {}
    only = aggregates(items, TaskProfile(kind="label", evidence="", labels=("a",)), seed=0)
    assert set(only) == {"macro_f1"} and only["macro_f1"].value == 1.0  # "a" is "A." after the one normalisation
    never = aggregates([_item(n, 1.0, None) for n in range(5)], TaskProfile(kind="text", evidence=""), seed=0)
    assert never["abstention_precision"].value is None and never["abstention_recall"].value == 0.0  # nothing declined: no precision
