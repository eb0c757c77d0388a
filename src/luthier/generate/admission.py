"""Which waiting prompts enter the batch next, and which of them share a beginning that is worth reading once."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.tokens.tree import common_prefix_length

MIN_SHARED = 16  # tokens: below this a prefix of its own costs more than it saves
MIN_SAVED = 256  # tokens that a further prefix behind a shared one must save: each costs a product of its own a layer and step
MAX_READ = 2048  # tokens read in one pass, padding included: longer passes would keep those who wait for their next token waiting


def choose(lengths: Sequence[int], room: int) -> list[int]:
    """Which of the waiting (in order of arrival; tokens to read) enter together: the first, and those nearest to it in length.

    The first always enters, so nobody waits for ever.
    """
    if not lengths or room <= 0:
        return []
    first = lengths[0]
    near = sorted(range(len(lengths)), key=lambda i: (abs(lengths[i] - first), i))
    chosen: list[int] = []
    longest = 0
    for i in near[:room]:
        wide = max(longest, lengths[i])
        if chosen and (len(chosen) + 1) * wide > MAX_READ:
            break
        chosen.append(i)
        longest = wide
    return sorted(chosen)


def shared_lengths(prompts: Sequence[Sequence[int]]) -> list[int]:
    """For each prompt, how many leading tokens it shares with others of these so that reading them apart is worth it; 0: none."""
    found = [0] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
    _divide(prompts, order, 0, found)
    return found


def _divide(prompts: Sequence[Sequence[int]], order: Sequence[int], held: int, found: list[int]) -> None:
    """`order` is sorted and shares `held` tokens: read more apart where at least two prompts go on together."""
    if len(order) < 2:
        return
    common = common_prefix_length([prompts[i] for i in order])
    if common - held >= MIN_SHARED and (not held or (len(order) - 1) * (common - held) >= MIN_SAVED):
        held = common
        for i in order:
            found[i] = held
    at = max(common, held)
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or prompts[order[end]][at : at + 1] != prompts[order[start]][at : at + 1]:
            if end - start < len(order):
                _divide(prompts, order[start:end], held, found)
            start = end
