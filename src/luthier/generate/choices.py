"""Holding an answer to a closed set of labels while it is written: after each token, only those that can still become one.

The state is the bytes written so far, not a path of tokens: every way of cutting a label into tokens is allowed, so an answer
that would have been valid anyway comes out the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luthier.tokens.spelling import Spelling, read_spelling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Choices:
    """The language: a label, bare or behind one space, then the end of the turn (an EOS token, or the stop text where there is one)."""

    def __init__(self, spelling: Spelling, labels: Sequence[str], *, stop: str, eos_ids: frozenset[int]) -> None:
        bare = [label.encode() for label in labels]
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
