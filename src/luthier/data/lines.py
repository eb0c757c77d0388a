"""Physical lines of a byte stream, with a bound on how much of one line is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

_CHUNK_BYTES = 256 * 1024
_HEAD_BYTES = 1024


@dataclass(slots=True)
class Tally:
    """What a reader counts beside the rows it yields."""

    num_rows: int = 0  # rows and rejects
    num_blank: int = 0


class RawLine(NamedTuple):
    """One line without its terminator. Of a line over the bound, `data` is only the beginning."""

    number: int  # 1-based
    data: bytes
    num_bytes: int
    ended: bool  # False: the file stopped before a line terminator

    @property
    def is_cut(self) -> bool:
        """Whether the line is over the bound, and `data` only its beginning."""
        return self.num_bytes > len(self.data)


def iter_lines(read: Callable[[int], bytes], *, max_bytes: int) -> Iterator[RawLine]:
    """Lines ended by LF, CRLF or CR from `read(num_bytes)`; memory stays at `max_bytes` plus one chunk."""
    number = 1
    carry = b""
    cut_head, cut_bytes = b"", 0  # of a line that is over the bound: its beginning, and what was let go so far
    while chunk := read(_CHUNK_BYTES):
        pieces = (carry + chunk).splitlines(keepends=True)
        # The last piece may go on in the next chunk; a CR there may be half of a CRLF.
        carry = b"" if pieces[-1].endswith(b"\n") else pieces.pop()
        for piece in pieces:
            data = piece.rstrip(b"\r\n") if piece.endswith(b"\n") else piece[:-1]
            if cut_bytes:
                yield RawLine(number, cut_head, cut_bytes + len(data), True)
                cut_head, cut_bytes = b"", 0
            else:
                yield _bounded(number, data, max_bytes, ended=True)
            number += 1
        if len(carry) > max_bytes + 1:
            cut_head = cut_head or carry[: min(_HEAD_BYTES, max_bytes)]
            # Keep one byte: it may be the CR of a CRLF.
            cut_bytes += len(carry) - 1
            carry = carry[-1:]
    if carry or cut_bytes:
        ended = carry.endswith(b"\r")
        data = carry[:-1] if ended else carry
        if cut_bytes:
            yield RawLine(number, cut_head, cut_bytes + len(data), ended)
        else:
            yield _bounded(number, data, max_bytes, ended=ended)


def _bounded(number: int, data: bytes, max_bytes: int, *, ended: bool) -> RawLine:
    return RawLine(number, data if len(data) <= max_bytes else data[: min(_HEAD_BYTES, max_bytes)], len(data), ended)
