"""Embeddings by a server that speaks OpenAI's `/v1/embeddings`: hosted models, vLLM, llama.cpp, Ollama on this machine.

As with answers: nothing is sent but to the address the user named, what comes back is untrusted, and every vector is stored as soon as it
is there, so that no text is paid for twice.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from luthier.core.errors import EndpointError
from luthier.core.hashing import digest
from luthier.generate.endpoint import Endpoint, Garbage, exchange, refuse_other_model, run_at_once

BATCH_TEXTS = 16  # 3,072 numbers each, spelled out, are 0.7 MiB of answer
MAX_NUMBERS = 16_384
MAX_SIZE = 1e150  # its square is a number

Vector = NDArray[np.float32]


class VectorStore(Protocol):
    """Where vectors live, by content key."""

    def get(self, key: str) -> Vector | None:
        """The stored vector, or None."""
        ...

    def put(self, key: str, vector: Vector) -> None:
        """Store one for good."""
        ...


def embed(
    endpoint: Endpoint,
    texts: Sequence[str],
    *,
    store: VectorStore,
    on_progress: Callable[[int, int], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Vector, ...]:
    """One vector of length 1 for each text, in the order given; what the store has is not asked again.

    Raises EndpointError when one request fails for good, KeyboardInterrupt when asked to stop; vectors on their way are stored first.
    """
    keys = [digest([endpoint.url, endpoint.model, text]) for text in texts]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    done = {key: kept for key in first if (kept := store.get(key)) is not None}
    todo = [key for key in dict.fromkeys(keys) if key not in done]
    batches = [todo[at : at + BATCH_TEXTS] for at in range(0, len(todo), BATCH_TEXTS)]

    def keep(batch: list[str], vectors: tuple[Vector, ...]) -> None:
        for key, vector in zip(batch, vectors, strict=True):
            store.put(key, vector)
        done.update(zip(batch, vectors, strict=True))
        on_progress(len(done), len(first))

    if todo:
        on_progress(len(done), len(first))
    run_at_once(
        endpoint, batches, lambda batch, secret, halt: _embed_batch(endpoint, secret, [texts[first[key]] for key in batch], halt), keep,
        should_stop,
    )  # fmt: skip
    sizes = {len(vector) for vector in done.values()}
    if len(sizes) > 1:
        problem_words = f"vectors of {' and '.join(map(str, sorted(sizes)))} numbers came from one model"
        raise EndpointError(problem_words, where=endpoint.name, fix="look at what listens there; --fresh or --run-dir NEW")
    return tuple(done[key] for key in keys)


def _embed_batch(endpoint: Endpoint, secret: str, texts: Sequence[str], halt: threading.Event) -> tuple[Vector, ...]:
    question = {"model": endpoint.model, "input": list(texts), "encoding_format": "float"}
    vectors, _, _ = exchange(
        endpoint, secret, "/embeddings", question, lambda body: read_vectors(endpoint, body, len(texts)), digest(list(texts)), halt
    )
    return vectors


def read_vectors(endpoint: Endpoint, body: bytes, number: int) -> tuple[Vector, ...]:
    """The vectors of one reply, at length 1, in the order of the texts. Raises Garbage, or EndpointError where another model answered."""
    try:
        found: object = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Garbage(f"it is no JSON ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise Garbage(f"found {type(found).__name__}, expected an object")
    refuse_other_model(endpoint, cast("dict[str, object]", found).get("model"))
    rows = cast("dict[str, object]", found).get("data")
    if not isinstance(rows, list) or len(cast("list[object]", rows)) != number:
        raise Garbage(f"it does not hold {number} vectors")
    out: dict[int, Vector] = {}
    for place, row in enumerate(cast("list[object]", rows)):
        fields = cast("dict[str, object]", row) if isinstance(row, dict) else {}
        index, numbers = fields.get("index", place), fields.get("embedding")
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < number or index in out:
            raise Garbage("the places of its vectors are not those of the texts")
        out[index] = _vector(numbers)
    return tuple(out[i] for i in range(number))


def _vector(numbers: object) -> Vector:
    if not isinstance(numbers, list) or not 1 <= len(cast("list[object]", numbers)) <= MAX_NUMBERS:
        raise Garbage("a vector is no list of numbers")
    values = cast("list[object]", numbers)
    if not all(isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_SIZE for value in values):
        raise Garbage("a vector holds something that is no finite number")
    vector = np.array(values, dtype=np.float64)
    length = float(np.linalg.norm(vector))
    if not math.isfinite(length) or length == 0:
        raise Garbage("a vector has no length")
    return np.asarray(vector / length, dtype=np.float32)
