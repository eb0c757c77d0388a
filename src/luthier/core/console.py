"""The only home of terminal output. Results go to stdout; everything else (progress, notes, errors) to stderr.

All text passes `render_untrusted` on its way: a file name, a row or a model's answer can hold escape codes.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TextIO

from luthier.core.errors import InputError
from luthier.core.untrusted import render_untrusted

# progress(stage, done, total, message): `total` 0 means that it is not known.
Progress = Callable[[str, float, float, str], None]

PLAIN_EVERY_S = 5.0
STDIN = "standard input"
MAX_DOCUMENT_BYTES = 4 * 2**20


def quiet(stage: str, done: float, total: float, message: str) -> None:
    """The progress function that shows nothing."""
    del stage, done, total, message


def result_lines(lines: Iterable[str]) -> None:
    """The result, for people, to stdout."""
    for line in lines:
        _write(sys.stdout, f"{line}\n")


def result_json(value: Mapping[str, object]) -> None:
    """The result, for programs: one JSON object on one line of stdout, ASCII, so that no code page can spoil it."""
    text = json.dumps(dict(value), allow_nan=False).replace("\x7f", "\\u007f")  # the one control that JSON lets through
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def result_pieces(rows: Iterable[Iterable[tuple[str, bool]]]) -> None:
    """Rows of (text, is trained) to stdout: what is trained in green on a terminal, between brackets elsewhere."""
    begin, end = ("\x1b[32m", "\x1b[0m") if wants_colour(sys.stdout) else ("[", "]")
    for row in rows:
        sys.stdout.write("\n")
        was_trained = False
        for text, is_trained in row:
            if is_trained != was_trained:
                sys.stdout.write(begin if is_trained else end)
            _write(sys.stdout, text)
            was_trained = is_trained
        sys.stdout.write(f"{end}\n" if was_trained else "\n")
    sys.stdout.flush()


def ask(prompt: str) -> str | None:
    """One line from stdin without its newline, None at its end. The prompt is shown only when a person is there, who can edit the line."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(ImportError):  # systems without it edit lines themselves
            import_module("readline")  # `input` uses it once it is there

        try:
            return input(prompt)
        except EOFError:
            _write(sys.stdout, "\n")
            return None
    if sys.stdin.isatty():
        _write(sys.stderr, prompt)
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise _no_utf8(error) from error
    return line.rstrip("\r\n") if line else None


def read_document() -> str:
    """All of stdin as one text. Raises InputError when it is empty, too large or no UTF-8."""
    data = sys.stdin.buffer.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InputError(
            f"found more than {MAX_DOCUMENT_BYTES:,} bytes, which no model here can see", where=STDIN, fix="pipe in a part of it"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _no_utf8(error) from error
    if not text.strip():
        raise InputError("there is nothing to answer", where=STDIN, fix='pipe a text in, or give one: -p "TEXT"')
    return text


def _no_utf8(error: UnicodeDecodeError) -> InputError:
    return InputError(
        f"byte {error.start:,} (0x{error.object[error.start]:02x}) is not UTF-8",
        where=STDIN,
        fix="iconv -f latin1 -t utf-8 FILE | luthier …",
    )


def note(text: str) -> None:
    """One remark to stderr."""
    _write(sys.stderr, f"{text}\n")


def note_from_signal_handler(text: str) -> None:
    """One ASCII remark to stderr, past Python's buffers, which a handler must not enter again."""
    with contextlib.suppress(OSError):  # nobody is listening; stopping matters more
        os.write(2, f"\n{text}\n".encode("ascii"))


def wants_colour(stream: TextIO) -> bool:
    """A terminal, and the user has not said no (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def write_rendered(stream: TextIO, safe: str) -> None:
    """Write text that was made safe. A character that the stream's encoding lacks (cp1252) is shown as `\\u2264` rather than crashing."""
    encoding = stream.encoding or "utf-8"
    stream.write(safe.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def _write(stream: TextIO, text: str) -> None:
    write_rendered(stream, render_untrusted(text, "terminal"))


@contextmanager
def show_progress(*, enabled: bool = True) -> Generator[Progress]:
    """A progress function for the block: live bars with the time left on a terminal, else a plain line now and then."""
    if not enabled:
        yield quiet
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        yield from _live()
    else:
        yield plain_progress(sys.stderr)


def plain_progress(stream: TextIO, *, clock: Callable[[], float] = time.monotonic, every_s: float = PLAIN_EVERY_S) -> Progress:
    """Lines such as `fine-tune: 40 of 250, loss 0.812, about 3 min left`.

    At most one line in `every_s` for each stage, besides its first and its last.
    """
    started: dict[str, tuple[float, float]] = {}  # stage -> when it was first heard of, and how much was done by then (a resumed run)
    latest: dict[str, tuple[float, float]] = {}  # stage -> when it was last heard of, and how much was done
    written: dict[str, float] = {}
    finished: set[str] = set()

    def progress(stage: str, done: float, total: float, message: str) -> None:
        now = clock()
        is_last = total > 0 and done >= total
        if not is_last:
            finished.discard(stage)  # a stage may come round again, for the next model
        heard_at, done_then = latest.get(stage, (now, done))
        latest[stage] = (now, done)
        if done < done_then:  # the next round began where the last one ended
            started[stage] = (heard_at, 0.0)
        elif stage not in started or done <= 0:
            started[stage] = (now, done)
        if stage in finished or (stage in written and not is_last and now - written[stage] < every_s):
            return
        if is_last:
            finished.add(stage)
        written[stage] = now
        parts = [f"{done:,.0f} of {total:,.0f}"] if total > 0 else []
        began, done_before = started[stage]
        left = _seconds_left(now - began, done - done_before, total - done)
        parts += [part for part in (message, "" if left is None or is_last else f"about {duration(left)} left") if part]
        _write(stream, f"{stage}: {', '.join(parts)}\n" if parts else f"{stage}\n")

    return progress


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`: for people, rounded up so that a wait is never understated."""
    whole = int(-(-seconds // 1))
    if whole < 60:
        return f"{whole} s"
    minutes = -(-whole // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _seconds_left(elapsed_s: float, done: float, left: float) -> float | None:
    """None until enough is done to say: something, and a second."""
    return elapsed_s / done * left if done > 0 and left > 0 and elapsed_s >= 1 else None


def _live() -> Generator[Progress]:
    # rich is imported here: `luthier --help` has no use for it
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[message]}", markup=False),
    )
    console = Console(stderr=True, markup=False, highlight=False, no_color=not wants_colour(sys.stderr))
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as bars:

        def progress(stage: str, done: float, total: float, message: str) -> None:
            known = None if total <= 0 else round(total)
            safe = render_untrusted(message, "terminal").replace("\n", " ")
            if stage not in tasks:
                tasks[stage] = bars.add_task(render_untrusted(stage, "terminal"), total=known, completed=round(done), message=safe)
            bars.update(tasks[stage], completed=round(done), total=known, message=safe)

        yield progress
