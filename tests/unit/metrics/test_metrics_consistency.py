"""Agreement of answers, by hand."""

from __future__ import annotations

import pytest

from luthier.core.types import TaskProfile
from luthier.metrics.consistency import AskedAgain, Way, agreement, pair_agreement, same_answer, sample_confidence

LABEL = TaskProfile(kind="label", evidence="", labels=("card", "money"))
JSON = TaskProfile(kind="json", evidence="", json_keys=("k",))
TEXT = TaskProfile(kind="text", evidence="")


def _again(way: Way, *texts: str) -> list[AskedAgain]:
    return [
        AskedAgain(item_id="i", way=way, name=f"{way} {n}", shown="", text=text, score=None, is_valid=None, latency_s=0.0)
        for n, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("a", "b", "profile", "same"),
    [
        ("Card.", "card", LABEL, True),
        ("card", "cards", LABEL, False),
        ('{"k": "A", "n": 1}', '{"n":1,"k":"a"}', JSON, True),
        ('{"k": 1}', '{"k": true}', JSON, False),
        ("not json", "Not JSON.", JSON, True),
        ('{"k": 1}', "not json", JSON, False),
        ("one two three four five", "one two three four six", TEXT, True),  # 4 of 5 words each: F1 = 0.8
        ("one two three four", "one two three six", TEXT, False),  # 0.75
    ],
)
def test_same_answer(a: str, b: str, profile: TaskProfile, same: bool) -> None:
    assert same_answer(a, b, profile) is same and same_answer(b, a, profile) is same


def test_pairs_are_counted() -> None:
    assert pair_agreement(["card", "card", "money"], LABEL) == pytest.approx(1 / 3)
    assert pair_agreement(["card", "card", "card", "money"], LABEL) == pytest.approx(3 / 6)
    assert pair_agreement(["card"], LABEL) is None


def test_agreement_of_one_item() -> None:
    again = [*_again("repeat", "card", "card", "money"), *_again("reworded", "card", "money"), *_again("input", "card"),
             *_again("order", "money")]  # fmt: skip
    found = agreement("card", again, LABEL)
    assert found.repeat == pytest.approx(1 / 3)
    assert found.paraphrase == pytest.approx(3 / 6)  # card, card, money, card: the first answer is one of them
    assert found.order == 0.0
    assert found.overall == pytest.approx((1 / 3 + 1 / 2) / 2)
    told = agreement("card", [*again, *_again("paraphrased", "card", "money")], LABEL)
    assert told.paraphrased == 0.5 and found.paraphrased is None and told.overall == found.overall  # no part of what the gate looks at
    assert agreement("card", _again("order", "card"), LABEL).overall is None  # few-shot arms alone have another order
    assert sample_confidence("card", again, LABEL) == pytest.approx(2 / 3)
    assert sample_confidence("card", _again("input", "card"), LABEL) is None
