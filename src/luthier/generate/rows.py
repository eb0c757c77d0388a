"""The rows being decoded: keys and values of each, entering, one token a step, leaving. The one decoder under evaluation and engine.

Shapes: L layers, K key heads, D head size; P tokens of a shared prefix, C columns of a row's own tokens, left-aligned: a row of n own
tokens fills columns 0 to n - 1. All of it lies in one tensor [L, 2, rows, C, K, D]; the rows in use are the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.models.decode_layout import EnterLayout, Shared, StepLayout
from luthier.models.voices import Voices

COLUMNS_STEP = 64  # columns are added by this many


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Keys and values of tokens that prompts start with, [L, 2, P, K, D]; None for no tokens. Compared by identity."""

    ids: tuple[int, ...]
    kv: Tensor | None


EMPTY = Prefix((), None)


@dataclass(slots=True)
class Line:
    """One row: its shared prefix, its own tokens behind that, and whose voice it has."""

    prefix: Prefix
    own: list[int]
    voice: str


@torch.no_grad()
def read_prefix(voices: Voices, ids: Sequence[int], *, voice: str = "", behind: Prefix = EMPTY) -> Prefix:
    """Run the model once over a prefix; what is there already (`behind`, its beginning) is not computed again."""
    n = len(behind.ids)
    if len(ids) == n:
        return behind
    layout = EnterLayout(behind.kv)
    device = voices.device
    voices.states(torch.tensor([list(ids[n:])], device=device), torch.arange(n, len(ids), device=device)[None], layout, [voice])
    fresh = layout.stacked()[:, :, 0]
    return Prefix(tuple(ids), fresh if behind.kv is None else torch.cat([behind.kv, fresh], dim=2))


