"""A/A runs: two arms that are equally good, through the whole decision."""

from __future__ import annotations

import random

from tests.unit.verdict.made_arms import arm, rule

from luthier.verdict.rules import decide

QUALITY = ("fine_tune_better", "prompt_better")


def false_verdicts(n: int, discordance: float, runs: int, *, clustered: bool = False, margin: float = 0.05) -> int:
    """How many of `runs` say that one of two equally good arms is better. Clusters: pairs of items that answer alike."""
    stream = random.Random("test/a-a")
    names = [f"c{i // 2}" for i in range(n)] if clustered else None
    found = 0
    for run in range(runs):
        tuned, prompt = [], []
        for i in range(n):
            if names and i % 2:
                tuned.append(tuned[-1])
                prompt.append(prompt[-1])
                continue
            differs, first = stream.random() < discordance, float(stream.random() < 0.5)
            tuned.append(first)
            prompt.append(1 - first if differs else first)
        arms = [
            arm("prompt", prompt, family="prompt", seconds=None, clusters=names),
            arm("tuned", tuned, family="tuned", seconds=None, clusters=names),
        ]
        found += decide(arms, rule(margin=margin, seed=run)).code in QUALITY
    return found
