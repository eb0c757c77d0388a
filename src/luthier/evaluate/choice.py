"""Which candidate of an arm is measured: each is scored on dev, within a budget that is the same for all arms.

An arm whose examples have an order searches it within that budget: half of the dev items for every candidate, then for other
orders of the best of them, and the other half of the items only for the best of all (successive halving).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from luthier.arms.prompts import Arm, Candidate
from luthier.arms.search import Chosen, Effort, choose, in_other_orders, num_orders, ranked
from luthier.core.errors import EndpointError, InputError
from luthier.core.tried import Tried
from luthier.core.types import Example, Generation, ItemScore
from luthier.evaluate.run import Bench, Model, answer, mean_score, score_generations, score_without_model


@dataclass(slots=True, kw_only=True)
class _Look:
    """One candidate, and what of it is known so far."""

    candidate: Candidate
    scores: list[ItemScore] = field(default_factory=list[ItemScore])
    answers: list[Generation] = field(default_factory=list[Generation])
    score: float | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """The candidates looked at, in the order they were."""

    arm: Arm
    model: Model
    bench: Bench
    looks: list[_Look] = field(default_factory=list[_Look])
    labels: list[str] = field(default_factory=list[str])

    def first(self, candidate: Candidate, items: Sequence[Example], total: int) -> _Look:
        """Score a candidate that was not looked at yet."""
        self.looks.append(_Look(candidate=candidate))
        self.more(self.looks[-1], items, total)
        return self.looks[-1]

    def more(self, look: _Look, items: Sequence[Example], total: int) -> None:
        """Score it on (more) items. One that does not fit the context is passed over. Raises EndpointError."""
        self.labels.append(f"{self.arm.name}: dev {len(self.labels) + 1}/{total}")
        try:
            answers = answer(look.candidate, items, self.model, self.bench, self.labels[-1])
        except InputError as error:  # does not fit; a full disk or a damaged store is no property of an arm
            look.failed, look.score = str(error), None
            return
        look.answers += answers
        look.scores += score_generations(items, answers, self.bench, look.candidate)
        look.score = mean_score(look.scores, self.bench.metric)


def choose_candidate(arm: Arm, dev: Sequence[Example], model: Model | None, bench: Bench) -> Chosen:
    """Score the candidates of an arm on dev and keep the best; a candidate that does not fit the context is passed over.

    At most len(arm.candidates) x len(dev) answers, the search of an order included. Whatever is chosen was scored on all of dev.
    A server that fails for good fails the arm: a choice among the candidates it happened to answer would be no equal effort.

    The dev score of the winner is biased upwards by the choice; it selects, it is never the result.
    """
    if arm.failed is not None:
        return Chosen(candidate=None, dev_score=None, dev_n=0, effort=Effort(), failed=arm.failed)
    if model is None:
        started = time.perf_counter()
        score = mean_score(score_without_model(arm, dev, bench), bench.metric)
        spent = Effort(num_candidates=1, num_dev_evaluations=len(dev), seconds=time.perf_counter() - started)
        return Chosen(candidate=None, dev_score=score, dev_n=len(dev), effort=spent)
    search = _Search(arm=arm, model=model, bench=bench)
    failed: str | None = None
    final: list[_Look] = []
    try:
        has_orders = len(dev) > 1 and any(candidate.orders is not None for candidate in arm.candidates)
        final = _halved(search, dev) if has_orders else [search.first(one, dev, len(arm.candidates)) for one in arm.candidates]
    except EndpointError as error:
        failed = str(error)
    scored = {id(look.candidate): look.score for look in final if look.score is not None}
    effort, tried = _effort(search.looks), tuple(_tried(look) for look in search.looks)
    if failed is not None or not scored:
        problems = [look.failed for look in search.looks if look.failed is not None]
        failed = failed or (problems[0] if problems else "no dev answer could be scored")
        return Chosen(candidate=None, dev_score=None, dev_n=len(dev), effort=effort, tried=tried, failed=failed)
    best = choose([(look.candidate, look.score) for look in final if look.score is not None])
    return Chosen(candidate=best, dev_score=scored[id(best)], dev_n=len(dev), effort=effort, tried=tried)


def _halved(search: _Search, dev: Sequence[Example]) -> list[_Look]:
    """Candidates and orders on the first half of dev, the best of them on the other half; those that were scored on all of it.

    With places for two, the best examples as drawn are one of them, so that another order is held against this one on all items.
    Where the best has fewer orders than there is budget for, more candidates are scored to the end: with none, all of them.
    """
    begin, rest = dev[: len(dev) // 2], dev[len(dev) // 2 :]
    candidates = search.arm.candidates
    total = len(candidates) * 2  # looks at about half of dev
    for candidate in candidates:
        search.first(candidate, begin, total)
    drawn = _ranked(search.looks)
    orders = in_other_orders(drawn[0].candidate, num_orders(len(candidates))) if drawn else ()
    for order in orders:
        search.first(order, begin, total)
    places = len(candidates) - len(orders)
    line = _ranked(search.looks)
    if places > 1 and orders:
        line = [drawn[0], *(look for look in line if look is not drawn[0])]
    line += [look for look in search.looks if look.score is None and look.failed is None]  # not to be scored on these items
    final: list[_Look] = []
    for look in line:
        if len(final) == places:
            break
        search.more(look, rest, total)
        if look.failed is None:
            final.append(look)
    return final


def _ranked(looks: Sequence[_Look]) -> list[_Look]:
    known = {id(look.candidate): look for look in looks if look.score is not None}
    scores = [(look.candidate, look.score) for look in known.values() if look.score is not None]
    return [known[id(candidate)] for candidate in ranked(scores)] if scores else []


def _effort(looks: Sequence[_Look]) -> Effort:
    answered = [answer for look in looks for answer in look.answers]
    return Effort(
        num_candidates=len(looks),
        num_dev_evaluations=len(answered),
        num_prompt_tokens=_sum([g.num_prompt_tokens for g in answered]),
        num_new_tokens=_sum([g.num_new_tokens for g in answered]),
        num_retries=sum(g.num_retries for g in answered),
        seconds=sum(g.latency_s for g in answered),  # as recorded with each answer: the same after a resume
    )


def _tried(look: _Look) -> Tried:
    return Tried(
        params=dict(look.candidate.params),
        dev_n=len(look.answers),
        dev_score=look.score,
        num_prompt_tokens=_sum([g.num_prompt_tokens for g in look.answers]),
        num_new_tokens=_sum([g.num_new_tokens for g in look.answers]),
        seconds=sum(g.latency_s for g in look.answers),
        failed=look.failed,
    )


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
