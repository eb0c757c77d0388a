"""Drawing the next token of a row: from its logits, its settings and its own private random stream, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.core.types import Sampling

NUCLEUS = 1024  # top-p is looked for among so many of the likeliest tokens first: sorting a whole vocabulary takes milliseconds


def random_stream(sampling: Sampling) -> torch.Generator:
    """The private stream of a row."""
    return torch.Generator().manual_seed(sampling.seed % 2**63)


def likeliest(logits_RV: Tensor) -> list[int]:
    """The token of the largest logit of each row. `max` finds it in a fifth of the time that `argmax` takes in bf16."""
    return logits_RV.max(dim=-1).indices.tolist()


def draw(logits_V: Tensor, sampling: Sampling, stream: torch.Generator, *, seen: Sequence[int] = (), allowed: Tensor | None = None) -> int:
    """The next token. `seen`: tokens of prompt and answer, for the repetition penalty; `allowed`: ids that may be written, ascending.

    Sampling takes one uniform number a token and looks it up in the cumulated probabilities in order of id.
    """
    if allowed is not None and len(allowed) == 1:
        return int(allowed[0])
    if sampling.repetition_penalty != 1:
        logits_V = _penalised(logits_V, seen, sampling.repetition_penalty)
    if allowed is not None:
        logits_V = logits_V[allowed.to(logits_V.device)]
    if sampling.temperature <= 0:
        place = int(logits_V.max(dim=0).indices)
    else:
        p_V = probabilities(logits_V.float().cpu(), sampling)
        total_V = p_V.double().cumsum(0)
        u = torch.rand(1, generator=stream, dtype=torch.float64) * total_V[-1]
        place = int(torch.searchsorted(total_V, u, right=True))
        if place == len(p_V):  # u rounded up to 1
            place = int(p_V.nonzero()[-1])
    return place if allowed is None else int(allowed[place])


def probabilities(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """What is drawn from: temperature, then top-k, top-p, min-p; what they leave out has 0. Not normalised."""
    p_V = torch.softmax(logits_V / sampling.temperature, dim=-1)
    if 0 < sampling.top_k < len(p_V):
        kept = p_V.topk(sampling.top_k).indices
        p_V = torch.zeros_like(p_V).index_copy_(0, kept, p_V[kept])
        p_V = p_V / p_V.sum()
    if sampling.top_p < 1:
        p_V = _nucleus(p_V, sampling.top_p)
    if sampling.min_p > 0:
        p_V = torch.where(p_V >= sampling.min_p * p_V.max(), p_V, 0.0)
    return p_V


def _nucleus(p_V: Tensor, top_p: float) -> Tensor:
    """The fewest likeliest tokens that together have `top_p` (Holtzman et al., arXiv 1904.09751)."""
    size = min(NUCLEUS, len(p_V))
    best, ids = p_V.topk(size)
    if float(best.sum()) < top_p and size < len(p_V):
        best, ids = p_V.sort(descending=True)
    before = best.cumsum(0) - best
    kept = ids[before < top_p]
    return torch.zeros_like(p_V).index_copy_(0, kept, p_V[kept])


def _penalised(logits_V: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Logits of tokens seen divided by the penalty, multiplied where negative (CTRL, arXiv 1909.05858)."""
    ids = torch.tensor(sorted(set(seen)), device=logits_V.device)
    scores = logits_V[ids].float()
    scores = torch.where(scores < 0, scores * penalty, scores / penalty)
    return logits_V.float().index_copy(0, ids, scores)
