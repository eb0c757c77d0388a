"""Holding an answer to a form while it is written: one of some labels, a JSON schema, a regular expression.

Schemas and expressions are untrusted and are compiled by llguidance under its limits: no network, no code, bounded work a token.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import llguidance
import numpy as np
import torch
from torch import Tensor

from luthier.core.errors import InputError, ModelError
from luthier.core.types import Order
from luthier.generate.choices import Choices, open_choices
from luthier.tokens.template import ChatEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_GRAMMAR_CHARS = 64 * 1024
# As Python's json.dumps writes: what most training data holds; and no free white space, which a small model can go on with for ever.
JSON_FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Held(Protocol):
    """What one answer is held to."""

    def allowed(self) -> Tensor:
        """Ids of the tokens that may follow, ascending."""
        ...

    def write(self, token: int) -> bool:
        """One of them is written; whether the answer is complete, so that nothing but its end could follow."""
        ...


class HeldToLabels:
    """An answer held to labels."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self._written = b""

    def allowed(self) -> Tensor:
        """Ids of the tokens that may follow, ascending."""
        return self._choices.allowed(self._written)

    def write(self, token: int) -> bool:
        """One of them is written; whether the answer is complete."""
        self._written = self._choices.after(self._written, token)
        return self._choices.is_complete(self._written)


class HeldToGrammar:
    """An answer held to what llguidance compiled."""

    def __init__(self, matcher: llguidance.LLMatcher, eos_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._eos_ids = eos_ids
        self._eos = torch.tensor(sorted(eos_ids))

    def copy(self) -> HeldToGrammar:
        """The same, from where this stands."""
        return HeldToGrammar(self._matcher.deep_copy(), self._eos_ids)

    def accepts(self, token: int) -> bool:
        """Whether this token may follow: far cheaper than asking for all that may."""
        if self._matcher.is_stopped() or self._matcher.is_error():
            return token in self._eos_ids
        return self._matcher.validate_tokens([token]) == 1

    def allowed(self) -> Tensor:
        """Ids of the tokens that may follow, ascending."""
        if self._matcher.is_stopped() or self._matcher.is_error():  # an error: the form took more work than a token may
            return self._eos
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        ids = torch.from_numpy(bits.nonzero()[0])
        return ids if len(ids) else self._eos

    def write(self, token: int) -> bool:
        """One of them is written; whether the answer is complete."""
        self._matcher.consume_token(token)
        return self._matcher.is_stopped()


def hold(order: Order, encoder: ChatEncoder, num_vocab: int) -> Held | None:
    """What the order asks its answer to be held to; None for a free answer. Raises InputError for a broken schema or expression."""
    if order.choices:
        choices = open_choices(encoder.tokenizer, order.choices, "", encoder.eos_ids)
        if choices is None:
            raise ModelError("the bytes of this model's tokens are not known, so no answer can be held to labels", fix="leave choices out")
        return HeldToLabels(choices)
    for name, text in (("json_schema", order.json_schema), ("regex", order.regex)):
        if text is None:
            continue
        if len(text) > MAX_GRAMMAR_CHARS:
            raise InputError(f"{name} has {len(text):,} characters, expected up to {MAX_GRAMMAR_CHARS:,}", where=name, fix="a smaller one")
        tokenizer = _guide(encoder.tokenizer, encoder.eos_ids, num_vocab)
        matcher = llguidance.LLMatcher(tokenizer, _grammar(name, text), log_level=0)
        if matcher.is_error():
            raise _refused(name, matcher.get_error())
        return HeldToGrammar(matcher, encoder.eos_ids)
    return None


def can_hold_to_schema(encoder: ChatEncoder) -> bool:
    """Whether this model's tokenizer is one that an answer can be held to a schema by."""
    return getattr(encoder.tokenizer, "backend_tokenizer", None) is not None and bool(encoder.eos_ids)


def hold_to_schema(schema: str, encoder: ChatEncoder, num_vocab: int) -> HeldToGrammar | None:
    """As `hold`, for a schema of our own making; None without one, or for a tokenizer that no answer can be held by."""
    if not schema or not can_hold_to_schema(encoder):
        return None
    return HeldToGrammar(_compiled(schema, encoder.tokenizer, encoder.eos_ids, num_vocab).deep_copy(), encoder.eos_ids)


@lru_cache(maxsize=8)
def _compiled(schema: str, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int], num_vocab: int) -> llguidance.LLMatcher:
    """Compiled once for all answers of an evaluation; copies of it are held to."""
    matcher = llguidance.LLMatcher(_guide(tokenizer, eos_ids, num_vocab), _grammar("json_schema", schema), log_level=0)
    if matcher.is_error():
        raise _refused("json_schema", matcher.get_error())
    return matcher


@lru_cache(maxsize=64)
def _grammar(name: str, text: str) -> str:
    try:
        if name == "regex":
            return llguidance.LLMatcher.grammar_from_regex(text)
        return llguidance.LLMatcher.grammar_from_json_schema(text, overrides=JSON_FORM)
    except (ValueError, RecursionError) as error:
        raise _refused(name, str(error)) from error


def _refused(name: str, reason: str) -> InputError:
    first = " ".join(reason.split())[:300]
    fix = '"regex": "[0-9]{4}"' if name == "regex" else '{"type": "object", "properties": {"answer": {"type": "string"}}}'
    return InputError(f"cannot be used: {first}", where=name, fix=fix)


@lru_cache(maxsize=4)
def _guide(tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int], num_vocab: int) -> llguidance.LLTokenizer:
    """llguidance's own view of the vocabulary; made once for a tokenizer, it takes up to a second."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("this model's tokenizer is none that an answer can be held to a form by", fix="leave schema and regex out")
    return llguidance.LLTokenizer(backend.to_str(), n_vocab=num_vocab, eos_token=sorted(eos_ids))
