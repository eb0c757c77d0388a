"""KTO: one answer and whether it is wanted (`label` or `kto_tag`, true or false)."""

from __future__ import annotations

from dataclasses import replace

from luthier.core.types import Example, SourceRow
from luthier.data.formats.completion import from_completion
from luthier.data.formats.messages import from_messages
from luthier.data.formats.sharegpt import from_sharegpt
from luthier.data.json_row import json_type
from luthier.data.reject import RowError, clip

TAGS = ("label", "kto_tag")
_SPELLED = {"true": True, "false": False}  # a table has no other way to write them


def tag_in(row: SourceRow) -> bool | None:
    """Whether the answer is wanted; None where the row does not say so with true or false."""
    for name in TAGS:
        value = row.fields.get(name)
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.strip().lower() in _SPELLED:
            return _SPELLED[value.strip().lower()]
    return None


def is_sharegpt(row: SourceRow, name: str) -> bool:
    """Whether the list field `name` begins with a {from, value} turn."""
    value = row.fields.get(name)
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "from" in value[0]


def from_kto(row: SourceRow) -> Example:
    """Chat or prompt/completion, with the tag. Raises RowError."""
    desirable = tag_in(row)
    if desirable is None:
        name = next((name for name in TAGS if name in row.fields), TAGS[0])
        value = row.fields.get(name)
        found = f'"{clip(value, 40)}"' if isinstance(value, str) else json_type(value)
        raise RowError("not_a_tag", f"`{name}` is {found}, expected true or false", f'write "{name}": true or "{name}": false')
    names = [name for name in ("messages", "conversations") if name in row.fields]
    if not names:
        found = from_completion(row)
    elif is_sharegpt(row, names[0]):
        found = from_sharegpt(row)
    else:
        found = from_messages(row)
    return replace(found, kind="kto", desirable=desirable)
