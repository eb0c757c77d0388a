"""Where finished generations live while arms are measured: what both ways of generating are given."""

from __future__ import annotations

from typing import Protocol

from luthier.core.types import Generation


class GenerationStore(Protocol):
    """Where finished generations live, by content key."""

    def get(self, key: str) -> Generation | None:
        """The stored generation, or None."""
        ...

    def put(self, key: str, generation: Generation) -> None:
        """Store one for good."""
        ...


class NoStore:
    """Remembers nothing; for chat and for measuring latency."""

    def get(self, key: str) -> Generation | None:
        """Nothing is ever there."""
        del key

    def put(self, key: str, generation: Generation) -> None:
        """Nothing is kept."""
        del key, generation
