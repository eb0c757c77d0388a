"""Prompts that stand in the data with different answers, and what that costs every model."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.core.types import Estimate, Example
from luthier.data.duplicates import prompt_key
from luthier.data.normalise import normalise
from luthier.data.profile import parse_object, profile_task


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflicts:
    """`groups`: ids of rows with one prompt and more than one answer. `ceiling`: see `find_conflicts`."""

    groups: tuple[tuple[str, ...], ...]
    num_rows: int  # rows in the groups
    ceiling: Estimate | None


def find_conflicts(examples: Sequence[Example]) -> Conflicts:
    """Rows with the same prompt and different answers, both compared after `normalise`, JSON objects without regard to key order.

    `ceiling` is the best exact match any deterministic model can reach on these very rows: the most frequent answer of each
    prompt. It is a count, not an estimate, so it has no interval. None where the answers are free text, of which several can be right,
    and where there is no row with a wanted answer.
    """
    by_prompt: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        if example.kind == "instruct":
            by_prompt[prompt_key(example)].append(example)
    groups: list[tuple[str, ...]] = []
    num_rows = num_reachable = 0
    for rows in by_prompt.values():
        answers = Counter(answer_key(row.response) for row in rows)
        num_reachable += max(answers.values())
        if len(answers) > 1:
            groups.append(tuple(row.id for row in rows))
            num_rows += len(rows)
    n = sum(len(rows) for rows in by_prompt.values())
    ceiling = None
    if n and profile_task(examples).kind != "text":
        ceiling = Estimate(value=num_reachable / n, low=None, high=None, n=n, method="most frequent answer of each prompt, a count")
    return Conflicts(groups=tuple(groups), num_rows=num_rows, ceiling=ceiling)


def answer_key(response: str) -> str:
    """Equal for answers that say the same."""
    found = parse_object(response)
    return normalise(response if found is None else json.dumps(found, sort_keys=True, ensure_ascii=False))
