"""Passages of the user's documents before the question: retrieval for grounded answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.arms.index import Embed, TextScores, index_vectors, index_words
from luthier.arms.prompts import Shared, num_chars, with_shots
from luthier.core.types import Example, Message
from luthier.data.documents import Documents, Passage

INTRODUCTION = "Passages from the reference documents. Answer from them where they say it."


@dataclass(frozen=True, slots=True)
class PassageIndex:
    """The passages of a folder, in their order, and which of them match a text: by words, or by embeddings."""

    documents: Documents
    texts: TextScores

    def search(self, text: str, k: int) -> tuple[Passage, ...]:
        """At most k passages that share a word with a text (or point its way), best match first, equal ones in their order."""
        scores = self.texts.scores(text)
        order = np.argsort(-scores, kind="stable")[:k]
        return tuple(self.documents.passages[int(i)] for i in order if scores[int(i)] > 0)


def index_passages(documents: Documents, embed: Embed | None = None) -> PassageIndex:
    """Index all passages, by words or by what `embed` makes of them. Raises EndpointError of `embed`."""
    texts = [passage.text for passage in documents.passages]
    return PassageIndex(documents=documents, texts=index_words(texts) if embed is None else index_vectors(texts, embed))


def with_passages(example: Example, passages: Sequence[Passage], *, shared: Shared) -> tuple[Message, ...]:
    """The item with numbered passages before its own text, in the same turn. Without a passage, the item alone.

    `shared` is what all items share and goes first, as with shots; with nothing in it the item's turn is as it was trained.
    """
    messages = with_shots(example, (), shared=shared)
    if not passages:
        return messages
    numbered = [f"[{number}] {passage.text}" for number, passage in enumerate(passages, start=1)]
    user = "\n\n".join((INTRODUCTION, *numbered, messages[-1].content))
    return (*messages[:-1], Message(role="user", content=user))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounding:
    """One way to put passages before an item. `max_prompt_chars` None: however long the prompt becomes."""

    index: PassageIndex
    k: int
    nearest_last: bool
    shared: Shared
    max_prompt_chars: int | None

    def passages(self, example: Example, query: str) -> tuple[Passage, ...]:
        """The passages an item is shown: the best k, less the worst of them where the prompt would be too long."""
        found = self.index.search(query, self.k)
        while found and self.max_prompt_chars is not None:
            if num_chars(with_passages(example, found, shared=self.shared)) <= self.max_prompt_chars:
                break
            found = found[:-1]
        return tuple(reversed(found)) if self.nearest_last else found