@dataclass(slots=True)
class Rows:
    """The batch. `lines[r]` describes row r; some move when others leave."""

    voices: Voices
    num_expected: int = 0  # rows there is to be room for at once
    lines: list[Line] = field(default_factory=list[Line])
    _store: Tensor | None = None  # [L, 2, rows, C, K, D]

    @torch.no_grad()
    def enter(self, prefix: Prefix, histories: Sequence[Prefix], prompts: Sequence[Sequence[int]], voices: Sequence[str]) -> Tensor:
        """Read prompts in one pass and add a row for each; logits of the next tokens, [N, V].

        `prompts[n]` are the tokens behind the shared prefix, at least one that is not yet in `histories[n]`, whose tokens continue
        the prefix for this row alone; with a history that is not empty there must be one prompt only.
        """
        history = histories[0]
        assert len(prompts) == 1 or not any(h.ids for h in histories)
        n_history, before = len(history.ids), len(prefix.ids) + len(history.ids)
        fresh = [list(ids[n_history:]) for ids in prompts]
        T = max(map(len, fresh))
        device = self.voices.device
        ids_NT = torch.tensor([ids + [0] * (T - len(ids)) for ids in fresh], device=device)
        parts = [part.kv for part in (prefix, history) if part.kv is not None]
        layout = EnterLayout(torch.cat(parts, dim=2) if len(parts) > 1 else parts[0] if parts else None)
        positions_NT = (before + torch.arange(T, device=device)).expand(len(fresh), T)
        h_NTE = self.voices.states(ids_NT, positions_NT, layout, voices)
        last_N = torch.tensor([len(ids) - 1 for ids in fresh], device=device)
        h_NE = h_NTE[torch.arange(len(fresh), device=device), last_N]
        kv = layout.stacked()  # [L, 2, N, T, K, D]
        first = len(self.lines)
        store = self._room(kv, rows=first + len(fresh), columns=n_history + T + 1)
        if history.kv is not None:
            store[:, :, first, :n_history] = history.kv
        store[:, :, first : first + len(fresh), n_history : n_history + T] = kv
        self.lines += [Line(prefix, list(ids), voice) for ids, voice in zip(prompts, voices, strict=True)]
        return self.voices.logits(h_NE)

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to each row; logits of the next ones, [R, V]."""
        R = len(self.lines)
        assert self._store is not None and len(tokens) == R
        lengths = [len(line.own) for line in self.lines]
        for line, token in zip(self.lines, tokens, strict=True):
            line.own.append(token)
        store = self._room(self._store, rows=R, columns=max(lengths) + 1)
        device, columns = self.voices.device, store.shape[3]
        filled = max(lengths) + 1
        length_R = torch.tensor(lengths, device=device)
        bias = None
        if min(lengths) + 1 < filled:
            hidden = torch.arange(filled, device=device)[None, :] > length_R[:, None]
            bias = torch.zeros(hidden.shape, dtype=store.dtype, device=device).masked_fill_(hidden, float("-inf"))[:, None, None, :]
        layout = StepLayout(
            store=store,
            num_rows=R,
            filled=filled,
            slot_R=torch.arange(R, device=device) * columns + length_R,
            bias_R11C=bias,
            shared=self._groups(),
        )
        position_R = length_R + torch.tensor([len(line.prefix.ids) for line in self.lines], device=device)
        ids_R1 = torch.tensor(tokens, device=device)[:, None]
        h_R1E = self.voices.states(ids_R1, position_R[:, None], layout, [line.voice for line in self.lines])
        return self.voices.logits(h_R1E[:, 0])

    def repeat(self, of: Sequence[int]) -> None:
        """Row r becomes a copy of row `of[r]`, which is r or one before it; there may be more of them than before."""
        assert self._store is not None and all(0 <= row <= r for r, row in enumerate(of))
        lines = [self.lines[row] for row in of]
        store = self._room(self._store, rows=len(of), columns=self._store.shape[3])
        for to in reversed(range(len(of))):  # nothing is overwritten that is still to be copied: that stands further in front
            if of[to] != to:
                n = len(lines[to].own)
                store[:, :, to, :n] = store[:, :, of[to], :n]
        self.lines = [Line(line.prefix, list(line.own), line.voice) for line in lines]

    def leave(self, rows: Sequence[int]) -> list[int]:
        """Drop rows; the last ones move into their places, so that few are copied. Returns the old row of each that is left."""
        gone = set(rows)
        num_left = len(self.lines) - len(gone)
        movers = [r for r in range(num_left, len(self.lines)) if r not in gone]
        order = [movers.pop() if r in gone else r for r in range(num_left)]
        for to, r in enumerate(order):
            if to != r and self._store is not None:
                n = len(self.lines[r].own)
                self._store[:, :, to, :n] = self._store[:, :, r, :n]
        self.lines = [self.lines[r] for r in order]
        if not order:
            self._store = None  # one long answer must not leave its width behind
        return order

    @property
    def width(self) -> int:
        """Columns that the longest row will have filled after the next step."""
        return max((len(line.own) + 1 for line in self.lines), default=0)

    def own_kv(self, row: int, start: int, end: int) -> Tensor:
        """A copy of keys and values of a row's own tokens `start` to `end`, [L, 2, n, K, D]."""
        assert self._store is not None
        return self._store[:, :, row, start:end].clone()

    def _groups(self) -> tuple[Shared, ...]:
        """The shared prefixes, each with its rows."""
        rows_of: dict[int, list[int]] = {}
        for r, line in enumerate(self.lines):
            if line.prefix.kv is not None:
                rows_of.setdefault(id(line.prefix), []).append(r)
        groups: list[Shared] = []
        for rows in rows_of.values():
            kv = self.lines[rows[0]].prefix.kv
            assert kv is not None
            whole = len(rows) == len(self.lines)
            groups.append(Shared(kv, None if whole else torch.tensor(rows, device=self.voices.device)))
        return tuple(groups)

    def _room(self, like: Tensor, *, rows: int, columns: int) -> Tensor:
        """The store, made larger where it must be; `like` gives L, K, D."""
        L, _, _, _, K, D = like.shape
        old = self._store
        if old is not None and old.shape[2] >= rows and old.shape[3] >= columns:
            return old
        if old is not None:
            rows, columns = max(rows, old.shape[2]), max(columns, old.shape[3])
        rows = max(rows, self.num_expected)
        columns = -(-columns // COLUMNS_STEP) * COLUMNS_STEP
        new = torch.zeros(L, 2, rows, columns, K, D, dtype=like.dtype, device=like.device)
        used = len(self.lines)
        if old is not None and used:
            filled = old.shape[3]
            new[:, :, :used, :filled] = old[:, :, :used]
        self._store = new
        return new
