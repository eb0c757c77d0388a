"""JSON Lines, streamed; and .json files: a list of rows, or an object that holds one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from shlex import quote

from luthier.core.errors import InputError
from luthier.core.types import Reject, SourceRow
from luthier.data.json_row import object_decoder
from luthier.data.limits import MIB, Limits
from luthier.data.lines import RawLine, Tally
from luthier.data.reject import EXCERPT_BYTES, RowError, clip, not_utf8, reject_of, too_long

_WHITESPACE = b" \t\r\n"
_TOKEN = re.compile(rb'"(?:[^"\\]+|\\.?)*+(?:"|\Z)|[\[\]{},]', re.DOTALL)
_SPACE = re.compile(rb"[ \t\r\n]*+")
_MEMBER = re.compile(rb'[ \t\r\n]*+("(?:[^"\\]+|\\.?)*+")[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
# Lists of objects that belong to one row; an object that holds such a list is a row, not a file of rows.
_LISTS_IN_A_ROW = {b'"messages"', b'"conversations"', b'"conversation"', b'"chosen"', b'"rejected"', b'"tools"'}

_SIMPLE_KEY = re.compile(r'"[A-Za-z0-9_-]+"')  # others are not put into a command that people copy

Decode = Callable[[str], dict[str, object]]


def iter_jsonl(lines: Iterable[RawLine], *, path: str, limits: Limits, tally: Tally) -> Iterator[SourceRow | Reject]:
    """One row a line. Blank lines are counted in `tally`; a line that cannot be used becomes a `Reject`."""
    decode = object_decoder(limits)
    for line in lines:
        data = line.data.strip(_WHITESPACE)
        if not data and not line.is_cut:
            tally.num_blank += 1
            continue
        try:
            if line.is_cut:
                raise too_long(line.num_bytes, limits.max_record_bytes)
            yield SourceRow(path=path, line=line.number, fields=_decode_bytes(data, decode, path))
        except RowError as error:
            if error.code == "not_json" and not line.ended:
                error = RowError(
                    "truncated", f"the file ends in the middle of this record ({error.message})", "copy or download the file again"
                )
            yield reject_of(error, path=path, line=line.number, excerpt=data)


def iter_json(
    data: bytes, *, path: str, limits: Limits, as_lines: Callable[[], Iterator[SourceRow | Reject]]
) -> Iterator[SourceRow | Reject]:
    """Rows of a .json file without its byte order mark: the items of the list at the top, or of the one list in the object there.

    `as_lines` reads the same file as JSON Lines, for a file that turns out to hold one object a line.
    Raises InputError where the list cannot be found or followed.
    """
    start = _skip_space(data, 0)
    if data[start : start + 1] == b"[":
        return _iter_array(data, start, len(data), path=path, limits=limits)
    if data[start : start + 1] != b"{":
        found = clip(data[start : start + 40])
        raise InputError(f"expected a list [...] of rows, found: {found}", where=f"{path}:{_line_at(data, start)}", fix=_rows_fix(path))
    end = _close_of(data, start)
    if end is None or _skip_space(data, end) < len(data):
        if _first_line_is_an_object(data, start, limits):
            return as_lines()
        if end is None:
            raise InputError(
                "the object that begins here is never closed: a quote or bracket is missing, or the file was cut short",
                where=f"{path}:{_line_at(data, start)}",
                fix=f"copy or download the file again, or look for the place with: python -m json.tool {quote(path)}",
            )
        raise InputError(
            "there is more after the first JSON value; expected one list [...] of rows",
            where=f"{path}:{_line_at(data, _skip_space(data, end))}",
            fix=f"jq -c . {quote(path)} > {quote(path + 'l')}",
        )
    rows_start, rows_end = _find_rows(data, start, path)
    return _iter_array(data, rows_start, rows_end, path=path, limits=limits)


def refuse_pretty_printed(head: bytes, path: str, limits: Limits) -> None:
    """Raise InputError for a .jsonl file whose objects run over several lines: each of its lines would be refused."""
    lines = [line for line in head.splitlines() if line.strip(_WHITESPACE)]
    if len(lines) < 2 or lines[0].strip(_WHITESPACE) != b"{":
        return
    decode = object_decoder(limits)
    for line in lines[1:]:
        try:
            _decode_bytes(line, decode, path)
        except RowError:
            continue
        return
    raise InputError(
        "the objects run over several lines; expected one object a line",
        where=f"{path}:1",
        fix=f"jq -c . {quote(path)} > {quote(path + '.fixed.jsonl')}",
    )


def check_json_size(num_bytes: int, path: str, limits: Limits) -> None:
    """Raise InputError for a .json file that is too big to be held in memory."""
    if num_bytes > limits.max_json_file_bytes:
        raise InputError(
            f"the file has {num_bytes / MIB:,.0f} MiB; .json is read up to {limits.max_json_file_bytes / MIB:,.0f} MiB",
            where=path,
            fix=f"jq -c '.[]' {quote(path)} > {quote(path + 'l')}   (.jsonl is streamed and may have any size)",
        )


def _iter_array(data: bytes, start: int, end: int, *, path: str, limits: Limits) -> Iterator[SourceRow | Reject]:
    """Items of the array whose `[` is at `start`; `end` is just after what belongs to it."""
    indent = data[start + 1 : _skip_space(data, start + 1)].replace(b"\r\n", b"\n")
    if indent.startswith(b"\n"):
        # Items begin on lines of their own, with one indent: a broken one then stays one broken item.
        boundary = re.compile(rb"\r?\n".join(indent.split(b"\n")) + rb"(?=[^\s\]},])")
        return _iter_by_boundary(data, start, end, boundary, path=path, limits=limits)
    return _iter_by_bracket(data, start + 1, end, path=path, limits=limits)


def _iter_by_boundary(
    data: bytes, start: int, end: int, boundary: re.Pattern[bytes], *, path: str, limits: Limits
) -> Iterator[SourceRow | Reject]:
    decode, line = object_decoder(limits), _LineCounter(data)
    scan_budget = 2 * len(data) + 16 * limits.max_record_bytes
    match = boundary.search(data, start, end)
    while match is not None:
        begin = match.end()
        match = boundary.search(data, begin, end)
        stop, closing = (match.start(), b",") if match else (end, b"]")
        row = _row(data, begin, stop, closing, decode, path=path, line=line.at(begin), limits=limits)
        if match is not None and isinstance(row, Reject) and row.code == "not_json" and scan_budget > 0:
            # The same indent may stand inside an item: then it is whole up to its closing bracket.
            farthest = min(end, begin + limits.max_record_bytes)
            item_end = _item_end(data, begin, farthest)
            scan_budget -= (farthest if item_end is None else item_end) - begin
            if item_end is not None and item_end > match.start():
                whole = _row(data, begin, item_end, b"", decode, path=path, line=line.at(begin), limits=limits)
                if isinstance(whole, SourceRow):
                    row = whole
                    match = boundary.search(data, item_end, end)
                    begin = item_end
        if isinstance(row, Reject) and row.code == "not_json" and scan_budget > 0:
            parts = _several(data, begin, stop, closing, decode, path=path, line=line, limits=limits)
            scan_budget -= stop - begin
            if parts:
                yield from parts[:-1]
                row = parts[-1]
        yield row
        if match is None and isinstance(row, SourceRow) and not data[begin:end].rstrip(_WHITESPACE).endswith(b"]"):
            error = RowError(
                "truncated", "the list is not closed with ]: the file may have been cut short", "copy or download the file again"
            )
            yield reject_of(error, path=path, line=line.at(end))


def _several(
    data: bytes, begin: int, stop: int, closing: bytes, decode: Decode, *, path: str, line: _LineCounter, limits: Limits
) -> list[SourceRow | Reject]:
    """The items of a stretch in which several stand on one line; from the first broken one on, the rest is one reject.

    Empty where not even the first can be used.
    """
    out: list[SourceRow | Reject] = []
    while begin < stop and _byte_at(data, begin) != b"]":
        item_end = _item_end(data, begin, stop)
        part = None if item_end is None else _row(data, begin, item_end, b"", decode, path=path, line=line.at(begin), limits=limits)
        if item_end is None or isinstance(part, Reject) or part is None:
            return [*out, _row(data, begin, stop, closing, decode, path=path, line=line.at(begin), limits=limits)] if out else []
        out.append(part)
        begin = item_end if _byte_at(data, item_end) == b"]" else _skip_space(data, item_end + 1)
    return out


def _iter_by_bracket(data: bytes, start: int, end: int, *, path: str, limits: Limits) -> Iterator[SourceRow | Reject]:
    decode, line = object_decoder(limits), _LineCounter(data)
    begin = _skip_space(data, start)
    while _byte_at(data, begin) != b"]":
        item_end = _item_end(data, begin, end)
        if item_end is None:
            raise InputError(
                "the record that begins here is never closed: a quote or bracket is missing, or the file was cut short",
                where=f"{path}:{line.at(begin)}",
                fix=f"copy or download the file again, or look for the place with: python -m json.tool {quote(path)}",
            )
        yield _row(data, begin, item_end, b"", decode, path=path, line=line.at(begin), limits=limits)
        begin = item_end if _byte_at(data, item_end) == b"]" else _skip_space(data, item_end + 1)
    after = _skip_space(data, begin + 1)
    if after < end:
        raise InputError(
            "there is more after the list is closed; expected one list of rows, or one object a line",
            where=f"{path}:{line.at(after)}",
            fix=f"if each line is a conversation: jq -c '{{messages: .}}' {quote(path)} > {quote(path + '.fixed.jsonl')}",
        )


def _row(data: bytes, begin: int, stop: int, closing: bytes, decode: Decode, *, path: str, line: int, limits: Limits) -> SourceRow | Reject:
    """The item between two offsets, less `closing`: the comma or bracket that ends it."""
    # Measured before it is copied; white space around an item is not much.
    is_long = stop - begin > 2 * limits.max_record_bytes
    item = data[begin : min(stop, begin + EXCERPT_BYTES)] if is_long else data[begin:stop].rstrip(_WHITESPACE)
    item = item.removesuffix(closing).rstrip(_WHITESPACE)
    if closing == b"]":
        item = item.removesuffix(b",")  # behind the last item, as people leave it
    try:
        if is_long or len(item) > limits.max_record_bytes:
            raise too_long(stop - begin, limits.max_record_bytes)
        return SourceRow(path=path, line=line, fields=_decode_bytes(item, decode, path))
    except RowError as error:
        return reject_of(error, path=path, line=line, excerpt=item)


def _decode_bytes(data: bytes, decode: Decode, path: str) -> dict[str, object]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise not_utf8(quote(path)) from None
    return decode(text)


def _close_of(data: bytes, start: int) -> int | None:
    """Just after the bracket that closes the one at `start`. None: it is never closed."""
    depth = 0
    for match in _TOKEN.finditer(data, start):
        if match[0] in {b"{", b"["}:
            depth += 1
        elif match[0] in {b"}", b"]"}:
            depth -= 1
            if depth == 0:
                return match.end()
    return None


def _item_end(data: bytes, start: int, stop: int) -> int | None:
    """Where the `,` or closing bracket behind the list item or member value at `start` is. None: nowhere before `stop`."""
    depth = 0
    for match in _TOKEN.finditer(data, start, stop):
        token = match[0]
        if token in {b"{", b"["}:
            depth += 1
        elif token in {b"}", b"]"}:
            depth -= 1
            if depth < 0:
                return match.start()
        elif token == b"," and depth == 0:
            return match.start()
    return None


def _find_rows(data: bytes, start: int, path: str) -> tuple[int, int]:
    """Start and end of the one list of objects in the object at `start`."""
    found: list[tuple[bytes, int, int]] = []
    at = start + 1
    while member := _MEMBER.match(data, at):
        value = member.end()
        end = _item_end(data, value, len(data))
        if end is None:
            break
        is_list = _byte_at(data, value) == b"[" and _byte_at(data, _skip_space(data, value + 1)) == b"{"
        if is_list and member[1] not in _LISTS_IN_A_ROW:
            found.append((member[1], value, end))
        at = end + 1
    if len(found) == 1:
        return found[0][1], found[0][2]
    if found:
        names = [clip(name, 40) for name, _, _ in found]
        simple = next((name for name in names if _SIMPLE_KEY.fullmatch(name)), '"KEY"')
        raise InputError(
            f"the object at the top holds {len(found)} lists of objects ({', '.join(names[:10])}); expected one",
            where=f"{path}:{_line_at(data, start)}",
            fix=f"jq -c '.{simple}[]' {quote(path)} > {quote(path + 'l')}",
        )
    raise InputError(
        "the file is one object, not a list of rows",
        where=f"{path}:{_line_at(data, start)}",
        fix=_rows_fix(path),
    )


def _rows_fix(path: str) -> str:
    return f"write the rows as [{{...}}, {{...}}], or one object a line; for a single row: jq -c . {quote(path)} > {quote(path + 'l')}"


def _first_line_is_an_object(data: bytes, start: int, limits: Limits) -> bool:
    line = data[start : start + limits.max_record_bytes].splitlines()[0]
    try:
        _decode_bytes(line, object_decoder(limits), "")
    except RowError:
        return False
    return True


def _byte_at(data: bytes, offset: int) -> bytes:
    return data[offset : offset + 1]


def _skip_space(data: bytes, start: int) -> int:
    match = _SPACE.match(data, start)
    return match.end() if match else start


def _line_at(data: bytes, offset: int) -> int:
    return _LineCounter(data).at(offset)


class _LineCounter:
    """The 1-based line of offsets that only grow."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._newline = b"\n" if b"\n" in data else b"\r"
        self._offset, self._line = 0, 1

    def at(self, offset: int) -> int:
        self._line += self._data.count(self._newline, self._offset, offset)
        self._offset = offset
        return self._line
