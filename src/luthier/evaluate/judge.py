"""Pairs of answers put before a judge, each in both orders. Replies are stored like answers: none is paid for twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from luthier.core.types import Generation, GenerationRequest
from luthier.evaluate.run import Bench, Model, answer_all
from luthier.metrics.judge import SIDES, AnswerPair, Choice, Judged, attacked, judge_messages, read_choice


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeWork:
    """What came of it, and what it took."""

    judged: tuple[Judged, ...]  # in the order of the pairs
    attacks: tuple[Judged, ...]  # "tuned" is the copy that asks for marks
    replies: tuple[Generation, ...]


def judge_pairs(
    pairs: Sequence[AnswerPair], model: Model, bench: Bench, *, max_new_tokens: int, on_progress: Callable[[int, int], None]
) -> JudgeWork:
    """Judge all pairs whose answers differ, and the attacks on some of them.

    Raises InputError for a pair too long for a local judge, EndpointError where a server fails.
    """
    asked = [pair for pair in pairs if not pair.is_same]
    attacks = attacked(asked) if asked else ()
    told = replace(bench, on_progress=lambda _, done, total: on_progress(done, total))
    requests = [
        GenerationRequest(item_id=pair.item_id, messages=judge_messages(pair, first), max_new_tokens=max_new_tokens)
        for first in SIDES  # a local model reads the shared beginning once either way
        for pair in (*asked, *attacks)
    ]
    replies = answer_all(model, requests, told, "judge") if requests else ()
    num = len(asked) + len(attacks)
    found = {
        pair.item_id: _judged(pair, read_choice(one.text, "prompt"), read_choice(other.text, "tuned"))
        for pair, one, other in zip((*asked, *attacks), replies[:num], replies[num:], strict=True)
    }
    same = {pair.item_id: replace(_judged(pair, "tie", "tie"), is_same=True) for pair in pairs if pair.is_same}
    return JudgeWork(
        judged=tuple(found.get(pair.item_id) or same[pair.item_id] for pair in pairs),
        attacks=tuple(found[pair.item_id] for pair in attacks),
        replies=tuple(replies),
    )


def _judged(pair: AnswerPair, prompt_first: Choice | None, tuned_first: Choice | None) -> Judged:
    return Judged(pair_id=pair.id, item_id=pair.item_id, cluster=pair.cluster, prompt_first=prompt_first, tuned_first=tuned_first)
