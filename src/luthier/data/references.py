"""Several right answers to one prompt: rows that ask the same are one item with several references."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from luthier.core.types import Example, TaskProfile
from luthier.data.conflicts import answer_key
from luthier.data.duplicates import prompt_key


def merge_references(rows: Sequence[Example], profile: TaskProfile) -> tuple[Example, ...]:
    """One item for the rows of one prompt with different answers: the first row, with the other answers as `references`.

    Only where answers are short or free text: of these several can be right. Two labels for one prompt are a conflict, and stay two rows.
    Rows that repeat an answer stay as they are.
    """
    if profile.kind not in ("short", "text"):
        return tuple(rows)
    by_prompt: dict[str, list[Example]] = defaultdict(list)
    for row in rows:
        if row.kind == "instruct":
            by_prompt[prompt_key(row)].append(row)
    merged: dict[str, Example] = {}
    dropped: set[str] = set()
    for same in by_prompt.values():
        answers = {answer_key(row.response): row.response for row in reversed(same)}
        if len(answers) < 2:
            continue
        first, *others = same
        dropped.update(row.id for row in others)
        rest = tuple(dict.fromkeys(row.response for row in others if row.response != first.response))
        merged[first.id] = replace(first, references=rest)
    return tuple(merged.get(row.id, row) for row in rows if row.id not in dropped)
