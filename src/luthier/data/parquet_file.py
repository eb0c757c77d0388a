"""Parquet, decoded by a child process, so that a hostile footer cannot take this one down."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

from luthier.core.errors import InputError, MissingExtraError
from luthier.core.types import Reject, SourceRow
from luthier.data.json_file import iter_jsonl
from luthier.data.limits import Limits
from luthier.data.lines import Tally, iter_lines

_CHILD = Path(__file__).with_name("parquet_child.py")
_NO_PYARROW = 3


def iter_parquet(path: Path, *, limits: Limits) -> Iterator[SourceRow | Reject]:
    """Rows of a Parquet file; `line` is the 1-based row. NaN becomes null, dates and decimals become text, bytes base64.

    Raises MissingExtraError without pyarrow, InputError where the file cannot be decoded within the limits.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise _missing_extra(path)
    argv = [sys.executable, "-I", str(_CHILD), str(path.absolute()), str(limits.parquet_memory_bytes), str(limits.max_keys)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:  # noqa: S603 (fixed program, no shell)
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            watched = _Watched(child, child.stdout.fileno(), limits.parquet_idle_s)
            yield from iter_jsonl(iter_lines(watched.read, max_bytes=limits.max_record_bytes), path=str(path), limits=limits, tally=Tally())
            message = child.stderr.read().decode("ascii", errors="replace").strip()
            code = child.wait()
        finally:
            child.kill()
    if code == _NO_PYARROW:
        raise _missing_extra(path)
    if code != 0:
        if watched.timed_out:
            message = f"nothing could be read within {limits.parquet_idle_s:g} s"
        elif code < 0 or not message:
            message = f"the process that decoded it ended with code {code}"
        raise InputError(
            f"cannot be read as Parquet: {message}",
            where=str(path),
            fix="write the table again with pyarrow or pandas, or save it as .jsonl",
        )


class _Watched:
    """The output of a child process that is killed when a read has to wait for too long."""

    def __init__(self, child: subprocess.Popen[bytes], fd: int, idle_s: float) -> None:
        self.timed_out = False
        self._child, self._fd, self._idle_s = child, fd, idle_s

    def read(self, num_bytes: int) -> bytes:
        """Up to `num_bytes`; b"" at the end."""
        timer = Timer(self._idle_s, self._end)
        timer.start()
        try:
            return os.read(self._fd, num_bytes)
        finally:
            timer.cancel()

    def _end(self) -> None:
        self.timed_out = True
        self._child.kill()


def _missing_extra(path: Path) -> MissingExtraError:
    return MissingExtraError(
        "reading Parquet needs pyarrow",
        where=str(path),
        fix="pip install pyarrow",
    )
