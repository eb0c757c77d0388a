"""Arms without a model. If one of these is as good, neither a prompt nor a fine-tune is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from luthier.arms.index import RetrievalIndex
from luthier.core.errors import InputError
from luthier.core.types import Example


def nearest_neighbour(index: RetrievalIndex) -> Callable[[Example], str]:
    """Answers with the response of the nearest training row; with the most frequent response where no word is shared."""
    fallback = majority(index.examples)

    def answer(example: Example) -> str:
        found = index.search_scored(index.query_text(example), 1, exclude_id=example.id)
        return found[0][0].response if found and found[0][1] > 0 else fallback(example)

    return answer


def majority(train: Iterable[Example]) -> Callable[[Example], str]:
    """Answers every item with the most frequent training response; equal counts by the text."""
    counts = Counter(example.response for example in train if example.desirable is not False)
    if not counts:
        raise InputError("no training response to count", fix="add rows with a wanted response to the training data")
    response = min(counts, key=lambda text: (-counts[text], text))

    def answer(_example: Example) -> str:
        return response

    return answer
