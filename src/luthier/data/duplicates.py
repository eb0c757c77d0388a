"""Rows that say the same thing twice, and the groups of rows that must stay on one side of a split."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from luthier.core.types import Example
from luthier.data.normalise import loosen, normalise
from luthier.data.similar import is_short, similar_pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """Groups of example ids, each in the order of the rows.

    `exact`: same prompt and same response after `normalise`. `near`: prompts equal but for case, spacing and punctuation, or similar
    at `threshold`; rows that only share a user group or a conversation are not in it. `clusters`: every id to the cluster that
    must not straddle a split; its name is the smallest id in it.
    """

    exact: tuple[tuple[str, ...], ...]
    near: tuple[tuple[str, ...], ...]
    clusters: Mapping[str, str]
    threshold: float


class _Groups:
    """Union-find over row numbers; the root of a group is its smallest number."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        a, b = self.find(i), self.find(j)
        self._parent[max(a, b)] = min(a, b)

    def join_all(self, members: Iterable[int]) -> None:
        first, *rest = members
        for other in rest:
            self.join(first, other)

    def members(self) -> list[list[int]]:
        groups: dict[int, list[int]] = defaultdict(list)
        for i in range(len(self._parent)):
            groups[self.find(i)].append(i)
        return list(groups.values())


def varying_text(example: Example) -> str:
    """What is compared: the history and `input`, or the instruction where there is no input; raw text is its own content."""
    if example.kind == "text":
        return example.response
    parts = [turn.content for turn in example.history]
    parts.append(example.input or example.instruction)
    return "\n".join(parts)


def prompt_key(example: Example) -> str:
    """Equal for rows that show a model the same prompt after `normalise`."""
    if example.kind == "text":
        return normalise(example.response)
    return "\x1f".join([*(f"{turn.role}\x1e{normalise(turn.content)}" for turn in example.prompt[:-1]), normalise(example.user_text)])


def find_duplicates(examples: Sequence[Example], *, threshold: float = 0.8) -> Duplicates:
    """Exact and near-duplicate rows by Jaccard similarity of character 5-grams (see `similar_pairs`), and split clusters.

    Texts of fewer than four words are near-duplicates only when they are equal but for case, spacing and punctuation.
    Equal ids (the same row read from two files) are one cluster. Raises ValueError for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}, expected a number above 0 and at most 1")
    near = _Groups(len(examples))
    by_text: dict[str, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        by_text[loosen(varying_text(example))].append(i)
    for rows in by_text.values():
        near.join_all(rows)
    texts = list(by_text)
    for i, j, _ in similar_pairs(texts, threshold=threshold):
        near.join(by_text[texts[i]][0], by_text[texts[j]][0])
    whole = _Groups(len(examples))
    for rows in near.members():
        whole.join_all(rows)
    for rows in _bound_rows(examples):
        whole.join_all(rows)
    exact: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        exact[prompt_key(example), normalise(example.response), normalise(example.rejected or "")].append(i)
    ids = [example.id for example in examples]
    return Duplicates(
        exact=_named(exact.values(), ids),
        near=_named(near.members(), ids),
        clusters={ids[i]: name for rows in whole.members() for name in [min(ids[i] for i in rows)] for i in rows},
        threshold=threshold,
    )


def _bound_rows(examples: Sequence[Example]) -> list[list[int]]:
    """Rows that belong together whatever they say: one id, one user group, one conversation."""
    bound: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        bound["id", example.id].append(i)
        if example.group is not None:
            bound["group", example.group].append(i)
        if example.kind == "text":
            continue
        # Turns of one conversation are often separate rows: they share its opening, or all of their history where that is short.
        turns = [turn.content for turn in example.history if turn.role == "user"] or [example.input or example.instruction]
        opening = loosen(turns[0])
        if not is_short(opening):
            bound["opening", hashlib.sha256(opening.encode("utf-8", "surrogatepass")).hexdigest()].append(i)
        elif example.history:
            bound["history", "\x1f".join(loosen(turn.content) for turn in example.history)].append(i)
    return [rows for rows in bound.values() if len(rows) > 1]


def _named(groups: Iterable[list[int]], ids: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(ids[i] for i in rows) for rows in groups if len(rows) > 1)
