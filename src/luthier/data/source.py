"""What a path is before its rows are read: missing, a folder, packed, in another encoding."""

from __future__ import annotations

import codecs
import difflib
import os
import stat
from pathlib import Path
from shlex import quote

from luthier.core.errors import InputError
from luthier.data.reject import clip

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")
HEAD_BYTES = 2**20
_MAX_NAMES = 10

# Bytes a packed or binary file begins with, what it is, and the command that unpacks it ({p}: the file, {out}: where to).
_MAGIC = (
    (b"\x1f\x8b", "gzip-compressed", "gunzip -k {p}"),
    (b"BZh", "bzip2-compressed", "bunzip2 -k {p}"),
    (b"\xfd7zXZ\x00", "xz-compressed", "unxz -k {p}"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "zstd -d {p}"),
    (b"PK\x03\x04", "a zip archive", "unzip {p} -d {out}"),
    (b"PK\x05\x06", "an empty zip archive", "unzip {p} -d {out}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x {p} -o{out}"),
    (b"%PDF-", "a PDF", "pdftotext {p} {out}.txt"),
    (b"ARROW1", "an Arrow file", "save it as .parquet or .jsonl"),
    (b"SQLite format 3\x00", "an SQLite database", "sqlite3 -csv -header {p} 'select * from TABLE' > {out}.csv"),
)
_BOMS = ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"))


def check_path(path: Path) -> None:
    """Raise InputError unless `path` is a regular file of a kind that is read, and no link out of its folder."""
    where = str(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(
            f"cannot be opened: {error}", where=where, fix="check the name and the permissions of the file and its folders"
        ) from None
    if stat.S_ISDIR(mode):
        names = _candidates(path)
        listed = f"it holds {', '.join(names)}" if names else f"no file in it ends in {', '.join(SUFFIXES)}"
        fix = f"name the file: {quote(str(path / names[0]))}" if names else "name a file with rows"
        raise InputError(f"is a folder, expected a file; {listed}", where=where, fix=fix)
    if not stat.S_ISREG(mode):
        raise InputError(
            "is not a regular file (a pipe, socket or device)", where=where, fix=f"save it first: cat {quote(where)} > rows.jsonl"
        )
    if path.is_symlink():
        target, folder = path.resolve(), path.parent.resolve()
        if not target.is_relative_to(folder):
            raise InputError(
                f"is a link out of its folder, to {target}",
                where=where,
                fix=f"if that is the file you mean, name it: {quote(str(target))}",
            )


def read_head(path: Path) -> bytes:
    """The first MiB of the file. Raises InputError if it cannot be opened, is empty, or is packed."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise InputError(f"cannot be opened: {error.strerror}", where=str(path), fix=f"chmod u+r {quote(str(path))}") from None
    if not head:
        raise InputError("the file is empty", where=str(path), fix="name a file with rows, or write it again")
    _refuse_packed(head, path)
    return head


def check_suffix(path: Path) -> str:
    """The lower-case suffix. Raises InputError for one that is not read."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"files that end in {clip(suffix, 20) or 'no suffix'!r} are not read; expected {', '.join(SUFFIXES)}",
            where=str(path),
            fix=f"if it holds one JSON object a line: mv {quote(str(path))} {quote(str(path.with_suffix('.jsonl')))}",
        )
    return suffix


def check_encoding(head: bytes, path: Path) -> int:
    """How many bytes of byte order mark to skip (0 or 3). Raises InputError for an encoding other than UTF-8.

    A single line that is not UTF-8 is a matter of that line. Two or more, and more than there are lines with valid
    non-ASCII characters, mean that the file has another encoding.
    """
    for bom, name in _BOMS:
        if head.startswith(bom):
            raise _wrong_encoding(path, name, "its byte order mark")
    guess = _wide_without_bom(head)
    if guess:
        raise _wrong_encoding(path, guess, "a zero byte beside nearly every letter")
    lines = head.splitlines()
    if len(head) == HEAD_BYTES:
        lines = lines[:-1]
    num_valid = num_invalid = 0
    first_invalid = 0
    for number, line in enumerate(lines, start=1):
        if not line.isascii():
            try:
                line.decode("utf-8")
                num_valid += 1
            except UnicodeDecodeError:
                num_invalid += 1
                first_invalid = first_invalid or number
    if num_invalid >= 2 and num_invalid > num_valid:
        high = [byte for byte in head if byte >= 0x80]
        name = "WINDOWS-1252" if any(byte < 0xA0 for byte in high) else "ISO-8859-1"
        raise _wrong_encoding(path, name, f"{num_invalid} lines that are not UTF-8 (the first is line {first_invalid})")
    return 3 if head.startswith(codecs.BOM_UTF8) else 0


def _wide_without_bom(head: bytes) -> str:
    """UTF-16 or UTF-32 without a byte order mark, by where the zero bytes of its ASCII characters are; or ""."""
    sample = head[:4096]
    zeros = [sample[offset::4].count(0) / max(len(sample[offset::4]), 1) for offset in range(4)]
    if len(sample) < 4:
        return ""
    many = [share > 0.6 for share in zeros]
    patterns = {
        (False, True, True, True): "UTF-32LE",
        (True, True, True, False): "UTF-32BE",
        (False, True, False, True): "UTF-16LE",
        (True, False, True, False): "UTF-16BE",
    }
    return patterns.get((many[0], many[1], many[2], many[3]), "")


def _wrong_encoding(path: Path, name: str, evidence: str) -> InputError:
    source = quote(str(path))
    target = quote(str(path.with_name(f"{path.stem}.utf8{path.suffix}")))
    return InputError(
        f"the file is not UTF-8; it looks like {name} (by {evidence})", where=str(path), fix=f"iconv -f {name} -t UTF-8 {source} > {target}"
    )


def _refuse_packed(head: bytes, path: Path) -> None:
    source, out = quote(str(path)), quote(str(path.with_name(f"{path.name.split('.')[0]}_unpacked")))
    name = path.name.lower()
    if name.endswith((".xlsx", ".ods", ".docx")) and head.startswith(b"PK"):
        raise InputError("an office document is not read", where=str(path), fix="save the sheet as CSV (UTF-8) and name that file")
    if name.endswith((".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")) or head[257:262] == b"ustar":
        raise InputError(
            "the file is a tar archive; archives are never unpacked here", where=str(path), fix=f"mkdir {out} && tar -xf {source} -C {out}"
        )
    for magic, what, command in _MAGIC:
        if head.startswith(magic):
            raise InputError(f"the file is {what}; nothing is unpacked here", where=str(path), fix=command.format(p=source, out=out))


def _candidates(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."))
    except OSError:
        return []
    return [*names[:_MAX_NAMES], *([f"and {len(names) - _MAX_NAMES} more"] if len(names) > _MAX_NAMES else [])]


def _missing(path: Path) -> InputError:
    folder = path.parent
    if path.is_symlink():
        return InputError("is a link to a file that is not there", where=str(path), fix=f"look where it points: ls -l {quote(str(path))}")
    if not folder.is_dir():
        return InputError(
            "there is no such file; its folder is not there either", where=str(path), fix=f"check the name: ls {quote(str(folder.parent))}"
        )
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        names = []
    nearest = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    fix = f"did you mean {quote(str(folder / nearest[0]))}?" if nearest else f"check the name: ls {quote(str(folder))}"
    return InputError("there is no such file", where=str(path), fix=fix)
