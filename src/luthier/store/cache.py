"""Finished generations by content key, so that no answer is ever paid for twice."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from luthier.core.errors import RunError
from luthier.core.types import Generation
from luthier.store.journal import append, read


class GenerationCache:
    """A dictionary in memory over an append-only journal; one process writes it, the holder of the run lock.

    The key is a digest of all that the text depends on (model, adapter, dtype, shared prefix, request), so what is stored never
    goes stale. Raises RunError when the journal is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stored: dict[str, Generation] = {}
        for number, record in enumerate(read(path), start=1):
            key, generation = _from_record(record, where=f"{path}:{number}")
            self._stored.setdefault(key, generation)

    def __len__(self) -> int:
        return len(self._stored)

    def get(self, key: str) -> Generation | None:
        """The stored generation, or None."""
        return self._stored.get(key)

    def put(self, key: str, generation: Generation) -> None:
        """Store one for good. A key that is there already keeps its first generation, times included."""
        if key not in self._stored:
            append(self._path, {"key": key, **asdict(generation)})
            self._stored[key] = generation


def _from_record(record: dict[str, Any], *, where: str) -> tuple[str, Generation]:
    fields = dict(record)
    try:
        key = fields.pop("key")
        generation = Generation(**fields)
    except (KeyError, TypeError) as error:
        raise RunError(f"this is not a generation: {error}", where=where, fix="delete the file; the answers are generated again") from error
    return str(key), generation
