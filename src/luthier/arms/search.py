"""Choosing a candidate on dev, and what the search of an arm cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from luthier.arms.orders import AS_DRAWN
from luthier.arms.prompts import Arm, Candidate
from luthier.core.errors import RunError
from luthier.core.tried import Tried

FINALISTS = 3  # one in so many candidates is answered to the end where orders are searched


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What dev decided for one arm, and what that cost: the equal-effort ledger's line."""

    candidate: Candidate | None  # None: the arm has no model, or it failed
    dev_score: float | None
    dev_n: int
    effort: Effort
    tried: tuple[Tried, ...] = ()
    failed: str | None = None


def num_orders(num_candidates: int) -> int:
    """How many other orders of the best examples are tried, so that the arm costs what its candidates would cost on all dev items.

    A candidate or an order on the first half of the items costs one half, a finalist on the other half another one: with F finalists
    there are halves for num_candidates - F orders.
    """
    return num_candidates - max(1, num_candidates // FINALISTS)


def in_other_orders(candidate: Candidate, number: int) -> tuple[Candidate, ...]:
    """At most `number` candidates with the same examples in another order."""
    if candidate.orders is None or number < 1:
        return ()
    return tuple(
        replace(candidate, params={**candidate.params, "order": name}, build=build, orders=None) for name, build in candidate.orders(number)
    )


def find_candidate(arm: Arm, params: Mapping[str, str]) -> Candidate:
    """The candidate that was chosen, made again from its recorded choices. Raises RunError where there is none such."""
    wanted = {"order": AS_DRAWN, **params}.items()  # records from before orders were searched name none
    for candidate in arm.candidates:
        if candidate.params.items() <= wanted:
            return candidate
    for candidate in arm.candidates:
        if {name: value for name, value in candidate.params.items() if name != "order"}.items() <= wanted:
            for other in in_other_orders(candidate, num_orders(len(arm.candidates))):
                if other.params.items() <= wanted:
                    return other
    raise RunError(f"no prompt with {dict(params)} can be made again", where=arm.name, fix="--fresh, or --run-dir NEW")


def ranked(scores: Sequence[tuple[Candidate, float]]) -> tuple[Candidate, ...]:
    """Candidates by dev score, best first; equal scores go to the shorter prompt, then to the earlier candidate.

    The score of the first is biased upwards by the choice: it is no measure of quality. Raises RunError if there is no
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
    return tuple(candidate for candidate, _ in sorted(scores, key=lambda pair: (-pair[1], pair[0].prompt_chars)))


def choose(scores: Sequence[tuple[Candidate, float]]) -> Candidate:
    """The first of `ranked`."""
    return ranked(scores)[0]
