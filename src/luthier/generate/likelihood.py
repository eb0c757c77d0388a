"""How likely a model finds a text: mean negative log-likelihood of the labelled tokens of each row, by one pass over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.types import TokenRow
from luthier.models.backbone import TreeLayout
from luthier.models.voices import Voices
from luthier.tokens.tree import TreeBatch, tree_batch

BATCH_TOKENS = 1024
CHUNK_TOKENS = 256  # of logits at a time


def mean_losses(
    voices: Voices,
    rows: Sequence[TokenRow],
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[float | None, ...]:
    """Nats a token of each row, in order; None for a row without labels. Raises KeyboardInterrupt when asked to stop."""
    out: list[float | None] = [None] * len(rows)
    wanted = [i for i, row in enumerate(rows) if any(row.is_label[1:])]
    for batch in _batches(wanted, rows):
        if should_stop():
            raise KeyboardInterrupt
        losses_N = token_losses(voices, tree_batch([rows[i] for i in batch], share_prefix=False))
        ends = [0]
        for i in batch:
            ends.append(ends[-1] + sum(rows[i].is_label[1:]))
        for i, (start, end) in zip(batch, pairwise(ends), strict=True):
            out[i] = float(losses_N[start:end].mean())
        on_progress(sum(value is not None for value in out), len(rows))
    return tuple(out)


@torch.no_grad()
def token_losses(voices: Voices, batch: TreeBatch) -> Tensor:
    """-log p(target) of each label token as the voices' own speaks, [N], fp32."""
    batch = batch.on(voices.device)
    states_1TE = voices.states(batch.input_ids_T[None], batch.position_ids_T[None], TreeLayout(batch.tree), [voices.own])
    h_NE = states_1TE[0].index_select(0, batch.source_N)
    parts = zip(h_NE.split(CHUNK_TOKENS), batch.target_N.split(CHUNK_TOKENS), strict=True)
    return torch.cat([F.cross_entropy(voices.logits(h).float(), target, reduction="none") for h, target in parts])


def _batches(wanted: Sequence[int], rows: Sequence[TokenRow]) -> list[list[int]]:
    """In order, up to `BATCH_TOKENS` at a time."""
    out: list[list[int]] = []
    filled = BATCH_TOKENS
    for i in wanted:
        length = len(rows[i].input_ids)
        if filled + length > BATCH_TOKENS:
            out.append([])
            filled = 0
        out[-1].append(i)
        filled += length
    return out
