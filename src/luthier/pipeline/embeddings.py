"""Retrieval by embeddings: who embeds, and what is embedded beforehand. Off unless a server is named; BM25 is there either way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from luthier.arms.catalogue import Embeddings
from luthier.arms.index import retrieval_texts
from luthier.core.console import Progress
from luthier.core.errors import EndpointError
from luthier.core.types import Split
from luthier.data.documents import Documents
from luthier.generate.embed import embed
from luthier.pipeline.endpoint import server_of
from luthier.pipeline.settings import Settings
from luthier.store.layout import RunFolder
from luthier.store.vectors import VectorCache


def find_embeddings(settings: Settings, folder: RunFolder, progress: Progress, should_stop: Callable[[], bool]) -> Embeddings | None:
    """Who embeds, or None. Raises ConfigError, before anything computes, for an address that must not be used."""
    server = server_of(settings.embeddings, "embeddings")
    if server is None:
        return None
    store = VectorCache(folder.journal_embeddings)

    def told(done: int, total: int) -> None:
        progress("embed", done, total, server.name)

    def vectors(texts: Sequence[str]) -> Sequence[NDArray[np.float32]]:
        return embed(server, texts, store=store, on_progress=told, should_stop=should_stop)

    return Embeddings(by=server.name, embed=vectors)


def embed_before(embeddings: Embeddings | None, split: Split, documents: Documents | None) -> None:
    """Embed all that will be indexed and looked for, many texts a request, instead of one by one when an item is answered.

    A server that fails is no error here: its arms will say so.
    """
    if embeddings is None:
        return
    passages = () if documents is None else tuple(passage.text for passage in documents.passages)
    with suppress(EndpointError):
        embeddings.embed((*retrieval_texts(split.train, (*split.dev, *split.test)), *passages))
