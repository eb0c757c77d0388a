"""The structure of a conversation: what must hold before its last answer can be trained on or scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from luthier.core.types import Message, Role
from luthier.data.formats.fields import Fields, refuse_empty_response
from luthier.data.json_row import json_type
from luthier.data.reject import RowError, clip

# OpenAI's names and ShareGPT's. "developer" is the newer name of "system".
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_TOOL_ROLES = {"tool", "tools", "function", "function_call", "function_response", "observation", "ipython"}
_TOOL_FIELDS = ("tool_calls", "function_call", "tool_call_id")


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation taken apart: `history` is what is between the system prompt and the last user turn."""

    system: str
    history: tuple[Message, ...]
    input: str
    response: str


def read_turns(fields: Fields, name: str, *, role_key: str, content_key: str) -> list[Message]:
    """The turns in list field `name`, with the project's role names. Raises RowError."""
    value = fields.get(name)
    if value is None:
        found = "is null" if name in fields else "is missing"
        raise RowError("missing_field", f"the field `{name}` {found}", f'add "{name}" to the row, or remove the row')
    if not isinstance(value, list):
        raise RowError(
            "not_a_list", f"the field `{name}` holds {json_type(value)}, expected a list of turns", f'write "{name}": [{{...}}, ...]'
        )
    turns = cast("list[object]", value)
    if not turns:
        raise RowError("no_turns", f"the list `{name}` is empty", "add a user turn and an assistant turn, or remove the row")
    return [read_turn(turn, index, role_key=role_key, content_key=content_key) for index, turn in enumerate(turns, start=1)]


def read_turn(turn: object, index: int, *, role_key: str, content_key: str) -> Message:
    """One turn, from {role, content} or {from, value}. `index` is its 1-based place, for the message."""
    if not isinstance(turn, Mapping):
        raise RowError(
            "not_a_turn",
            f"turn {index} is {json_type(turn)}, expected an object",
            f'write {{"{role_key}": "user", "{content_key}": "..."}}',
        )
    fields = cast("Mapping[str, object]", turn)
    role = fields.get(role_key)
    tool_fields = [name for name in _TOOL_FIELDS if fields.get(name)]
    if tool_fields or (isinstance(role, str) and role.lower() in _TOOL_ROLES):
        raise tool_call(f"turn {index} has {f'`{tool_fields[0]}`' if tool_fields else f'the role {role!r}'}")
    if not isinstance(role, str) or role.lower() not in _ROLES:
        shown = f'"{clip(role, 40)}"' if isinstance(role, str) else "missing" if role is None else json_type(role)
        raise RowError(
            "unknown_role",
            f"the role of turn {index} (`{role_key}`) is {shown}, expected system, user or assistant",
            "rename the role, or remove the row",
        )
    return Message(role=_ROLES[role.lower()], content=_content(fields, content_key, index))


def tool_call(where: str) -> RowError:
    """Tool calls are not read: their training text depends on a tool schema that the row does not hold."""
    return RowError(
        "tool_call", f"{where}: tool calls are not read", "remove the row, or write the call and its result as plain text turns"
    )


def take_apart(turns: Sequence[Message], *, response: str | None = None) -> Dialogue:
    """System prompt, history, last user turn and answer. `response` is the answer where the turns end with the user.

    Raises RowError unless there is at most one system turn, first, and then user and assistant take turns.
    """
    body = list(turns)
    system = body.pop(0).content if body and body[0].role == "system" else ""
    if not body:
        raise RowError("only_system", "there is a system turn and nothing else", "add a user turn and an assistant turn, or remove the row")
    for index, turn in enumerate(body):
        place = index + 1 + len(turns) - len(body)
        _check_order(body, index, place)
        if not turn.content.strip() and not (index == len(body) - 1 and turn.role == "assistant"):
            raise RowError("empty_turn", f"turn {place} ({turn.role}) is empty", "write what was said, or remove the row")
    if response is None:
        if body[-1].role == "user":
            raise RowError(
                "no_answer",
                "the conversation ends with the user; there is no answer to learn",
                "add the assistant's answer, or remove the row",
            )
        response = body.pop().content
        refuse_empty_response(response, "the last assistant turn")
    elif body[-1].role != "user":
        raise RowError(
            "no_question", "the prompt must end with a user turn, it ends with the assistant", "remove the last turn of the prompt"
        )
    return Dialogue(system=system, history=tuple(body[:-1]), input=body[-1].content, response=response)


def _check_order(body: Sequence[Message], index: int, place: int) -> None:
    role = body[index].role
    if role == "system":
        raise RowError("system_not_first", f"turn {place} is a second or late system turn", "put one system turn first")
    if index == 0 and role == "assistant":
        raise RowError("starts_with_assistant", "the first turn is the assistant's", "remove it, or put it into the system turn")
    if index > 0 and role == body[index - 1].role:
        raise RowError(
            "same_role_twice", f"turns {place - 1} and {place} are both the {role}'s", "join them into one turn, or remove the row"
        )


def _content(fields: Mapping[str, object], key: str, index: int) -> str:
    value = fields.get(key)
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_part(part, index) for part in cast("list[object]", value))
    code = "content_null" if value is None else "content_not_text"
    found = ("null" if key in fields else "missing") if value is None else json_type(value)
    raise RowError(
        code, f"the content of turn {index} (`{key}`) is {found}, expected a text", "write the text of the turn, or remove the row"
    )


def _part(part: object, index: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping):
        fields = cast("Mapping[str, object]", part)
        text = fields.get("text")
        if fields.get("type", "text") == "text" and isinstance(text, str):
            return text
        found = f'a part of type "{clip(str(fields.get("type")), 40)}"'
    else:
        found = json_type(part)
    raise RowError(
        "content_not_text", f"the content of turn {index} holds {found}; only text is read", "keep the text parts, or remove the row"
    )
