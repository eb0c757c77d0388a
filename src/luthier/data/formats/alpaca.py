"""Alpaca: `instruction`, `input` (may be missing), `output`; `system` and `history` as LLaMA-Factory writes them."""

from __future__ import annotations

from typing import cast

from luthier.core.types import Example, Message, SourceRow
from luthier.data.formats.fields import example, refuse_empty_prompt, refuse_empty_response, text_of
from luthier.data.json_row import json_type
from luthier.data.reject import RowError


def from_alpaca(row: SourceRow) -> Example:
    """Field by field. Raises RowError."""
    instruction = text_of(row.fields, "instruction")
    input_text = text_of(row.fields, "input", required=False)
    response = text_of(row.fields, "output")
    refuse_empty_prompt(instruction, input_text)
    refuse_empty_response(response, "output")
    return example(
        row.path,
        row.line,
        kind="instruct",
        instruction=instruction,
        input=input_text,
        response=response,
        system=text_of(row.fields, "system", required=False),
        history=alpaca_history(row),
    )


def alpaca_history(row: SourceRow) -> tuple[Message, ...]:
    """Earlier turns from `history`: a list of [user, assistant] pairs. Raises RowError."""
    value = row.fields.get("history")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _not_pairs(f"the field `history` holds {json_type(value)}")
    turns: list[Message] = []
    for index, item in enumerate(cast("list[object]", value), start=1):
        pair = cast("list[object]", item) if isinstance(item, list) else []
        if len(pair) != 2:
            raise _not_pairs(f"item {index} of `history` is not a pair")
        user, assistant = pair
        if not isinstance(user, str) or not isinstance(assistant, str):
            raise _not_pairs(f"item {index} of `history` holds something that is not a text")
        if not user.strip() or not assistant.strip():
            raise RowError("empty_turn", f"item {index} of `history` has an empty turn", "write what was said, or remove the row")
        turns += [Message(role="user", content=user), Message(role="assistant", content=assistant)]
    return tuple(turns)


def _not_pairs(found: str) -> RowError:
    return RowError(
        "bad_history", f"{found}, expected [[user, assistant], ...]", 'write "history": [["what the user said", "what was answered"]]'
    )
