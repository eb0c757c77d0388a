from __future__ import annotations

import math

import pytest

from luthier.arms.prompts import Candidate, zero_shot
from luthier.arms.search import choose
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
