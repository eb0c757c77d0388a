"""Columns named by the user, for rows in no known format and for a group or split column of any format."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from shlex import quote

from luthier.core.errors import ConfigError
from luthier.core.types import Example, SourceRow
from luthier.data.formats.fields import example, mapped_text, refuse_empty_prompt, refuse_empty_response
from luthier.data.reject import clip

MAX_NAMES = 20
# A one-word instruction as close as this to a column name is taken for a slip of the pen.
_SLIP = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnMap:
    """Which column holds what. `instruction` is a column if there is one of that name, else the instruction of every row."""

    instruction: str | None = None
    input: str | None = None
    output: str | None = None
    system: str | None = None
    group: str | None = None
    split: str | None = None

    @property
    def makes_examples(self) -> bool:
        """Whether rows are built from the columns, instead of only taking a group or split from them."""
        return any(value is not None for value in (self.instruction, self.input, self.output, self.system))


def check_columns(columns: ColumnMap, rows: Sequence[SourceRow], *, where: str) -> ColumnMap:
    """Raise ConfigError for a name that is in none of `rows`, or a map that cannot make examples; else return `columns`."""
    names = field_names(rows)
    named: Mapping[str, str | None] = {
        "input": columns.input,
        "output": columns.output,
        "system": columns.system,
        "group": columns.group,
        "split": columns.split,
    }
    for option, name in named.items():
        if name is not None and name not in names:
            raise _unknown_column(option, name, names, where)
    if not columns.makes_examples:
        return columns
    if columns.output is None:
        raise ConfigError("no column is named for the answer", where=where, fix=f"--output COLUMN, one of: {show_names(names)}")
    if columns.input is None and columns.instruction not in names:
        raise ConfigError(
            "no column is named for what changes from row to row", where=where, fix=f"--input COLUMN, one of: {show_names(names)}"
        )
    instruction = columns.instruction
    if instruction and instruction not in names and len(instruction.split()) == 1:
        nearest = difflib.get_close_matches(instruction, names, n=1, cutoff=_SLIP)
        if nearest:
            raise ConfigError(
                f'the instruction "{clip(instruction, 40)}" is nearly the name of a column, "{clip(nearest[0], 40)}"',
                where=where,
                fix=f"--instruction {quote(nearest[0])} for the column; more than one word for a text of your own",
            )
    return columns


def from_columns(row: SourceRow, columns: ColumnMap, *, instruction_is_column: bool) -> Example:
    """The example the named columns make; numbers, true/false, lists and objects are written as JSON text. Raises RowError."""
    if columns.output is None:
        raise ConfigError("no column is named for the answer", fix="--output COLUMN")
    instruction = columns.instruction or ""
    if instruction_is_column:
        instruction = mapped_text(row.fields, instruction, required=columns.input is None)
    input_text = mapped_text(row.fields, columns.input) if columns.input is not None else ""
    response = mapped_text(row.fields, columns.output)
    refuse_empty_prompt(input_text if columns.input is not None else instruction)
    refuse_empty_response(response, columns.output)
    system = mapped_text(row.fields, columns.system, required=False) if columns.system is not None else ""
    return example(row.path, row.line, kind="instruct", instruction=instruction, input=input_text, response=response, system=system)


def field_names(rows: Sequence[SourceRow]) -> list[str]:
    """The names of all fields, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.fields))


def show_names(names: Sequence[str]) -> str:
    """Up to 20 names, untrusted text, for a message."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(clip(name, 40) for name in names[:MAX_NAMES]) + more


def _unknown_column(option: str, name: str, names: Sequence[str], where: str) -> ConfigError:
    lowered = {other.lower(): other for other in names}
    nearest = [lowered[name.lower()]] if name.lower() in lowered else difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return ConfigError(
        f'there is no column "{clip(name, 40)}"; found: {show_names(names)}',
        where=where,
        fix=f"--{option} {quote(nearest[0])}" if nearest else f"--{option} with one of: {show_names(names)}",
    )
