"""What the server and the chat know of an engine: it takes orders, and each step of it adds a piece to some answers.

Single-threaded: whoever owns an engine calls all of it from one thread, `step` until `idle`.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Protocol

from luthier.core.errors import InputError, ModelError
from luthier.core.types import Order, Piece

MAX_LOGPROBS = 20
MAX_STOPS = 16


class TextEngine(Protocol):
    """One base model and any number of named voices (adapters on it), answering many orders at once."""

    @property
    def voices(self) -> tuple[str, ...]:
        """Names an order may ask for; the base model's is the first."""
        ...

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        ...

    @property
    def num_active(self) -> int:
        """Orders being answered."""
        ...

    @property
    def num_waiting(self) -> int:
        """Orders not begun."""
        ...

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        ...

    def submit(self, order: Order) -> int:
        """Take an order and return its ticket.

        Raises ModelError for an unknown voice, ContextError for an order too long for the context, InputError for another that cannot
        be answered: a template that refuses the messages or has no place for tools, a broken schema, a number out of range.
        """
        ...

    def step(self) -> tuple[Piece, ...]:
        """One decoding step of all active answers. Nothing when idle."""
        ...

    def cancel(self, ticket: int) -> None:
        """Give an order up; no more pieces of it come. A ticket that is finished or unknown is no error."""
        ...


def find_voice(voices: tuple[str, ...], name: str) -> str:
    """The voice an order means. Raises ModelError with the nearest name."""
    if not name:
        return voices[0]
    if name in voices:
        return name
    near = get_close_matches(name, voices, n=1, cutoff=0.3) or [voices[0]]
    raise ModelError(f"there is no model {name[:100]!r}; there are: {', '.join(voices)}", where="model", fix=f'"model": "{near[0]}"')


def check_order(order: Order) -> None:
    """Raise InputError for what no engine can answer: nothing or two things to answer to, or a number out of range."""
    sampling = order.sampling
    ranges = (
        ("max_new_tokens", order.max_new_tokens is None or order.max_new_tokens >= 1, order.max_new_tokens, "at least 1", "16"),
        ("temperature", 0 <= sampling.temperature <= 100, sampling.temperature, "0 to 100", "0.7"),
        ("top_p", 0 < sampling.top_p <= 1, sampling.top_p, "above 0, up to 1", "1.0"),
        ("top_k", sampling.top_k >= 0, sampling.top_k, "0 (all) or more", "0"),
        ("min_p", 0 <= sampling.min_p <= 1, sampling.min_p, "0 to 1", "0.0"),
        ("repetition_penalty", 0 < sampling.repetition_penalty <= 100, sampling.repetition_penalty, "above 0, up to 100", "1.0"),
        ("num_logprobs", order.num_logprobs is None or 0 <= order.num_logprobs <= MAX_LOGPROBS, order.num_logprobs, "0 to 20", "5"),
    )
    for name, is_good, found, expected, fix in ranges:
        if not is_good:
            raise InputError(f"{name} is {found}, expected {expected}", where=name, fix=f'"{name}": {fix}')
    if bool(order.messages) + (order.text is not None) + bool(order.prompt_ids) != 1:
        raise InputError(
            "an order needs either messages, a text or tokens", where="messages", fix='"messages": [{"role": "user", "content": "…"}]'
        )
    if len(order.stop) > MAX_STOPS or not all(order.stop):
        raise InputError(f"stop has {len(order.stop)} texts, expected up to {MAX_STOPS}, none empty", where="stop", fix='"stop": ["\\n"]')
    forms = [name for name in ("choices", "json_schema", "regex") if getattr(order, name) not in (None, ())]
    if len(forms) > 1:
        raise InputError(
            f"an answer can be held to one form only, found {' and '.join(forms)}", where=forms[1], fix=f"leave {forms[1]} out"
        )
