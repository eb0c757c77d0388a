"""Choosing a candidate on dev, and what the search of an arm cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from luthier.arms.prompts import Candidate
from luthier.core.errors import RunError


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What the search of one arm cost."""

    num_candidates: int = 0
    num_dev_evaluations: int = 0  # items answered and scored
    num_prompt_tokens: int | None = 0  # None: a server did not state its tokens
    num_new_tokens: int | None = 0
    num_retries: int = 0  # requests to a server that had to be repeated
    seconds: float = 0.0

    def as_mapping(self) -> Mapping[str, float]:
        """The form kept in `ArmResult.effort`; what was not measured is left out."""
        return {name: float(value) for name, value in asdict(self).items() if value is not None}


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
