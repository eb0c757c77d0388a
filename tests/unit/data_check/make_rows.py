"""Rows and random sentences for the tests of this folder."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from luthier.core.types import Example, Message
from luthier.data.load import number_examples


def row(input: str, response: str = "yes", **fields: object) -> Example:
    """One example without a final id; pass a list of them through `rows`."""
    return replace(Example(id="", path="rows.jsonl", line=1, kind="instruct", input=input, response=response), **fields)  # type: ignore[arg-type]


def rows(examples: Sequence[Example], path: str = "rows.jsonl") -> tuple[Example, ...]:
    """Numbered as the reader does: content hash as id, lines from 1."""
    return number_examples(replace(e, path=path, line=line) for line, e in enumerate(examples, start=1))


def pairs(*items: tuple[str, str]) -> tuple[Example, ...]:
    return rows([row(question, answer) for question, answer in items])


def chat(*turns: str, response: str = "ok") -> Example:
    """Turns by turn user, assistant, user; the last is the input."""
    history = tuple(Message(role="user" if i % 2 == 0 else "assistant", content=text) for i, text in enumerate(turns[:-1]))
    return row(turns[-1], response, history=history)


def vocabulary(rng: random.Random, size: int) -> list[str]:
    syllables = [c + v for c in "bdfghjklmnprstvz" for v in "aeiou"]
    return ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(size)]


def sentences(count: int, *, name: str, words: Sequence[str] | None = None) -> list[str]:
    """Different sentences of 8 to 20 words, word frequencies falling as in natural text."""
    rng = random.Random(f"sentences/{name}")
    words = words or vocabulary(random.Random("vocabulary"), 3000)
    weights = [1 / (rank + 3) for rank in range(len(words))]
    return [" ".join(rng.choices(words, weights, k=rng.randint(8, 20))) for _ in range(count)]


def at(places: Sequence[tuple[str, int]]) -> set[int]:
    return {line for _, line in places}
