"""Decoding one batch: prompts read once against a shared prefix, then a token a row a step, finished rows leaving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.kernels.device import device_of, to_device
from luthier.models.backbone import DecodeLayout, PrefixLayout, body_and_head, hidden_states

Allowed = Callable[[int], Tensor | None]  # row -> ids it may write next, ascending; None: any

COMPACT_BELOW = 0.75  # drop finished rows once fewer than this share is still writing


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of tokens that all prompts start with, [K, P, D] for each layer."""

    ids: tuple[int, ...]
    layers: dict[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn: greedily at temperature 0, else from a private stream of this row."""

    temperature: float = 0.0
    seed: int = 0


@torch.no_grad()
def read_prefix(model: nn.Module, ids: Sequence[int]) -> Prefix:
    """Run the model once over a shared prefix (may be empty)."""
    layout = PrefixLayout()
    if ids:
        body, _ = body_and_head(model)
        device = device_of(model)
        hidden_states(body, to_device(torch.tensor([list(ids)]), device), torch.arange(len(ids), device=device)[None], layout)
    return Prefix(tuple(ids), layout.kept)


def _draw(logits_V: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature <= 0:
        return int(logits_V.argmax())
    chances_V = torch.softmax(logits_V / temperature, dim=-1).cpu()  # drawn on the host: the same stream whatever computes
    return int(torch.multinomial(chances_V, 1, generator=generator))


def _draw_from(logits_V: Tensor, ids: Tensor | None, temperature: float, generator: torch.Generator) -> int:
    if ids is None:
        return _draw(logits_V.float() if temperature > 0 else logits_V, temperature, generator)
    if len(ids) == 1:
        return int(ids[0])
    kept = logits_V[to_device(ids, logits_V.device)]
    return int(ids[_draw(kept.float() if temperature > 0 else kept, temperature, generator)])


def _next_tokens(
    logits_RV: Tensor, rows: list[int], sampling: Sequence[Sampling], generators: Sequence[torch.Generator], allowed: Allowed | None
) -> list[int]:
    if allowed is not None:
        return [_draw_from(logits_RV[i], allowed(row), sampling[row].temperature, generators[row]) for i, row in enumerate(rows)]
    if all(s.temperature <= 0 for s in sampling):
        return logits_RV.argmax(dim=-1).tolist()
    return [_draw(logits_RV[i].float(), sampling[row].temperature, generators[row]) for i, row in enumerate(rows)]


@torch.no_grad()
def decode(
    model: nn.Module,
    prefix: Prefix,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: Sequence[int],
    eos_ids: frozenset[int],
    sampling: Sequence[Sampling],
    on_token: Callable[[int, int], bool] | None = None,
    allowed: Allowed | None = None,
) -> list[list[int]]:
    """New tokens of each row (its EOS left out); `prompts[r]` are the tokens after the prefix, at least one each.

    1. Prompts are right-aligned in [R, S] and read in one pass against the shared prefix.
    2. Each step appends one token a row to the same column.
       Of a row with `allowed` ids the most likely of these is taken, as if all others were impossible.
    3. A row ends at EOS, at its `max_new_tokens`, or when `on_token(row, token)` returns False; once enough rows have ended
       they leave the batch.
    """
    body, head_VE = body_and_head(model)
    P, R, device = len(prefix.ids), len(prompts), device_of(model)
    lengths = torch.tensor([len(p) for p in prompts])
    S = int(lengths.max())
    first_R = S - lengths
    ids_RS = torch.tensor([[0] * (S - len(p)) + list(p) for p in prompts])
    positions_RS = P + (torch.arange(S)[None, :] - first_R[:, None]).clamp(min=0)
    layout = DecodeLayout(first_R=to_device(first_R, device), capacity=S + max(max_new_tokens), prefix=prefix.layers)
    h_RE = hidden_states(body, to_device(ids_RS, device), to_device(positions_RS, device), layout)[:, -1]
    layout.filled = S
    written: list[list[int]] = [[] for _ in range(R)]
    generators = [torch.Generator().manual_seed(s.seed) for s in sampling]
    rows = list(range(R))  # the row of each line still in the batch
    ended = [False] * R
    position_R = to_device(P + lengths, device)
    while True:
        tokens = _next_tokens(h_RE @ head_VE.T, rows, sampling, generators, allowed)
        for line, row in enumerate(rows):
            if ended[row]:
                continue
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
            kept = to_device(torch.tensor(active), device)
            layout.keep(kept)
            position_R = position_R.index_select(0, kept)
            tokens, rows = [tokens[line] for line in active], [rows[line] for line in active]
        h_RE = hidden_states(body, to_device(torch.tensor(tokens)[:, None], device), position_R[:, None], layout)[:, -1]
        layout.filled += 1
        position_R = position_R + 1
