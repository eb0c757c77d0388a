"""Decoding one planned batch to its end: prompts enter together, then a token a row a step, finished rows leaving."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from luthier.core.types import Sampling
from luthier.generate.admission import MAX_READ
from luthier.generate.batching import plan_passes
from luthier.generate.rows import EMPTY, Prefix, Rows
from luthier.generate.sampling import draw, likeliest, random_stream
from luthier.models.voices import Voices

Allowed = Callable[[int], Tensor | None]  # row -> ids it may write next, ascending; None: any
Accepts = Callable[[int, int], bool]  # row, token -> whether it is one of these

COMPACT_BELOW = 0.75  # drop finished rows once fewer than this share is still writing


def _next_tokens(
    logits_RV: Tensor,
    rows: Sequence[int],
    sampling: Sequence[Sampling],
    streams: Sequence[torch.Generator],
    allowed: Allowed | None,
    accepts: Accepts | None,
) -> list[int]:
    if allowed is None and all(s.temperature <= 0 for s in sampling):
        return likeliest(logits_RV)
    if accepts is not None and all(s.temperature <= 0 for s in sampling):
        best = likeliest(logits_RV)  # mostly it may follow, and then nobody need know what else might
        return [
            token if accepts(r, token) else draw(logits_RV[i], sampling[r], streams[r], allowed=None if allowed is None else allowed(r))
            for i, (r, token) in enumerate(zip(rows, best, strict=True))
        ]
    return [draw(logits_RV[i], sampling[r], streams[r], allowed=None if allowed is None else allowed(r)) for i, r in enumerate(rows)]


def _same_prompts(prompts: Sequence[Sequence[int]]) -> tuple[list[int], list[Sequence[int]]]:
    """The prompts that differ, in order, and for each prompt the place of its like among these."""
    places: dict[tuple[int, ...], int] = {}
    of = [places.setdefault(tuple(ids), len(places)) for ids in prompts]
    return of, list(places)


@torch.no_grad()
def decode(
    voices: Voices,
    prefix: Prefix,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: Sequence[int],
    eos_ids: frozenset[int],
    sampling: Sequence[Sampling],
    on_token: Callable[[int, int], bool] | None = None,
    allowed: Allowed | None = None,
    accepts: Accepts | None = None,
    on_choice: Callable[[int, Tensor, Tensor], None] | None = None,
) -> list[list[int]]:
    """New tokens of each row (its EOS left out); `prompts[r]` are the tokens after the prefix, at least one each.

    1. Prompts are read against the shared prefix, some at a time: what a layer makes of more tokens at once is room that the system
       hands out anew, page by page, for every layer. Of prompts that are the same, as where an item is asked again, one is read.
    2. Each step appends one token a row.
       Of a row with `allowed` ids the most likely of these is taken, as if all others were impossible; where there are
       several, `on_choice(row, ids, logprobs)` is told their log-probabilities among themselves, at temperature 1.
       `accepts` says the same as `allowed` of one token, where that is cheaper.
    3. A row ends at EOS, at its `max_new_tokens`, or when `on_token(row, token)` returns False; once enough rows have ended
       they leave the batch.
    """
    batch = Rows(voices, num_expected=len(prompts))
    of, apart = _same_prompts(prompts)
    passes = plan_passes(list(map(len, apart)), MAX_READ)
    read = [batch.enter(prefix, [EMPTY] * (end - start), apart[start:end], [voices.own] * (end - start)) for start, end in passes]
    logits_RV = torch.cat(read) if len(read) > 1 else read[0]
    if len(apart) < len(prompts):
        batch.repeat(of)
        logits_RV = logits_RV[of]
    written: list[list[int]] = [[] for _ in prompts]
    streams = [random_stream(s) for s in sampling]
    rows = list(range(len(prompts)))  # the row of each line still in the batch
    ended = [False] * len(prompts)
    while True:
        tokens = _next_tokens(logits_RV, rows, sampling, streams, allowed, accepts)
        for line, row in enumerate(rows):
            if ended[row]:
                continue
            if on_choice is not None and allowed is not None and (ids := allowed(row)) is not None and len(ids) > 1:
                on_choice(row, ids, torch.log_softmax(logits_RV[line][ids.to(logits_RV.device)].float(), dim=-1))
            if tokens[line] in eos_ids:
                ended[row] = True
                continue
            written[row].append(tokens[line])
            go_on = on_token is None or on_token(row, tokens[line])
            ended[row] = not go_on or len(written[row]) >= max_new_tokens[row]
        active = [line for line, row in enumerate(rows) if not ended[row]]
        if not active:
            return written
        if len(active) < COMPACT_BELOW * len(rows):
            order = batch.leave([line for line, row in enumerate(rows) if ended[row]])
            tokens, rows = [tokens[line] for line in order], [rows[line] for line in order]
        logits_RV = batch.step(tokens)
