"""OpenAI chat: `messages` (or `conversations`) of {role, content}."""

from __future__ import annotations

from luthier.core.types import Example, SourceRow
from luthier.data.formats.chat import read_turns, take_apart, tool_call
from luthier.data.formats.fields import example


def from_messages(row: SourceRow) -> Example:
    """The last assistant turn is the response, the last user turn the input. Raises RowError."""
    if row.fields.get("tools"):
        raise tool_call("the row has `tools`")
    name = "messages" if row.fields.get("messages") is not None else "conversations"
    name = name if name in row.fields else "messages"
    dialogue = take_apart(read_turns(row.fields, name, role_key="role", content_key="content"))
    return example(
        row.path,
        row.line,
        kind="instruct",
        system=dialogue.system,
        history=dialogue.history,
        input=dialogue.input,
        response=dialogue.response,
    )
