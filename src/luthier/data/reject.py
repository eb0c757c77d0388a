"""A problem with one row: raised where it is found, turned into a counted `Reject` where rows are iterated."""

from __future__ import annotations

from luthier.core.errors import InputError
from luthier.core.types import Reject

EXCERPT_CHARS = 160
EXCERPT_BYTES = 4 * EXCERPT_CHARS


class RowError(InputError):
    """One row cannot be used. `code` is stable, for counting; the others are for people."""

    def __init__(self, code: str, reason: str, fix: str) -> None:
        super().__init__(reason, fix=fix)
        self.code = code


def reject_of(error: RowError, *, path: str, line: int, excerpt: str | bytes = "") -> Reject:
    """The `Reject` for a row at `path`:`line`, with the first characters of it."""
    return Reject(path=path, line=line, code=error.code, reason=error.message, fix=error.fix, excerpt=clip(excerpt))


def clip(text: str | bytes, num_chars: int = EXCERPT_CHARS) -> str:
    """The first `num_chars` characters on one line; bytes that are not UTF-8 become U+FFFD."""
    if isinstance(text, bytes):
        text = text[: 4 * num_chars].decode("utf-8", errors="replace")
    shown = " ".join(text[: 2 * num_chars].split())
    cut = len(shown) > num_chars or len(text) > 2 * num_chars
    # A lone surrogate must not reach whatever writes the excerpt.
    return (shown[:num_chars] + ("…" if cut else "")).encode("utf-8", errors="replace").decode("utf-8")


def too_long(num_bytes: int, max_bytes: int) -> RowError:
    """The row is over the size limit."""
    return RowError(
        "record_too_long",
        f"the record is {num_bytes:,} bytes long; at most {max_bytes:,} are read",
        "remove the record or split it into shorter ones",
    )


def not_utf8(path: str) -> RowError:
    """The row holds bytes that are not UTF-8."""
    return RowError(
        "not_utf8",
        "the record holds bytes that are not UTF-8",
        f"write the record again as UTF-8; if the whole file has another encoding: iconv -f WINDOWS-1252 -t UTF-8 {path}",
    )


def nul_character() -> RowError:
    """The row holds U+0000."""
    return RowError("nul", "the record holds a NUL character (U+0000)", "remove it, for example: tr -d '\\000' < FILE > CLEAN")
