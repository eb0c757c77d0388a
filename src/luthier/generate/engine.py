"""The running engine: orders come and go, one decoding step at a time answers all that are active (continuous batching).

A step reads some waiting prompts, if there is room, and writes one token of every active answer. What prompts begin with is read once and
kept (`PrefixCache`); prompts that enter together and share a beginning share its keys and values while they are decoded too.

Every answer draws from a private random stream. In 32-bit floats it does not depend on what else is in the batch; in bf16 the last bit
of a logit may differ with the shape of a batch, as in every batched engine, and with it a token that was nearly as likely as another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.core.types import Message, Order, Piece
from luthier.generate.admission import MAX_READ, choose, shared_lengths
from luthier.generate.answers import Answer, Desk, add_token, draw_tokens
from luthier.generate.prefix_cache import PrefixCache
from luthier.generate.rows import EMPTY, Prefix, Rows, read_prefix
from luthier.models.voices import Voices
from luthier.tokens.template import ChatEncoder

MAX_ACTIVE = 64
CACHE_BYTES = 256 * 2**20
MIN_HELD = 8  # tokens: below this, reading again costs less than looking up and copying
MIN_HELD_APART = 64  # tokens: below this, a prompt is better read again together with others than from the cache on its own
STORE_BYTES = 2 * 2**30
SPARE = 128  # columns: a row needs about so many more than it enters with
WINDOW = 4  # times `max_active`: how many of the waiting are looked at


class Engine:
    """See `TextEngine`. `base_name` is what the base model is called."""

    def __init__(
        self,
        voices: Voices,
        encoder: ChatEncoder,
        *,
        context: int,
        base_name: str,
        max_active: int = MAX_ACTIVE,
        cache_bytes: int = CACHE_BYTES,
        store_bytes: int = STORE_BYTES,
    ) -> None:
        self.voices = (base_name, *voices.adapters)
        self.context = context
        self.max_active = max_active
        self._desk = Desk(voices=self.voices, encoder=encoder, context=context, num_vocab=voices.head_VE.shape[0])
        self._model = voices
        self._rows = Rows(voices)
        self._cache = PrefixCache(cache_bytes)
        self._active: list[Answer] = []  # one for each line of `_rows`
        self._max_slots = store_bytes // voices.bytes_per_token  # rows times columns

    @property
    def num_active(self) -> int:
        """Orders being answered."""
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        """Orders not begun."""
        return len(self._desk.waiting)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._active and not self._desk.waiting

    def count_prompt(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, as `submit` counts them. Raises InputError."""
        return self._desk.count_prompt(messages)

    def submit(self, order: Order) -> int:
        """Take an order and return its ticket; see `TextEngine.submit` for what it raises."""
        return self._desk.take(order)

    def cancel(self, ticket: int) -> None:
        """Give an order up; its row is free at once."""
        self._desk.give_up(ticket)
        self._leave([r for r, answer in enumerate(self._active) if answer.ticket == ticket])

    def step(self) -> tuple[Piece, ...]:
        """One token of every active answer; those waiting enter first, where there is room, and get their first token in the same step."""
        self._make_room()
        parts = [self._rows.step([answer.written[-1] for answer in self._active])] if self._active else []
        parts += self._admit()
        if not parts:
            return ()
        logits_RV = torch.cat(parts) if len(parts) > 1 else parts[0]
        tokens = draw_tokens(self._active, logits_RV)
        pieces = [
            add_token(answer, self._desk.encoder, token, logits_RV[r])
            for r, (answer, token) in enumerate(zip(self._active, tokens, strict=True))
        ]
        self._leave([r for r, piece in enumerate(pieces) if piece.finish is not None], keep=True)
        return tuple(pieces)

    def _make_room(self) -> None:
        """Put the youngest answers back among the waiting while the rows would take more memory than they may."""
        while len(self._active) > 1 and len(self._active) * self._rows.width > self._max_slots:
            r = max(range(len(self._active)), key=lambda r: self._active[r].ticket)
            self._desk.waiting.insert(0, self._active[r])
            self._leave([r], keep=True)

    def _admit(self) -> list[Tensor]:
        """Let waiting prompts enter, the oldest and those nearest to it in length; logits of the new rows, [N, V] each."""
        if not self._desk.waiting or len(self._active) >= self.max_active:
            return []
        first = self._desk.waiting[0]
        if not self._model.mixes and self._active and self._active[0].voice != first.voice:
            return []  # rows of one voice at a time: the next voice has its turn when these are done
        if self._active and self._read_ahead(first):
            return []
        seen = [a for a in self._desk.waiting[: WINDOW * self.max_active] if self._model.mixes or a.voice == first.voice]
        all_ids = [answer.ids for answer in seen]
        width = max(self._rows.width, len(first.ids)) + SPARE
        room = min(self.max_active, self._max_slots // width) - len(self._active)
        if not self._active:
            room = max(1, room)
        fits = [i for i, ids in enumerate(all_ids) if len(ids) <= width]
        unread = lambda n: len(all_ids[fits[n]]) - self._cache.match(seen[fits[n]].voice, all_ids[fits[n]][:-1])  # noqa: E731
        entering = [seen[fits[n]] for n in choose([len(all_ids[i]) for i in fits], room, unread=unread)]
        tickets = {answer.ticket for answer in entering}
        self._desk.waiting = [answer for answer in self._desk.waiting if answer.ticket not in tickets]
        parts: list[Tensor] = []
        for of_voice in dict.fromkeys(answer.voice for answer in entering):
            parts += self._enter([answer for answer in entering if answer.voice == of_voice], of_voice)
        return parts

    def _read_ahead(self, answer: Answer) -> bool:
        """Of a long prompt, read one stretch into the cache, so that other answers go on in between; False where it can enter now."""
        held = self._cache.match(answer.voice, answer.ids[:-1])
        if len(answer.ids) - held <= MAX_READ:
            return False
        self._prefix(answer.ids[: held + MAX_READ], answer.voice)
        return self._cache.match(answer.voice, answer.ids[:-1]) > held  # a cache too small to hold it would never get there

    def _enter(self, entering: Sequence[Answer], voice: str) -> list[Tensor]:
        """Prompts of one voice: first those behind each shared beginning together, then those with a history of their own, one by one."""
        groups: dict[tuple[int, ...], list[Answer]] = {}
        for answer, n in zip(entering, shared_lengths([answer.ids for answer in entering]), strict=True):
            standing = self._standing(answer)
            ids = answer.ids[:n] if standing is None or n - len(standing.ids) >= MIN_HELD_APART else standing.ids
            groups.setdefault(ids, []).append(answer)
        parts: list[Tensor] = []
        for ids, members in groups.items():
            prefix = self._prefix(ids, voice)
            worth = MIN_HELD if len(members) == 1 else MIN_HELD_APART
            fresh: list[Answer] = []
            for answer in members:
                held = self._cache.match(voice, answer.ids[:-1])
                is_fresh = held - len(ids) < worth
                if not answer.written:
                    answer.num_cached = len(ids) if is_fresh else held
                if is_fresh:
                    fresh.append(answer)
                    continue
                kv = self._cache.read(voice, answer.ids[:held])
                assert kv is not None
                parts.append(self._read(prefix, [Prefix(answer.ids[len(ids) : held], kv[:, :, len(ids) :])], [answer]))
            if fresh:
                parts.append(self._read(prefix, [EMPTY] * len(fresh), fresh))
        return parts

    def _standing(self, answer: Answer) -> Prefix | None:
        """The longest prefix shared by active rows that this prompt begins with too."""
        shared = {id(line.prefix): line for line in self._rows.lines if line.voice == answer.voice and line.prefix.ids}
        fitting = [line.prefix for line in shared.values() if answer.ids[:-1][: len(line.prefix.ids)] == line.prefix.ids]
        return max(fitting, key=lambda prefix: len(prefix.ids), default=None)

    def _prefix(self, ids: tuple[int, ...], voice: str) -> Prefix:
        """A shared beginning: as active rows have it, else from the cache, what is missing read now."""
        if not ids:
            return EMPTY
        for other, line in zip(self._active, self._rows.lines, strict=True):
            if other.voice == voice and line.prefix.ids == ids:
                return line.prefix
        held = self._cache.match(voice, ids)
        prefix = read_prefix(self._model, ids, voice=voice, behind=Prefix(ids[:held], self._cache.read(voice, ids[:held])))
        assert prefix.kv is not None
        self._cache.add(voice, ids, prefix.kv)
        return prefix

    def _read(self, prefix: Prefix, histories: Sequence[Prefix], entering: Sequence[Answer]) -> Tensor:
        behind = [answer.ids[len(prefix.ids) :] for answer in entering]
        logits_NV = self._rows.enter(prefix, histories, behind, [answer.voice for answer in entering])
        self._active += entering
        return logits_NV

    def _leave(self, rows: Sequence[int], *, keep: bool = False) -> None:
        """Free rows. With `keep`, what they read and wrote stays in the cache: the next turn of a chat begins with it."""
        if not rows:
            return
        for r in rows:
            if keep:
                line, answer = self._rows.lines[r], self._active[r]
                start = len(line.prefix.ids)
                ids = answer.ids[: start + len(line.own)]
                self._cache.add(answer.voice, ids, self._rows.own_kv(r, 0, len(line.own)), start=start)
        self._active = [self._active[r] for r in self._rows.leave(rows)]
