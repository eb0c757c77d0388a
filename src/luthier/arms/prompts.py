"""What an arm is, and the message layouts the prompting arms are made of.

All layouts put what every item shares first (system, instruction, label list, fixed shots), so that it is computed once and
kept in the prefix cache, and the item's own text last. Contents are untrusted text in separate messages; nothing here
renders a template.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.core.types import ArmFamily, Example, Message
from luthier.data.documents import Passage


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to prompt: its settings, and the messages it makes of an item."""

    params: Mapping[str, str]
    build: Callable[[Example], tuple[Message, ...]]
    prompt_chars: int = 0  # median over a sample of training rows; breaks ties on dev
    passages: Callable[[Example], tuple[Passage, ...]] | None = None  # what `build` shows an item of the documents; None: nothing
    # At most so many other orders of its fixed examples, by name; None: there is no order to search.
    orders: Callable[[int], tuple[tuple[str, Callable[[Example], tuple[Message, ...]]], ...]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One contender. A floor arm answers by itself; the others offer candidates, one of which is chosen on dev.

    An arm that cannot be run on this data has neither, and says why in `failed`.
    """

    name: str
    family: ArmFamily
    model: Literal["none", "base", "tuned"]
    description: str
    candidates: tuple[Candidate, ...] = ()
    answer: Callable[[Example], str] | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all training rows have in common; None where they differ."""

    system: str | None
    instruction: str | None


def shared_parts(train: Iterable[Example]) -> Shared:
    """The system text and the instruction all rows share (possibly empty), or None for the part that varies."""
    rows = tuple(train)
    systems = {row.system for row in rows}
    instructions = {row.instruction for row in rows}
    return Shared(
        system=next(iter(systems)) if len(systems) == 1 else None,
        instruction=next(iter(instructions)) if len(instructions) == 1 else None,
    )


def zero_shot(example: Example) -> tuple[Message, ...]:
    """The item's own system, history and user text, exactly as the tuned model is trained on it."""
    return example.prompt


def instructed(example: Example, *, shared: Shared, spec: str, reminder: str) -> tuple[Message, ...]:
    """Instruction and answer format (`spec`) first, then the item; `reminder`, if any, ends the user turn."""
    instruction = _head_instruction(example, shared)
    # What all items share goes first.
    parts = (example.system, instruction, spec) if shared.system is not None else (instruction, spec, example.system)
    user = _joined(_turn_text(example, shared), reminder)
    return (Message(role="system", content=_joined(*parts)), *example.history, Message(role="user", content=user))


def with_shots(example: Example, shots: Sequence[Example], *, shared: Shared) -> tuple[Message, ...]:
    """Shared system and instruction once, then each shot as turns, then the item.

    Where rows have system texts of their own, a shot whose text differs from the item's carries it in its user turn. An item
    that cannot use the shared instruction (its own differs, or it has no input) gets shots with their whole user text.
    """
    if not _drops_instruction(example, shared):
        shared = Shared(system=shared.system, instruction=None)
    head = _joined(example.system, _head_instruction(example, shared))
    system = (Message(role="system", content=head),) if head else ()
    turns: list[Message] = []
    for shot in shots:
        own_system = shot.system if shot.system != example.system else ""
        turns += shot.history
        turns.append(Message(role="user", content=_joined(own_system, _turn_text(shot, shared))))
        turns.append(Message(role="assistant", content=shot.response))
    return (*system, *turns, *example.history, Message(role="user", content=_turn_text(example, shared)))


def with_trained_shots(example: Example, shots: Sequence[Example]) -> tuple[Message, ...]:
    """Shots as turns in the very form the tuned model was trained on: every turn carries its whole user text."""
    return with_shots(example, shots, shared=Shared(system=None, instruction=None))


def fitting_shots(
    nearest_first: Sequence[Example], build: Callable[[Sequence[Example]], tuple[Message, ...]], *, max_prompt_chars: int
) -> tuple[Message, ...]:
    """The messages with as many of the nearest shots as fit; the farthest are left out first."""
    for num_shots in range(len(nearest_first), 0, -1):
        messages = build(nearest_first[:num_shots])
        if num_chars(messages) <= max_prompt_chars:
            return messages
    return build(())


def spread_shots(train: Iterable[Example], key: Callable[[Example], str], *, name: str, max_chars: int) -> tuple[Example, ...]:
    """Training rows in an order whose beginning covers many different keys: the first k are k fixed shots.

    The rows are shuffled by the private stream `name`, then dealt in rounds, each round one row of every key not yet in it,
    so frequent answers come early and no answer twice before every other one has been. Rows of more than `max_chars`
    characters come last.
    """
    rows = sorted((row for row in train if row.desirable is not False), key=lambda row: row.id)
    random.Random(name).shuffle(rows)  # noqa: S311 - no secret
    count: dict[tuple[bool, str], int] = {}
    rounds: list[tuple[bool, int, int]] = []
    for i, row in enumerate(rows):
        is_long = num_chars(row.prompt) + len(row.response) > max_chars
        group = (is_long, key(row))
        rounds.append((is_long, count.get(group, 0), i))
        count[group] = count.get(group, 0) + 1
    return tuple(rows[i] for _, _, i in sorted(rounds))


def num_chars(messages: Iterable[Message]) -> int:
    """Characters of all contents together."""
    return sum(len(message.content) for message in messages)


def _head_instruction(example: Example, shared: Shared) -> str:
    """The shared instruction, if this item does not say it itself."""
    return shared.instruction or "" if _drops_instruction(example, shared) else ""


def _turn_text(example: Example, shared: Shared) -> str:
    """The user turn: without the instruction where that is already said at the top."""
    return example.input if _drops_instruction(example, shared) else example.user_text


def _drops_instruction(example: Example, shared: Shared) -> bool:
    return example.instruction == shared.instruction and bool(example.input)


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)
