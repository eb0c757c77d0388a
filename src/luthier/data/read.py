"""Rows of one file, whatever its kind: each comes out as a `SourceRow` or as a counted `Reject`, never not at all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from shlex import quote

from luthier.core.errors import InputError
from luthier.core.types import Reject, SourceRow
from luthier.data.csv_file import find_delimiter, iter_csv
from luthier.data.json_file import check_json_size, iter_json, iter_jsonl, refuse_pretty_printed
from luthier.data.limits import DEFAULT_LIMITS, Limits
from luthier.data.lines import RawLine, Tally, iter_lines
from luthier.data.parquet_file import iter_parquet
from luthier.data.reject import RowError, not_utf8, nul_character, reject_of, too_long
from luthier.data.source import HEAD_BYTES, check_encoding, check_path, check_suffix, read_head

_BEGINS_LIST = re.compile(rb"\s*\[\s*(?:[{\]]|\Z)")


def iter_records(path: Path, *, limits: Limits = DEFAULT_LIMITS, tally: Tally | None = None) -> Iterator[SourceRow | Reject]:
    """Rows of a .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .txt or .md file, in order; all but .json are streamed.

    `tally` receives the numbers of rows and of blank lines. Raises InputError for a file that cannot be read as a whole (missing, a
    folder, packed, not UTF-8, no rows, structure that cannot be followed) and MissingExtraError for Parquet without pyarrow.
    """
    path = Path(path)
    tally = tally or Tally()
    try:
        for row in _iter_rows(path, limits, tally):
            tally.num_rows += 1
            yield row
    except OSError as error:
        raise InputError(
            f"reading it failed: {error.strerror or error}", where=str(path), fix="check the disk, or copy the file again"
        ) from None
    if tally.num_rows == 0:
        raise InputError("the file holds no rows", where=str(path), fix="name a file with rows, or write it again")


def _iter_rows(path: Path, limits: Limits, tally: Tally) -> Iterator[SourceRow | Reject]:
    check_path(path)
    head = read_head(path)
    suffix = check_suffix(path)
    if suffix == ".parquet":
        yield from iter_parquet(path, limits=limits)
        return
    num_bom = check_encoding(head, path)
    body = head[num_bom:]
    name = str(path)
    if suffix == ".json" or (suffix in {".jsonl", ".ndjson"} and _BEGINS_LIST.match(body)):
        check_json_size(path.stat().st_size, name, limits)
        data = path.read_bytes()[num_bom:]
        yield from iter_json(
            data,
            path=name,
            limits=limits,
            as_lines=lambda: iter_jsonl(_lines(path, num_bom, limits), path=name, limits=limits, tally=tally),
        )
        return
    lines = _lines(path, num_bom, limits)
    if suffix in {".jsonl", ".ndjson"}:
        refuse_pretty_printed(body, name, limits)
        yield from iter_jsonl(lines, path=name, limits=limits, tally=tally)
    elif suffix in {".csv", ".tsv"}:
        delimiter = find_delimiter(body, is_whole=len(head) < HEAD_BYTES, prefers_tab=suffix == ".tsv", limits=limits)
        yield from iter_csv(lines, path=name, delimiter=delimiter, limits=limits, tally=tally)
    else:
        yield from iter_paragraphs(lines, path=name, limits=limits, tally=tally)


def _lines(path: Path, num_bom: int, limits: Limits) -> Iterator[RawLine]:
    with path.open("rb", buffering=0) as file:
        file.seek(num_bom)
        yield from iter_lines(file.read, max_bytes=limits.max_record_bytes)


def iter_paragraphs(lines: Iterable[RawLine], *, path: str, limits: Limits, tally: Tally) -> Iterator[SourceRow | Reject]:
    """Raw text: one row, with the field `text`, for each block of lines between blank ones."""
    block: list[RawLine] = []
    num_bytes = 0
    for line in lines:
        if line.data.strip() or line.is_cut:
            # Of a block over the limit only the size is kept.
            if num_bytes <= limits.max_record_bytes:
                block.append(line)
            num_bytes += line.num_bytes + 1
            continue
        tally.num_blank += 1
        if block:
            yield _paragraph(block, num_bytes, path, limits)
            block, num_bytes = [], 0
    if block:
        yield _paragraph(block, num_bytes, path, limits)


def _paragraph(block: list[RawLine], num_bytes: int, path: str, limits: Limits) -> SourceRow | Reject:
    data = b"\n".join(line.data for line in block)
    try:
        if num_bytes - 1 > limits.max_record_bytes:
            raise too_long(num_bytes - 1, limits.max_record_bytes)
        if b"\x00" in data:
            raise nul_character()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise not_utf8(quote(path)) from None
        return SourceRow(path=path, line=block[0].number, fields={"text": text})
    except RowError as error:
        return reject_of(error, path=path, line=block[0].number, excerpt=data)
