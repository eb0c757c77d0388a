"""Arm "instruction optimised": a model proposes instructions, dev chooses; its budget is that of the other arms, and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from luthier.arms.catalogue import NUM_DRAWS
from luthier.arms.prompts import Arm, Candidate
from luthier.arms.proposals import NAME, PROPOSAL_TOKENS, Mistake, proposed_arm, questions
from luthier.arms.search import Chosen
from luthier.core.errors import EndpointError, InputError
from luthier.core.types import ArmResult, Example, Generation, GenerationRequest, TaskProfile
from luthier.data.instructions import GivenInstruction
from luthier.evaluate.choice import choose_candidate
from luthier.evaluate.run import Bench, Model, answer, answer_all, measure, score_generations


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposer:
    """Who proposes, how often, and from what."""

    model: Model | None  # None: the model that is to be prompted
    by: str
    number: int
    train: tuple[Example, ...]
    profile: TaskProfile
    seed: int
    max_question_chars: int  # of the model that proposes
    max_prompt_chars: int  # of the model that is prompted
    given: tuple[GivenInstruction, ...] = ()  # instead of proposals: nobody is asked for any


def num_proposals(shots: Sequence[int]) -> int:
    """As many as the few-shot arms have candidates."""
    return NUM_DRAWS * len(shots)


def given_words(given: Sequence[GivenInstruction]) -> str:
    """The files, and what of them is not used."""
    return ", ".join(one.name + (f" (its {one.num_demos} solved examples are not used)" if one.num_demos else "") for one in given)


def measure_proposed(
    proposer: Proposer, instructed: Candidate, dev: Sequence[Example], test: Sequence[Example], model: Model, bench: Bench, *, name: str
) -> tuple[ArmResult, Chosen]:
    """Propose, choose on dev, measure on test. What the proposals cost stands in the effort of the arm."""
    proposals: tuple[Generation, ...] = ()
    try:
        proposals = () if proposer.given else _propose(proposer, instructed, dev, model, bench)
        texts, limit = [*(one.text for one in proposer.given), *(p.text for p in proposals)], proposer.max_prompt_chars
        arm = proposed_arm(proposer.train, proposer.profile, texts, max_prompt_chars=limit, by=proposer.by, are_given=bool(proposer.given))
    except (InputError, EndpointError) as error:
        arm = Arm(name=NAME, family="prompt", model="base", description=f"Instructions proposed by {proposer.by}.", failed=str(error))
    chosen = choose_candidate(arm, dev, model, bench)
    result = measure(arm, chosen, test, model, bench, model_name=name)
    spent = {
        "num_proposals": float(len(proposals)),
        "proposal_prompt_tokens": float(sum(p.num_prompt_tokens or 0 for p in proposals)),
        "proposal_new_tokens": float(sum(p.num_new_tokens or 0 for p in proposals)),
        "proposal_seconds": sum(p.latency_s for p in proposals),
    }
    known = all(p.num_prompt_tokens is not None and p.num_new_tokens is not None for p in proposals)
    return replace(result, effort={**result.effort, **{k: v for k, v in spent.items() if known or "tokens" not in k}}), chosen


def _propose(proposer: Proposer, instructed: Candidate, dev: Sequence[Example], model: Model, bench: Bench) -> tuple[Generation, ...]:
    """The proposals. The mistakes are those of the instruction that won on dev; its answers are stored already and cost nothing."""
    answers = answer(instructed, dev, model, bench, "instructed: its mistakes on dev")
    scores = score_generations(dev, answers, bench)
    mistakes = [
        Mistake(item=item, answer=score.text)
        for item, score in zip(dev, scores, strict=True)
        if (score.values.get(bench.metric) or 0.0) < 1.0
    ]
    asked = questions(
        proposer.train, proposer.profile, mistakes, number=proposer.number, seed=proposer.seed, max_prompt_chars=proposer.max_question_chars
    )
    requests = [
        GenerationRequest(item_id=f"proposal {n}", messages=messages, max_new_tokens=PROPOSAL_TOKENS)
        for n, messages in enumerate(asked, start=1)
    ]
    return answer_all(proposer.model or model, requests, bench, f"{NAME}: proposals")
