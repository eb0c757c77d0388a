"""Text out of the fields of a row, or a reason why not."""

from __future__ import annotations

import json
from collections.abc import Mapping

from luthier.core.types import Example, ExampleKind, Message
from luthier.data.json_row import json_type
from luthier.data.reject import RowError, clip

Fields = Mapping[str, object]


def text_of(fields: Fields, name: str, *, required: bool = True) -> str:
    """The text in field `name`; "" where it may be missing, null or empty.

    Raises RowError "missing_field" or "not_text".
    """
    value = fields.get(name)
    if value is None:
        if not required:
            return ""
        found = "is null" if name in fields else "is missing"
        raise RowError("missing_field", f"the field `{clip(name, 40)}` {found}", f'add "{clip(name, 40)}" to the row, or remove the row')
    if not isinstance(value, str):
        raise RowError(
            "not_text",
            f"the field `{clip(name, 40)}` holds {json_type(value)}, expected a text",
            "write the value as a text in quotes; or name the columns (--input, --output): a mapped value is written as JSON text",
        )
    return value


def mapped_text(fields: Fields, name: str, *, required: bool = True) -> str:
    """As `text_of`, for a column the user named: a number, true/false, list or object is written as JSON text."""
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return text_of(fields, name, required=required)
    return json.dumps(value, ensure_ascii=False)


def refuse_empty_response(response: str, name: str) -> None:
    """Raise RowError where there is nothing to learn or to be scored."""
    if not response:
        raise RowError("empty_response", f"the answer (`{clip(name, 40)}`) is empty", "write the answer, or remove the row")
    if not response.strip():
        raise RowError("blank_response", f"the answer (`{clip(name, 40)}`) is only white space", "write the answer, or remove the row")


def refuse_empty_prompt(*parts: str) -> None:
    """Raise RowError where there is nothing to answer."""
    if not any(part.strip() for part in parts):
        raise RowError("empty_prompt", "there is no instruction and no input", "write the instruction, or remove the row")


def example(
    row_path: str,
    row_line: int,
    *,
    kind: ExampleKind,
    response: str,
    input: str = "",
    instruction: str = "",
    system: str = "",
    history: tuple[Message, ...] = (),
    rejected: str | None = None,
    desirable: bool | None = None,
) -> Example:
    """An Example without an id, group or split: `load_examples` fills those in."""
    return Example(
        id="",
        path=row_path,
        line=row_line,
        kind=kind,
        input=input,
        response=response,
        instruction=instruction,
        system=system,
        history=history,
        rejected=rejected,
        desirable=desirable,
    )
