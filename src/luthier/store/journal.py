"""Append-only journals: JSON Lines files that survive being cut off in the middle of a line.

A line counts once its newline is on disk. What a kill leaves after the last newline is ignored by `read` and moved to
`NAME.torn` by the next `append`, so that nothing is lost unseen.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luthier.core.errors import RunError
from luthier.store.files import disk_error

LOOK_BACK_BYTES = 1 << 16


def append(path: Path, record: Mapping[str, object], *, fsync: bool = False) -> int:
    """Append one record as one line, in a single write; folders are made as needed.

    Returns the number of bytes of a torn last line that were moved to `torn_path(path)` first: 0 but after a crash. `fsync`
    is for records that must survive a power cut; a killed process loses nothing either way. NaN is refused (ValueError).
    Raises RunError if the disk is full or read-only; the file is then as it was.
    """
    line = json.dumps(dict(record), allow_nan=False).encode("ascii") + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        try:
            num_torn = _move_torn_tail(handle, path)
            size = os.fstat(handle).st_size
            try:
                _write_all(handle, line)
            except OSError:
                os.ftruncate(handle, size)
                raise
            if fsync:
                os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise disk_error(path, len(line), error) from error
    return num_torn


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records in order; nothing when there is no file. A torn last line is left out: `torn_tail` shows it.

    Raises RunError for any other line that is not a JSON object: the file was damaged, not cut off.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record: object = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _damaged(path, number, str(error)) from error
            if not isinstance(record, dict):
                raise _damaged(path, number, f"found a {type(record).__name__}, expected an object")
            yield record


def torn_tail(path: Path) -> bytes:
    """What stands after the last newline: b"" unless a write was cut off and nothing was appended since."""
    try:
        with path.open("rb") as file:
            return _tail(file.fileno())[1]
    except FileNotFoundError:
        return b""


def torn_path(path: Path) -> Path:
    """Where torn last lines of the journal `path` are kept, one after another."""
    return path.with_name(f"{path.name}.torn")


def _damaged(path: Path, number: int, reason: str) -> RunError:
    return RunError(
        f"the journal is damaged: {reason}",
        where=f"{path}:{number}",
        fix=f"restore the file from a backup, or start over with --fresh (or: sed -i {number}d '{path}', which loses that one record)",
    )


def _tail(handle: int) -> tuple[int, bytes]:
    """Offset of the first byte after the last newline, and the bytes from there to the end."""
    end = os.fstat(handle).st_size
    tail, start = b"", end
    while start > 0:
        begin = max(0, start - LOOK_BACK_BYTES if tail else start - 1)  # one byte is enough when all is well
        os.lseek(handle, begin, os.SEEK_SET)
        block = _read_exactly(handle, start - begin)
        at = block.rfind(b"\n")
        if at >= 0:
            return begin + at + 1, block[at + 1 :] + tail
        tail, start = block + tail, begin
    return 0, tail


def _read_exactly(handle: int, count: int) -> bytes:
    blocks: list[bytes] = []
    while count:
        block = os.read(handle, count)
        if not block:
            break
        blocks.append(block)
        count -= len(block)
    return b"".join(blocks)


def _move_torn_tail(handle: int, path: Path) -> int:
    offset, tail = _tail(handle)
    if tail:
        with torn_path(path).open("ab") as kept:
            kept.write(tail + b"\n")
        os.ftruncate(handle, offset)
    return len(tail)


def _write_all(handle: int, data: bytes) -> None:
    """One write; a short one (a disk about to be full) goes on until it is whole or the disk says why not."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
