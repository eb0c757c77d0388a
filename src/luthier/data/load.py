"""Files to examples: every row read comes out as an example or as a reject with its reason."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from luthier.core.errors import ConfigError, InputError
from luthier.core.types import Example, ReadResult, Reject, SourceRow, SplitName
from luthier.data.detect import SAMPLE_ROWS, detect_format
from luthier.data.formats.alpaca import from_alpaca
from luthier.data.formats.completion import from_completion
from luthier.data.formats.kto import from_kto
from luthier.data.formats.messages import from_messages
from luthier.data.formats.preference import from_preference
from luthier.data.formats.sharegpt import from_sharegpt
from luthier.data.formats.text import from_text
from luthier.data.limits import DEFAULT_LIMITS, Limits
from luthier.data.lines import Tally
from luthier.data.mapping import ColumnMap, check_columns, field_names, from_columns
from luthier.data.read import iter_records
from luthier.data.reject import RowError, clip, reject_of

FORMATS: Mapping[str, Callable[[SourceRow], Example]] = {
    "alpaca": from_alpaca,
    "messages": from_messages,
    "sharegpt": from_sharegpt,
    "completion": from_completion,
    "preference": from_preference,
    "kto": from_kto,
    "text": from_text,
}
FORMAT_NAMES = ("auto", *FORMATS, "columns")

_SPLITS: Mapping[str, SplitName] = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "test": "test"}
_ID_CHARS = 16
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class _FileResult:
    examples: list[Example]
    rejects: list[Reject]
    num_read: int
    num_blank: int
    format: str
    evidence: str


def load_examples(
    paths: Sequence[Path],
    *,
    format: str = "auto",
    columns: ColumnMap | None = None,
    limits: Limits = DEFAULT_LIMITS,
    given_split: SplitName | None = None,
) -> ReadResult:
    """Read, convert and number the rows of all files; `len(examples) + len(rejects) == num_read`, always.

    `format` is "auto" (told from the fields of each file) or one of FORMAT_NAMES; `columns` that name an output make it
    "columns". `given_split` is the official split these files are. Raises InputError and ConfigError for what concerns a
    whole file: unreadable, no format or more than one fits, unknown columns, no row that can be used.
    """
    columns = columns or ColumnMap()
    _check_options(paths, format, columns)
    results = [_load_file(Path(path), format, columns, limits, given_split) for path in paths]
    kinds = {example.kind for result in results for example in result.examples}
    if len(kinds) > 1:
        raise InputError(
            f"the files hold rows of different kinds: {', '.join(f'{r.format} in {p}' for r, p in zip(results, paths, strict=True))}",
            fix="use files of one kind in a run (answers, preference pairs, tagged answers or raw text)",
        )
    examples = number_examples(chain.from_iterable(result.examples for result in results))
    rejects = tuple(chain.from_iterable(result.rejects for result in results))
    num_read = sum(result.num_read for result in results)
    assert len(examples) + len(rejects) == num_read
    if not examples:
        first = rejects[0]
        raise InputError(
            f"none of the {num_read:,} rows can be used; the first: {first.reason}", where=f"{first.path}:{first.line}", fix=first.fix
        )
    evidence = results[0].evidence if len(results) == 1 else "; ".join(f"{p}: {r.evidence}" for r, p in zip(results, paths, strict=True))
    return ReadResult(
        examples=examples,
        rejects=rejects,
        num_read=num_read,
        format=", ".join(dict.fromkeys(result.format for result in results)),
        evidence=evidence,
        num_blank=sum(result.num_blank for result in results),
    )


def number_examples(examples: Iterable[Example]) -> tuple[Example, ...]:
    """Give each example its content hash as id; repeats of the same content get "-2", "-3", ... in order.

    Call it again over the examples of several `load_examples` results, so that ids are unique across them.
    """
    seen: Counter[str] = Counter()
    numbered: list[Example] = []
    for example in examples:
        content_id = content_hash(example)
        seen[content_id] += 1
        repeat = seen[content_id]
        numbered.append(replace(example, id=content_id if repeat == 1 else f"{content_id}-{repeat}"))
    return tuple(numbered)


def content_hash(example: Example) -> str:
    """16 hex digits of sha256 over what a model sees and learns; file, position, group and split do not count."""
    content = [
        example.kind,
        example.system,
        [[turn.role, turn.content] for turn in example.history],
        example.instruction,
        example.input,
        example.response,
        example.rejected,
        example.desirable,
    ]
    return hashlib.sha256(_ENCODE(content).encode("utf-8")).hexdigest()[:_ID_CHARS]


def _check_options(paths: Sequence[Path], format_name: str, columns: ColumnMap) -> None:
    if not paths:
        raise ConfigError("no file is named", fix="name one or more files with rows")
    if format_name not in FORMAT_NAMES:
        raise ConfigError(
            f'unknown format "{clip(format_name, 40)}"', where="--format", fix=f"--format with one of: {', '.join(FORMAT_NAMES)}"
        )
    if format_name == "columns" and not columns.makes_examples:
        raise ConfigError("the format columns needs to know the columns", where="--format", fix="--input COLUMN --output COLUMN")
    if format_name not in {"auto", "columns"} and columns.makes_examples:
        raise ConfigError(
            f"--format {format_name} reads its own fields, and columns are named as well",
            where="--format",
            fix="leave out --format, or the columns",
        )
    seen: dict[Path, Path] = {}
    for path in paths:
        resolved = Path(path).resolve()
        if resolved in seen:
            raise ConfigError(f"the same file is named twice, as {seen[resolved]} and {path}", where=str(path), fix="name it once")
        seen[resolved] = Path(path)


def _load_file(path: Path, format_name: str, columns: ColumnMap, limits: Limits, given_split: SplitName | None) -> _FileResult:
    tally = Tally()
    records = iter_records(path, limits=limits, tally=tally)
    rows: list[SourceRow] = []
    head: list[SourceRow | Reject] = []
    for record in records:
        head.append(record)
        if isinstance(record, SourceRow):
            rows.append(record)
            if len(rows) == SAMPLE_ROWS:
                break
    if not rows:
        first = next(record for record in head if isinstance(record, Reject))
        raise InputError(
            f"none of the {len(head):,} rows can be read; the first: {first.reason}", where=f"{first.path}:{first.line}", fix=first.fix
        )
    check_columns(columns, rows, where=str(path))
    if columns.makes_examples:
        instruction_is_column = columns.instruction in field_names(rows)
        name, evidence = "columns", "columns named by the user"

        convert = partial(from_columns, columns=columns, instruction_is_column=instruction_is_column)
    elif format_name == "auto":
        detection = detect_format(rows)
        name, evidence, convert = detection.format, detection.evidence, FORMATS[detection.format]
    else:
        name, evidence, convert = format_name, "named by the user", FORMATS[format_name]
    examples: list[Example] = []
    rejects: list[Reject] = []
    for converted in _convert_all(chain(head, records), convert, columns, given_split):
        if isinstance(converted, Example):
            examples.append(converted)
        else:
            rejects.append(converted)
    return _FileResult(examples, rejects, tally.num_rows, tally.num_blank, name, evidence)


def _convert_all(
    records: Iterable[SourceRow | Reject], convert: Callable[[SourceRow], Example], columns: ColumnMap, given_split: SplitName | None
) -> Iterator[Example | Reject]:
    for record in records:
        if isinstance(record, Reject):
            yield record
            continue
        try:
            example = convert(record)
            group, split = _group(record, columns), _split(record, columns, given_split)
            yield example if group is None and split is None else replace(example, group=group, given_split=split)
        except RowError as error:
            yield reject_of(error, path=record.path, line=record.line, excerpt=_excerpt(record))


def _group(row: SourceRow, columns: ColumnMap) -> str | None:
    value = row.fields.get(columns.group) if columns.group is not None else None
    if value is None or value == "":
        return None
    if isinstance(value, str | int):
        return str(value)
    raise RowError("bad_group", f"the group column `{columns.group}` holds neither a text nor a whole number", "write the group as a text")


def _split(row: SourceRow, columns: ColumnMap, given_split: SplitName | None) -> SplitName | None:
    name = columns.split or "split"
    value = row.fields.get(name)
    if value is None or value == "":
        return given_split
    split = _SPLITS.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None:
        raise RowError(
            "unknown_split",
            f'the field `{clip(name, 40)}` is "{clip(str(value), 40)}", expected one of {", ".join(_SPLITS)}',
            "correct the value, or rename the field if it means something else",
        )
    if given_split is not None and split != given_split:
        raise RowError(
            "split_conflict",
            f"the row says split {split}, the file was given as {given_split}",
            "remove the field, or give the file its own split",
        )
    return split


def _excerpt(row: SourceRow) -> str:
    return json.dumps(
        {name: clip(value, 80) if isinstance(value, str) else clip(str(value), 80) for name, value in list(row.fields.items())[:6]},
        ensure_ascii=False,
    )
