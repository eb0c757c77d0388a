"""Which format rows are in, with one sentence of evidence; never a guess between two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from luthier.core.errors import InputError
from luthier.core.types import SourceRow
from luthier.data.formats.completion import pairs_in
from luthier.data.formats.kto import tag_in
from luthier.data.mapping import field_names, show_names

SAMPLE_ROWS = 100

_CHATS = ("messages", "conversations")
# Fields that say something about a text; any other field beside `text` could be its label, and then it is no raw text.
_ABOUT_A_TEXT = {"text", "id", "meta", "metadata", "source", "url", "title", "lang", "language", "date", "timestamp", "split"}

# Usual names, most telling first, to propose the flags when no format fits.
_INPUT_NAMES = (
    "text",
    "input",
    "prompt",
    "question",
    "query",
    "sentence",
    "utterance",
    "review",
    "instruction",
    "message",
    "mr",
    "document",
    "content",
)
_OUTPUT_NAMES = (
    *(
        "output",
        "completion",
        "response",
        "answer",
        "label",
        "category",
        "intent",
        "class",
        "target",
        "ref",
        "summary",
        "translation",
        "sentiment",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """The format, and why."""

    format: str
    evidence: str


@dataclass(frozen=True, slots=True)
class _Sign:
    """How rows of a format show themselves. `fields` names them for people; `over` lists formats that this one includes."""

    matches: Callable[[SourceRow], bool]
    fields: Callable[[SourceRow], tuple[str, ...]]
    over: tuple[str, ...] = ()


def detect_format(rows: Sequence[SourceRow]) -> Detection:
    """The one format that most of `rows` show the fields of; looks at the first 100.

    Raises InputError, with the fields found and the flags to add, where none or more than one fits.
    """
    sample = rows[:SAMPLE_ROWS]
    if not sample:
        raise InputError("there is no readable row to tell the format from", fix="--format NAME")
    matching = {name: [row for row in sample if sign.matches(row)] for name, sign in _SIGNS.items()}
    fits = [name for name, found in matching.items() if 2 * len(found) > len(sample)]
    covered = {other for name in fits for other in _SIGNS[name].over}
    fits = [name for name in fits if name not in covered]
    if len(fits) != 1:
        raise _unclear(sample, fits)
    name = fits[0]
    found = matching[name]
    used = _SIGNS[name].fields(found[0])
    unused = [other for other in field_names(sample) if other not in used]
    which = f"{len(found)} of {len(sample)} first rows have" if len(sample) > 1 else "the one row has"
    note = f"; not used: {show_names(unused)}" if unused else ""
    return Detection(format=name, evidence=f"{which} {', '.join(f'`{field}`' for field in used)}{note}")


def _flags(sample: Sequence[SourceRow]) -> str:
    """The flags to add for these rows, with their own column names where they are usual ones."""
    names = field_names(sample)
    inputs = [name for name in _INPUT_NAMES if name in names]
    outputs = [name for name in _OUTPUT_NAMES if name in names]
    if inputs and outputs:
        return f'--input {inputs[0]} --output {outputs[0]} --instruction "What to do with the {inputs[0]}"'
    return '--input COLUMN --output COLUMN --instruction "What to do", with two of the fields found'


def _unclear(sample: Sequence[SourceRow], fits: Sequence[str]) -> InputError:
    names = show_names(field_names(sample))
    where = f"{sample[0].path}:{sample[0].line}"
    if fits:
        return InputError(
            f"the rows fit {' and '.join(fits)}; fields found: {names}", where=where, fix=" or ".join(f"--format {name}" for name in fits)
        )
    fix = _flags(sample)
    hint = "; no field is known to hold the answers, and rows without answers cannot be trained on or scored" if "COLUMN" in fix else ""
    if hint and PurePath(sample[0].path).suffix.lower() in {".csv", ".tsv"}:
        hint += "; if the first line is data and not names, put a line of names above it"
    return InputError(f"the rows are in no known format; fields found: {names}{hint}", where=where, fix=fix)


def _turn_keys(row: SourceRow, name: str) -> set[str]:
    value = row.fields.get(name)
    first: object = value[0] if isinstance(value, list) and value else None
    return {str(key) for key in first} if isinstance(first, Mapping) else set()


def _chat_fields(key: str) -> Callable[[SourceRow], tuple[str, ...]]:
    """The list fields whose turns have `key`; a list that does not show its turns counts for the usual key of its name."""
    usual = {"role": "messages", "from": "conversations"}[key]

    def fields(row: SourceRow) -> tuple[str, ...]:
        keys = {name: _turn_keys(row, name) for name in _CHATS if isinstance(row.fields.get(name), list)}
        return tuple(name for name, found in keys.items() if key in found or (name == usual and not {"role", "from"} & found))

    return fields


def _has(row: SourceRow, *names: str) -> bool:
    return all(name in row.fields for name in names)


def _is_preference(row: SourceRow) -> bool:
    has_prompt = any(_has(row, name) for name in ("prompt", "question", "instruction", *_CHATS))
    is_whole_chat = all(isinstance(row.fields.get(name), list) for name in ("chosen", "rejected"))
    return _has(row, "chosen", "rejected") and (has_prompt or is_whole_chat)


def _is_kto(row: SourceRow) -> bool:
    return tag_in(row) is not None and bool(_chat_or_pair(row))


def _chat_or_pair(row: SourceRow) -> tuple[str, ...]:
    chats = tuple(name for name in _CHATS if {"role", "from"} & _turn_keys(row, name))
    return chats or next(iter(pairs_in(row.fields)), ())


def _present(*names: str) -> Callable[[SourceRow], tuple[str, ...]]:
    return lambda row: tuple(name for name in names if name in row.fields)


_SIGNS: Mapping[str, _Sign] = {
    "preference": _Sign(
        _is_preference,
        _present("system", "prompt", "question", "instruction", "input", "history", *_CHATS, "chosen", "rejected"),
        over=("messages", "sharegpt", "completion", "alpaca", "kto"),
    ),
    "kto": _Sign(
        _is_kto,
        lambda row: (*_chat_or_pair(row), *_present("label", "kto_tag", "system")(row)),
        over=("messages", "sharegpt", "completion", "alpaca"),
    ),
    "messages": _Sign(lambda row: bool(_chat_fields("role")(row)), _chat_fields("role")),
    "sharegpt": _Sign(lambda row: bool(_chat_fields("from")(row)), lambda row: (*_chat_fields("from")(row), *_present("system")(row))),
    "alpaca": _Sign(
        lambda row: _has(row, "instruction", "output"),
        _present("instruction", "input", "output", "system", "history"),
        over=("completion",),
    ),
    "completion": _Sign(lambda row: bool(pairs_in(row.fields)), lambda row: (*pairs_in(row.fields)[0], *_present("system")(row))),
    "text": _Sign(lambda row: isinstance(row.fields.get("text"), str) and set(row.fields) <= _ABOUT_A_TEXT, _present("text")),
}
