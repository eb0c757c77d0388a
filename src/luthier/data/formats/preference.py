"""Preference pairs: one prompt, a `chosen` and a `rejected` answer.

The prompt is a text or turns in `prompt`, turns in `messages` or `conversations`, Alpaca's `instruction` and `input`,
`question`, or what `chosen` and `rejected` have in common when both are whole conversations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from luthier.core.types import Example, Message, SourceRow
from luthier.data.formats.alpaca import alpaca_history
from luthier.data.formats.chat import read_turn, read_turns, take_apart
from luthier.data.formats.fields import example, refuse_empty_prompt, refuse_empty_response, text_of
from luthier.data.formats.kto import is_sharegpt
from luthier.data.formats.sharegpt import with_system
from luthier.data.json_row import json_type
from luthier.data.reject import RowError


def from_preference(row: SourceRow) -> Example:
    """The prompt, the wanted answer as response, the other as rejected. Raises RowError."""
    chosen_turns, chosen = _answer(row, "chosen")
    rejected_turns, rejected = _answer(row, "rejected")
    refuse_empty_response(chosen, "chosen")
    refuse_empty_response(rejected, "rejected")
    if chosen == rejected:
        raise RowError("identical_pair", "`chosen` and `rejected` are the same", "remove the row: it holds no preference")
    if chosen_turns != rejected_turns:
        raise RowError("two_prompts", "`chosen` and `rejected` begin with different turns", "give both the same prompt")
    if "instruction" in row.fields and not chosen_turns:
        instruction = text_of(row.fields, "instruction")
        input_text = text_of(row.fields, "input", required=False)
        refuse_empty_prompt(instruction, input_text)
        return example(
            row.path,
            row.line,
            kind="preference",
            instruction=instruction,
            input=input_text,
            response=chosen,
            rejected=rejected,
            system=text_of(row.fields, "system", required=False),
            history=alpaca_history(row),
        )
    turns = _agree(_prompt_turns(row, is_optional=bool(chosen_turns)), chosen_turns)
    dialogue = take_apart(with_system(turns, text_of(row.fields, "system", required=False)), response=chosen)
    return example(
        row.path,
        row.line,
        kind="preference",
        system=dialogue.system,
        history=dialogue.history,
        input=dialogue.input,
        response=chosen,
        rejected=rejected,
    )


def _answer(row: SourceRow, name: str) -> tuple[list[Message], str]:
    """Turns before the answer (none, if the field holds only the answer), and the answer."""
    value = row.fields.get(name)
    if isinstance(value, str) or value is None:
        return [], text_of(row.fields, name)
    if isinstance(value, Mapping):
        turns = [_turn(cast("Mapping[str, object]", value), 1)]
    elif isinstance(value, list) and value:
        turns = [_turn(turn, index) for index, turn in enumerate(cast("list[object]", value), start=1)]
    else:
        raise RowError("not_text", f"`{name}` holds {json_type(value)}, expected a text or turns", f'write "{name}": "the answer"')
    if turns[-1].role != "assistant":
        raise RowError("no_answer", f"`{name}` does not end with an assistant turn", "add the assistant's answer, or remove the row")
    return turns[:-1], turns[-1].content


def _turn(turn: object, index: int) -> Message:
    is_from = isinstance(turn, Mapping) and "from" in turn
    return read_turn(turn, index, role_key="from" if is_from else "role", content_key="value" if is_from else "content")


def _prompt_turns(row: SourceRow, *, is_optional: bool) -> list[Message]:
    for name in ("conversations", "messages", "prompt"):
        value = row.fields.get(name)
        if isinstance(value, list):
            keys = ("from", "value") if is_sharegpt(row, name) else ("role", "content")
            return read_turns(row.fields, name, role_key=keys[0], content_key=keys[1])
        if name == "prompt" and value is not None:
            return [Message(role="user", content=text_of(row.fields, name))]
    if "question" in row.fields:
        return [Message(role="user", content=text_of(row.fields, "question"))]
    if is_optional:
        return []
    raise RowError(
        "missing_field", "there is no prompt: no `prompt`, `messages`, `conversations` or `instruction`", 'add "prompt" to the row'
    )


def _agree(prompt: Sequence[Message], shared: Sequence[Message]) -> list[Message]:
    """The prompt, where it stands in a field of its own, in front of both answers, or in both places."""
    if not prompt or not shared:
        return list(prompt or shared)
    if prompt[-1] != shared[-1]:
        raise RowError(
            "two_prompts", "the prompt and the turns in front of the answers differ", "give the prompt once, or the same in both places"
        )
    return list(shared if len(shared) >= len(prompt) else prompt)
