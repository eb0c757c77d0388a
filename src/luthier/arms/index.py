"""Retrieval over the training rows, by words (BM25) or by embeddings: which answered items resemble this one."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from luthier.core.errors import InputError
from luthier.core.types import Example

if TYPE_CHECKING:
    import bm25s


class TextScores(Protocol):
    """Some indexed texts, and how well each of them matches another one."""

    def scores(self, text: str) -> NDArray[np.float32]:
        """A number for each indexed text, higher is nearer."""
        ...


Embed = Callable[[Sequence[str]], Sequence[NDArray[np.float32]]]  # texts to vectors of length 1


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """Embeddings of some texts, a row each; what is looked for is embedded when it is needed. Build it with `index_vectors`."""

    rows: NDArray[np.float32]
    embed: Embed

    def scores(self, text: str) -> NDArray[np.float32]:
        """Cosine of each indexed text with this one."""
        return np.asarray(self.rows @ self.embed([text])[0], dtype=np.float32)


def index_vectors(texts: Sequence[str], embed: Embed) -> VectorIndex:
    """Embed all texts. Raises EndpointError."""
    return VectorIndex(rows=np.stack(embed(texts)), embed=embed)


@dataclass(frozen=True, slots=True)
class WordIndex:
    """BM25 over some texts. Build it with `index_words`."""

    num_texts: int
    vocabulary: dict[str, int]
    bm25: bm25s.BM25 | None  # None: no text holds any word

    def scores(self, text: str) -> NDArray[np.float32]:
        """How well each indexed text matches this one; 0.0 means no word in common."""
        ids = sorted(self.vocabulary[word] for word in set(words(text)) if word in self.vocabulary)
        if self.bm25 is None or not ids:
            return np.zeros(self.num_texts, dtype=np.float32)
        return np.asarray(self.bm25.get_scores_from_ids(ids), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class RetrievalIndex:
    """Training rows in the order of their ids, and which resemble a text: by words or by embeddings. Build it with `build_index`."""

    examples: tuple[Example, ...]
    by_user_text: bool  # the rows differ in their instructions, so these take part
    texts: TextScores

    def query_text(self, example: Example) -> str:
        """The part of an example that is searched for: what varies from row to row."""
        return _varying_text(example, by_user_text=self.by_user_text)

    def search(self, text: str, k: int, *, exclude_id: str = "") -> tuple[Example, ...]:
        """The k rows nearest to a text, nearest first, equal scores by id; fewer if there are fewer.

        Never the row whose id is `exclude_id`; another row with the same content is allowed. Rows without any common word
        come last, so a query of unknown words still gets k rows.
        """
        return tuple(example for example, _ in self.search_scored(text, k, exclude_id=exclude_id))

    def search_scored(self, text: str, k: int, *, exclude_id: str = "") -> tuple[tuple[Example, float], ...]:
        """As `search`, with the score of each row; 0.0 of BM25 means no word in common."""
        if k <= 0:
            return ()
        scores = self.texts.scores(text)
        # Rows stand in order of id, so a stable sort breaks ties by id. One more than k, in case one is excluded.
        order = np.argsort(-scores, kind="stable")[: k + 1]
        found = [(self.examples[int(i)], float(scores[int(i)])) for i in order]
        return tuple((example, score) for example, score in found if not exclude_id or example.id != exclude_id)[:k]


def retrieval_texts(examples: Iterable[Example], items: Iterable[Example]) -> tuple[str, ...]:
    """What `build_index` indexes of training rows, and what is looked for of items: all that has to be embedded, each text once."""
    rows = [example for example in examples if example.desirable is not False]
    by_user_text = len({row.instruction for row in rows}) > 1
    return tuple(dict.fromkeys(_varying_text(row, by_user_text=by_user_text) for row in (*rows, *items)))


def build_index(examples: Iterable[Example], embed: Embed | None = None) -> RetrievalIndex:
    """Index training rows by their varying text: `input`, or the instruction where that is empty; by words, or by what `embed` makes of it.

    If the instructions themselves vary, instruction and input together. The order of the rows does not matter. Rows
    marked undesirable are left out: they must not be shown as answers. Raises InputError if no row is left, EndpointError of `embed`.
    """
    rows = tuple(sorted((example for example in examples if example.desirable is not False), key=lambda example: example.id))
    if not rows:
        raise InputError("no training row to retrieve from", fix="add rows with a wanted response to the training data")
    by_user_text = len({row.instruction for row in rows}) > 1
    texts = [_varying_text(row, by_user_text=by_user_text) for row in rows]
    found = index_words(texts) if embed is None else index_vectors(texts, embed)
    return RetrievalIndex(examples=rows, by_user_text=by_user_text, texts=found)


def index_words(texts: Sequence[str]) -> WordIndex:
    """Index texts by their words (Lucene's BM25, k1 = 1.5, b = 0.75)."""
    documents = [words(text) for text in texts]
    vocabulary: dict[str, int] = {}
    for document in documents:
        for word in document:
            vocabulary.setdefault(word, len(vocabulary))
    if not vocabulary:
        return WordIndex(num_texts=len(texts), vocabulary={}, bm25=None)
    import bm25s  # it brings numba where that is installed: not for those who only chat or serve

    bm25 = bm25s.BM25()
    corpus = ([[vocabulary[word] for word in document] for document in documents], vocabulary)
    bm25.index(corpus, create_empty_token=False, show_progress=False)
    return WordIndex(num_texts=len(texts), vocabulary=vocabulary, bm25=bm25)


def _varying_text(example: Example, *, by_user_text: bool) -> str:
    return example.user_text if by_user_text else example.input or example.instruction


def words(text: str) -> Sequence[str]:
    """Lower-case words without punctuation. Combining marks stay in their word, as Indic scripts need."""
    clean = unicodedata.normalize("NFKC", text).casefold()
    table = {ord(char): _separate(char) for char in set(clean) if not char.isascii() or not char.isalnum()}
    return clean.translate(table).split()


def _separate(char: str) -> str:
    """A space for what is no part of a word; characters of unspaced scripts become words of their own."""
    if unicodedata.category(char)[0] in "PSZC":
        return " "
    return f" {char} " if unicodedata.category(char) == "Lo" and "\u2e80" <= char <= "\u9fff" else char
