"""Choosing a candidate on dev, and the ledger that shows every arm got the same effort."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from luthier.arms.prompts import Arm, Candidate
from luthier.core.errors import RunError


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What the search of one arm cost."""

    num_candidates: int = 0
    num_dev_evaluations: int = 0  # items answered and scored
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    seconds: float = 0.0

    def as_mapping(self) -> Mapping[str, float]:
        """The form kept in `ArmResult.effort`."""
        return {
            "num_candidates": float(self.num_candidates),
            "num_dev_evaluations": float(self.num_dev_evaluations),
            "num_prompt_tokens": float(self.num_prompt_tokens),
            "num_new_tokens": float(self.num_new_tokens),
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class Ledger:
    """Search effort by arm name. Immutable: `add` returns a new ledger."""

    efforts: Mapping[str, Effort] = field(default_factory=dict[str, Effort])

    def add(self, arm: str, *, num_dev_evaluations: int, num_prompt_tokens: int, num_new_tokens: int, seconds: float) -> Ledger:
        """One more candidate of an arm evaluated on dev."""
        old = self.efforts.get(arm, Effort())
        new = replace(
            old,
            num_candidates=old.num_candidates + 1,
            num_dev_evaluations=old.num_dev_evaluations + num_dev_evaluations,
            num_prompt_tokens=old.num_prompt_tokens + num_prompt_tokens,
            num_new_tokens=old.num_new_tokens + num_new_tokens,
            seconds=old.seconds + seconds,
        )
        return Ledger({**self.efforts, arm: new})

    def unequal(self) -> tuple[tuple[str, int], ...]:
        """Arms that had fewer candidates than the arm with the most, with their number; empty when all are equal."""
        most = max((effort.num_candidates for effort in self.efforts.values()), default=0)
        return tuple((arm, effort.num_candidates) for arm, effort in self.efforts.items() if effort.num_candidates != most)


def choose(scores: Sequence[tuple[Candidate, float]]) -> Candidate:
    """The candidate with the best dev score; equal scores go to the shorter prompt, then to the earlier candidate.

    The score of the winner is biased upwards by the choice: it is no measure of quality. Raises RunError if there is no
    candidate or a score is not finite.
    """
    if not scores:
        raise RunError("no candidate was evaluated on dev", where="prompt search", fix="raise the prompt limit, or leave this arm out")
    for candidate, score in scores:
        if not math.isfinite(score):
            raise RunError(
                f"dev score {score!r} of candidate {dict(candidate.params)}, expected a finite number",
                where="prompt search",
                fix="remove this candidate's dev scores from the run and evaluate it again",
            )
    return max(scores, key=lambda pair: (pair[1], -pair[0].prompt_chars))[0]


def cap_candidates(arms: Sequence[Arm], limit: int) -> tuple[Arm, ...]:
    """At most `limit` candidates an arm, the first ones, the same limit for all: a cheaper search of still equal effort."""
    if limit < 1:
        raise ValueError(f"limit is {limit}, expected >= 1")
    return tuple(replace(arm, candidates=arm.candidates[:limit]) for arm in arms)
