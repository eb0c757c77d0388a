"""CSV and TSV: the delimiter is found, quoted fields may run over lines, and one stray quote costs one row.

Not the `csv` module: it stops at fields of 131,072 characters (a setting of the whole process), and after a quote that
is never closed it takes every row up to the next quote for one field.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from shlex import quote

from luthier.core.errors import InputError
from luthier.core.types import Reject, SourceRow
from luthier.data.limits import Limits
from luthier.data.lines import RawLine, Tally, iter_lines
from luthier.data.reject import RowError, clip, not_utf8, nul_character, reject_of, too_long

DELIMITERS = (",", "\t", ";", "|")
_QUOTED_REST = re.compile(r'(?:[^"]+|"")*+')
_SNIFF_RECORDS = 20
_SNIFF_BYTES = 64 * 1024
_MAX_READ_AGAIN = 300_000  # lines; keeps the time linear where quotes make no sense at all
_QUOTE_CODES = {"text_after_quote", "quote_not_closed"}


@dataclass(frozen=True, slots=True)
class _Record:
    lines: list[RawLine]
    fields: list[str]
    error: RowError | None

    @property
    def line(self) -> int:
        return self.lines[0].number


@dataclass(slots=True)
class _Parse:
    """A record being read: the fields that are complete, and the pieces of a quoted one that is not."""

    delimiter: str
    fields: list[str] = field(default_factory=list[str])
    open_parts: list[str] | None = None

    def feed(self, text: str) -> bool:
        """Take in one physical line. False: there is text between a closing quote and the next delimiter."""
        if self.open_parts is None and '"' not in text:
            self.fields = text.split(self.delimiter)
            return True
        at = 0
        while True:
            if self.open_parts is not None or text[at : at + 1] == '"':
                at = self._take_quoted(text, at)
                if self.open_parts is not None:
                    return True
            else:
                end = text.find(self.delimiter, at)
                end = end if end >= 0 else len(text)
                self.fields.append(text[at:end])
                at = end
            if at >= len(text):
                return True
            if text[at] != self.delimiter:
                return False
            at += 1

    def _take_quoted(self, text: str, at: int) -> int:
        """Read a quoted field, or more of one, up to its closing quote or the end of the line; returns where it stopped."""
        if self.open_parts is None:
            self.open_parts = []
            at += 1
        rest = _QUOTED_REST.match(text, at)
        end = rest.end() if rest else at
        self.open_parts.append(text[at:end])
        if end == len(text):
            self.open_parts.append("\n")  # a line break inside a field, whichever kind the file uses
            return end
        self.fields.append("".join(self.open_parts).replace('""', '"'))
        self.open_parts = None
        return end + 1


def iter_csv(lines: Iterable[RawLine], *, path: str, delimiter: str, limits: Limits, tally: Tally) -> Iterator[SourceRow | Reject]:
    """Rows under the names of the first record; `line` is the first physical line of a record.

    Raises InputError for a header that cannot be used, or quoting that makes no sense anywhere.
    """
    records = _iter_records(lines, delimiter, path, limits, tally)
    header_record = next(records, None)
    if header_record is None:
        return
    names = _header(header_record, path, limits)
    for record in records:
        error = record.error
        if error is None and len(record.fields) != len(names):
            error = RowError(
                "ragged_row",
                f"the row has {len(record.fields)} fields, the header has {len(names)}",
                f"put a field that holds the delimiter ({_spell(delimiter)}) in double quotes",
            )
        if error is not None:
            yield reject_of(error, path=path, line=record.line, excerpt=record.lines[0].data)
        else:
            yield SourceRow(path=path, line=record.line, fields=dict(zip(names, record.fields, strict=True)))


def find_delimiter(head: bytes, *, is_whole: bool, prefers_tab: bool, limits: Limits) -> str:
    """The delimiter under which most of the first records have as many fields as the header; more fields win a tie.

    `head` is the beginning of the file without its byte order mark; a last line that may be cut is not looked at.
    """
    best, best_score = "\t" if prefers_tab else ",", (0.0, 1)
    lines = list(_lines_of(head[:_SNIFF_BYTES], limits))
    lines = lines if (is_whole and len(head) <= _SNIFF_BYTES) or len(lines) < 2 else lines[:-1]
    for delimiter in sorted(DELIMITERS, key=lambda d: d != best):
        records = list(islice(_iter_records(lines, delimiter, "", limits, Tally(), is_sample=True), _SNIFF_RECORDS))
        if not records or len(records[0].fields) < 2:
            continue
        width = len(records[0].fields)
        alike = sum(len(record.fields) == width for record in records[1:])
        score = (alike / max(len(records) - 1, 1), width)
        if score > best_score:
            best, best_score = delimiter, score
    return best


def _lines_of(head: bytes, limits: Limits) -> Iterator[RawLine]:
    chunks = iter((head, b""))
    return iter_lines(lambda _: next(chunks), max_bytes=limits.max_record_bytes)


def _iter_records(
    lines: Iterable[RawLine], delimiter: str, path: str, limits: Limits, tally: Tally, *, is_sample: bool = False
) -> Iterator[_Record]:
    waiting: deque[RawLine] = deque()  # lines of a record that failed, to be read again as records of their own
    source = iter(lines)
    num_read_again = 0

    def next_line() -> RawLine | None:
        return waiting.popleft() if waiting else next(source, None)

    while (line := next_line()) is not None:
        if not line.data.strip(b" ") and not line.is_cut:
            tally.num_blank += 1
            continue
        record = _read_record(line, next_line, delimiter, path, limits)
        yield record
        if not is_sample and record.error is not None and record.error.code in _QUOTE_CODES:
            # The opening quote was probably a stray one: only its line is lost.
            waiting.extendleft(reversed(record.lines[1:]))
            num_read_again += len(record.lines) - 1
            if num_read_again > _MAX_READ_AGAIN + 10 * line.number:
                raise InputError(
                    "quotes open and close without sense in many rows",
                    where=f"{path}:{line.number}",
                    fix='write the file again with a CSV library, which doubles every " inside a field; or write .jsonl',
                )


def _read_record(line: RawLine, next_line: Callable[[], RawLine | None], delimiter: str, path: str, limits: Limits) -> _Record:
    parse, taken, num_bytes = _Parse(delimiter), [line], 0
    is_utf8 = True
    while True:
        num_bytes += line.num_bytes + 1
        if line.is_cut or num_bytes > limits.max_record_bytes + 1:
            error = too_long(num_bytes, limits.max_record_bytes) if len(taken) == 1 else _quote_not_closed(num_bytes)
            return _Record(taken, parse.fields, error)
        try:
            text = line.data.decode("utf-8")
        except UnicodeDecodeError:
            # Read on with replacements, to find where the record ends.
            text, is_utf8 = line.data.decode("utf-8", errors="replace"), False
        if not parse.feed(text):
            return _Record(taken, parse.fields, _text_after_quote(delimiter))
        if parse.open_parts is None:
            break
        following = next_line()
        if following is None:
            return _Record(taken, parse.fields, _quote_not_closed(num_bytes))
        line = following
        taken.append(line)
    error = None
    if not is_utf8:
        error = not_utf8(quote(path))
    elif any(b"\x00" in one.data for one in taken):
        error = nul_character()
    return _Record(taken, parse.fields, error)


def _header(record: _Record, path: str, limits: Limits) -> list[str]:
    where = f"{path}:{record.line}"
    if record.error is not None:
        raise InputError(f"the header cannot be read: {record.error.message}", where=where, fix=record.error.fix)
    if len(record.fields) > limits.max_keys:
        raise InputError(
            f"the table has {len(record.fields):,} columns; at most {limits.max_keys:,} are read",
            where=where,
            fix=f"keep the columns that are used, for example: cut -d, -f1,2 {quote(path)} > small.csv",
        )
    # A table saved with row numbers has one column without a name.
    names = [name.strip() or f"column_{index}" for index, name in enumerate(record.fields, start=1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f'two columns are named "{clip(twice[0], 40)}"',
            where=where,
            fix="give each column a name of its own in the first line; if the first line is data, put a line of names above it",
        )
    return names


def _text_after_quote(delimiter: str) -> RowError:
    return RowError(
        "text_after_quote",
        f"there is text between a closing quote and the next delimiter ({_spell(delimiter)})",
        'inside a quoted field, write each " twice',
    )


def _quote_not_closed(num_bytes: int) -> RowError:
    return RowError(
        "quote_not_closed",
        f"a quote that opens a field here is not closed within {num_bytes:,} bytes",
        'close the field with ", or write the quote inside it twice',
    )


def _spell(delimiter: str) -> str:
    return "tab" if delimiter == "\t" else delimiter
