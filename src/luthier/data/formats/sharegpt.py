"""ShareGPT chat: `conversations` (or `messages`) of {from: human|gpt|system, value}, and a `system` field beside it."""

from __future__ import annotations

from luthier.core.types import Example, Message, SourceRow
from luthier.data.formats.chat import read_turns, take_apart, tool_call
from luthier.data.formats.fields import example, text_of
from luthier.data.reject import RowError


def from_sharegpt(row: SourceRow) -> Example:
    """The last gpt turn is the response, the last human turn the input. Raises RowError."""
    if row.fields.get("tools"):
        raise tool_call("the row has `tools`")
    dialogue = take_apart(sharegpt_turns(row))
    return example(
        row.path,
        row.line,
        kind="instruct",
        system=dialogue.system,
        history=dialogue.history,
        input=dialogue.input,
        response=dialogue.response,
    )


def sharegpt_turns(row: SourceRow) -> list[Message]:
    """The turns, with the text of a `system` field in front. Raises RowError."""
    name = "messages" if row.fields.get("conversations") is None and "messages" in row.fields else "conversations"
    turns = read_turns(row.fields, name, role_key="from", content_key="value")
    return with_system(turns, text_of(row.fields, "system", required=False))


def with_system(turns: list[Message], system: str) -> list[Message]:
    """The turns with `system` in front, if there is any. Raises RowError if there are two that differ."""
    if not system:
        return turns
    if turns and turns[0].role == "system":
        if turns[0].content != system:
            raise RowError("two_systems", "the field `system` and the first turn hold two system prompts", "keep one of them")
        return turns
    return [Message(role="system", content=system), *turns]
