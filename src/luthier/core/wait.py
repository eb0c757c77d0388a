"""How long one user waits for one request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """One request on its own, as one user waits for it. `first_s`: until the first token; None where nothing was written."""

    seconds: float
    first_s: float | None = None
    num_new_tokens: int = 0

    @property
    def tokens_per_s(self) -> float | None:
        """Behind the first token (1 / TPOT); None for fewer than two tokens."""
        if self.first_s is None or self.num_new_tokens < 2 or self.seconds <= self.first_s:
            return None
        return (self.num_new_tokens - 1) / (self.seconds - self.first_s)
