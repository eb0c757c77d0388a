from __future__ import annotations

import math

import pytest

from luthier.arms.prompts import Arm, Candidate, zero_shot
from luthier.arms.search import Effort, Ledger, cap_candidates, choose
from luthier.core.errors import RunError


def make(name: str, prompt_chars: int = 0) -> Candidate:
    return Candidate(params={"name": name}, build=zero_shot, prompt_chars=prompt_chars)


def test_best_score_then_shorter_prompt_then_first() -> None:
    assert choose([(make("a", 10), 0.4), (make("b", 99), 0.5)]).params["name"] == "b"
    assert choose([(make("a", 10), 0.5), (make("b", 5), 0.5), (make("c", 5), 0.5)]).params["name"] == "b"
    assert choose([(make("a"), 0.0)]).params["name"] == "a"


@pytest.mark.parametrize("scores", [[], [(make("a"), math.nan)], [(make("a"), 0.5), (make("b"), math.inf)]])
def test_nothing_to_choose_from(scores: list[tuple[Candidate, float]]) -> None:
    with pytest.raises(RunError):
        choose(scores)


def test_ledger_adds_up_and_names_unequal_arms() -> None:
    ledger = Ledger()
    for arm in ("few-shot", "instructed", "few-shot"):
        ledger = ledger.add(arm, num_dev_evaluations=50, num_prompt_tokens=1_000, num_new_tokens=100, seconds=0.5)
    assert ledger.efforts["few-shot"] == Effort(
        num_candidates=2, num_dev_evaluations=100, num_prompt_tokens=2_000, num_new_tokens=200, seconds=1.0
    )
    assert ledger.unequal() == (("instructed", 1),)
    ledger = ledger.add("instructed", num_dev_evaluations=50, num_prompt_tokens=1, num_new_tokens=1, seconds=0.1)
    assert ledger.unequal() == ()
    assert ledger.efforts["few-shot"].as_mapping()["num_prompt_tokens"] == 2_000.0
    assert Ledger().efforts == {}
    assert Ledger().unequal() == ()


def test_cap_keeps_the_first_candidates() -> None:
    arm = Arm(name="x", family="prompt", model="base", description="", candidates=(make("a"), make("b"), make("c")))
    (capped,) = cap_candidates([arm], 2)
    assert [c.params["name"] for c in capped.candidates] == ["a", "b"]
    with pytest.raises(ValueError, match="limit"):
        cap_candidates([arm], 0)
