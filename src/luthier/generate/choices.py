"""Holding an answer to a closed set of labels while it is written: after each token, only those that can still become one.

The state is the bytes written so far, not a path of tokens: every way of cutting a label into tokens is allowed, so an answer
that would have been valid anyway comes out the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luthier.tokens.spelling import Spelling, read_spelling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ChoiceStep:
    """One token of an answer: what stood there before, which could follow, and how probable each was among them."""

    written: bytes
    ids: Tensor
    logprobs: Tensor


class Choices:
    """The language: a label, bare or behind one space, then the end of the turn (an EOS token, or the stop text where there is one)."""

    def __init__(self, spelling: Spelling, labels: Sequence[str], *, stop: str, eos_ids: frozenset[int]) -> None:
        bare = [label.encode() for label in labels]
        self._bare = frozenset(bare)
        self._targets = tuple(dict.fromkeys([*bare, *(b" " + label for label in bare)]))
        self._stop = stop.encode()
        self._eos_ids = eos_ids
        self._spelling = spelling
        # A token can end the label and run past the stop text; the few that hold it are looked at one by one.
        self._with_stop = {i: spelled for i, spelled in spelling.of_id.items() if self._stop and self._stop in spelled}
        self._known: dict[bytes, Tensor] = {}

    def allowed(self, written: bytes) -> Tensor:
        """Ids of the tokens that may follow, ascending; the end alone where nothing else can."""
        if written not in self._known:
            ids = self._find(written) or self._eos_ids
            self._known[written] = torch.tensor(sorted(ids))
        return self._known[written]

    def is_complete(self, written: bytes) -> bool:
        """Whether a label stands there and no longer one begins with it: nothing but the end could follow."""
        return written in self._targets and not any(t != written and t.startswith(written) for t in self._targets)

    def after(self, written: bytes, token: int) -> bytes:
        """What stands there once `token`, one of those allowed, is written."""
        return written + self._spelling.of_id[token]

    def logprob(self, written: bytes, steps: Sequence[ChoiceStep]) -> float | None:
        """Log-probability of the label that was written, step by step, however it could have been cut into tokens; None if it is none.

        At each step the tokens count that still lead to this label, with or without a space before it. With one label it is 0.
        """
        label = written.partition(self._stop)[0] if self._stop else written
        label = label if label in self._bare else label.removeprefix(b" ")
        if label not in self._bare:
            return None
        ends = [(start + label, start + label + self._stop) for start in (b"", b" ")]
        total = 0.0
        for step in steps:
            leads = torch.tensor([self._leads(step.written, int(token), ends) for token in step.ids])
            total += float(torch.logsumexp(step.logprobs[leads], dim=0))
        return min(0.0, total)

    def _leads(self, written: bytes, token: int, ends: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether the token is a next piece, or the end, of one of these answers; `ends` holds each with and without the stop text."""
        if token in self._eos_ids:
            return any(written == bare for bare, _ in ends)
        text = written + self._spelling.of_id[token]
        return any(whole.startswith(text) or (bool(self._stop) and text.startswith(whole)) for _, whole in ends)

    def _find(self, written: bytes) -> set[int]:
        ids: set[int] = set()
        for target in self._targets:
            if not (target + self._stop).startswith(written):
                continue
            if target == written:
                ids |= self._eos_ids
            rest = (target + self._stop)[len(written) :]
            for n in range(1, len(rest) + 1):
                ids.update(self._spelling.ids_of.get(rest[:n], ()))
            if rest and self._stop:
                ids.update(i for i, spelled in self._with_stop.items() if spelled.startswith(rest))
        return ids


@lru_cache(maxsize=8)
def open_choices(tokenizer: PreTrainedTokenizerBase, labels: tuple[str, ...], stop: str, eos_ids: frozenset[int]) -> Choices | None:
    """The choices for a tokenizer; None without labels, or where the bytes of its tokens are not known."""
    spelling = read_spelling(tokenizer) if labels else None
    return None if spelling is None else Choices(spelling, labels, stop=stop, eos_ids=eos_ids)
