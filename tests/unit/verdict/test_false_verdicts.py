from __future__ import annotations

import random

import pytest
from tests.unit.verdict.made_arms import arm, rule
from tests.unit.verdict.simulate_verdicts import false_verdicts

from luthier.verdict.rules import decide


@pytest.mark.parametrize("discordance", [0.1, 0.3])
def test_equal_arms_get_a_quality_verdict_in_at_most_5_percent_of_1000_runs(discordance: float) -> None:
    # A margin of 1 point, so that the interval alone must hold the rate; the default margin lowers it further.
    assert false_verdicts(100, discordance, 1_000, margin=0.01) <= 50


def test_the_same_outputs_twice_are_equivalent() -> None:
    """Two runs of one system at temperature 0: no difference, and no verdict on quality whatever the number of items."""
    for n in (30, 100, 300):
        stream = random.Random(f"test/same/{n}")
        scores = [float(stream.random() < 0.7) for _ in range(n)]
        found = decide([arm("a", scores, family="prompt"), arm("b", scores, family="tuned")], rule())
        assert found.code == ("equivalent_prompt" if n >= 100 else "inconclusive")
        assert found.primary is not None
        assert found.primary.low95 < 0 < found.primary.high95
