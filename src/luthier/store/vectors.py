"""Embeddings by content key, so that no text is ever paid for twice: a dictionary in memory over an append-only journal."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from luthier.core.errors import RunError
from luthier.store.journal import append, read

Vector = NDArray[np.float32]
_FLOAT = np.dtype("<f4")


class VectorCache:
    """One process writes it, the holder of the run lock. The key is a digest of server, model and text. Raises RunError when damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stored: dict[str, Vector] = {}
        for number, record in enumerate(read(path), start=1):
            key, text = record.get("key"), record.get("vector")
            try:
                vector = np.frombuffer(base64.b64decode(str(text), validate=True), dtype=_FLOAT)
            except (binascii.Error, ValueError) as error:
                raise self._damaged(number) from error
            if not isinstance(key, str) or not len(vector) or not bool(np.isfinite(vector).all()):
                raise self._damaged(number)
            self._stored.setdefault(key, vector)

    def _damaged(self, number: int) -> RunError:
        fix = "delete the file; the texts are embedded again"
        return RunError("this is not an embedding", where=f"{self._path}:{number}", fix=fix)

    def __len__(self) -> int:
        return len(self._stored)

    def get(self, key: str) -> Vector | None:
        """The stored vector, or None."""
        return self._stored.get(key)

    def put(self, key: str, vector: Vector) -> None:
        """Store one for good."""
        if key not in self._stored:
            append(self._path, {"key": key, "vector": base64.b64encode(vector.astype(_FLOAT).tobytes()).decode("ascii")})
            self._stored[key] = vector
