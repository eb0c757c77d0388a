"""What the search of an arm looked at on dev."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One prompt: its settings, its mean score on so many dev items, and what these answers cost.

    It was chosen from by this score, so the best of several is biased upwards. Token counts are None where a server does not state them.
    """

    params: Mapping[str, str]
    dev_n: int
    dev_score: float | None
    num_prompt_tokens: int | None
    num_new_tokens: int | None
    seconds: float
    failed: str | None = None  # why it was passed over: it does not fit the context
