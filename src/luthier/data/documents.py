"""The user's reference documents: a folder of text and Markdown files, read once and cut into passages.

A folder may hold anything. Only regular files with the ending of a text are read, each whole or not at all; what is left out is counted
by reason. Symbolic links are never followed, neither to files nor to folders.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from luthier.core.errors import ConfigError, InputError
from luthier.core.hashing import digest, sha256_text

ENDINGS = (".md", ".markdown", ".txt", ".text", ".rst")
MIB = 2**20
MAX_FILE_BYTES = 4 * MIB
MAX_TOTAL_BYTES = 64 * MIB
MAX_FILES = 10_000
MAX_ENTRIES = 100_000  # names looked at, in all folders
MAX_PASSAGE_CHARS = 800
MAX_HEADING_CHARS = 120
MAX_HEADING_LINE_CHARS = 300  # a longer line is text, whatever it begins with
DIGEST_CHARS = 16

_HEADING = re.compile(r"#{1,6}[ \t]+(.+?)[ \t#]*")
_BLANK = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A piece of a document, at most `MAX_PASSAGE_CHARS` long. `line` (1-based) is where it begins; the text is untrusted."""

    path: str  # below the folder
    line: int
    text: str

    @property
    def id(self) -> str:
        """`rules/cards.md:12`."""
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """All passages of a folder, in order of path and line, each text once. `left_out` counts files by the reason they were not read."""

    passages: tuple[Passage, ...]
    num_files: int
    left_out: Mapping[str, int]
    digest: str  # of the paths and contents of the files read

    @property
    def described(self) -> str:
        """One line for records: what there is, and what it is known by."""
        return f"{self.num_files:,} files, {len(self.passages):,} passages, sha256 {self.digest}"


def read_documents(folder: str | Path) -> Documents:
    """Read and cut the documents of a folder. Raises ConfigError when it is no folder, InputError when nothing there can be used."""
    texts, left_out = _read_texts(Path(folder).expanduser())
    passages = {passage.text: passage for name in reversed(texts) for passage in reversed(list(cut(name, texts[name])))}
    return Documents(
        passages=tuple(sorted(passages.values(), key=lambda passage: (passage.path, passage.line, passage.text))),
        num_files=len(texts),
        left_out=left_out,
        digest=_digest(texts),
    )


def digest_documents(folder: str | Path) -> str:
    """The digest alone, as `read_documents` has it. Raises the same errors."""
    return _digest(_read_texts(Path(folder).expanduser())[0])


def _digest(texts: Mapping[str, str]) -> str:
    return digest([[name, sha256_text(text)] for name, text in texts.items()])[:DIGEST_CHARS]


def _read_texts(root: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Path below the folder -> text, in order of path; and how many files were left out, by reason."""
    if not root.is_dir():
        raise ConfigError("there is no such folder", where=str(root), fix="--documents FOLDER, with .md or .txt files in it")
    left_out: Counter[str] = Counter()
    texts: dict[str, str] = {}
    num_bytes = 0
    for path in _files(root, left_out):
        data = _read(path, left_out)
        if data is None:
            continue
        num_bytes += len(data)
        if len(texts) >= MAX_FILES or num_bytes > MAX_TOTAL_BYTES:
            raise InputError(
                f"found more than {MAX_FILES:,} files or {MAX_TOTAL_BYTES // MIB} MiB of documents",
                where=str(root),
                fix="name a folder with only the documents that answers rest on",
            )
        text = _decode(data)
        if text is None or not text.strip():
            left_out["not UTF-8 text" if text is None else "empty"] += 1
            continue
        texts[path.relative_to(root).as_posix()] = text
    if not texts:
        found = ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items())) or "nothing"
        raise InputError(f"no document can be read; found {found}", where=str(root), fix=f"documents as UTF-8 text: {', '.join(ENDINGS)}")
    return dict(sorted(texts.items())), dict(sorted(left_out.items()))


def _files(root: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Files that may be documents, in order of name. Links, hidden files and folders, and other endings are counted and passed over."""
    num_entries = 0
    for folder, folders, files in os.walk(root, followlinks=False):
        num_entries += len(folders) + len(files)
        if num_entries > MAX_ENTRIES:
            raise InputError(
                f"found more than {MAX_ENTRIES:,} files and folders", where=str(root), fix="name a folder with only the documents in it"
            )
        here = Path(folder)
        for name in list(folders):
            if name.startswith(".") or (here / name).is_symlink():
                left_out["hidden" if name.startswith(".") else "symbolic link"] += 1
                folders.remove(name)
        folders.sort()
        for name in sorted(files):
            reason = _passed_over(here / name)
            if reason:
                left_out[reason] += 1
            else:
                yield here / name


def _passed_over(path: Path) -> str:
    if path.name.startswith("."):
        return "hidden"
    if path.is_symlink():
        return "symbolic link"
    return "" if path.suffix.lower() in ENDINGS else "other ending"


def _read(path: Path, left_out: Counter[str]) -> bytes | None:
    """The bytes of a regular file that is not too large; what a link was put in the place of since is not followed."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError:
        left_out["not readable"] += 1
        return None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            left_out["no regular file"] += 1
            return None
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        left_out[f"over {MAX_FILE_BYTES // MIB} MiB"] += 1
        return None
    return data


def _decode(data: bytes) -> str | None:
    """UTF-8 text with plain line ends; None for anything else, NUL bytes included."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text.replace("\r\n", "\n").replace("\r", "\n")


def cut(path: str, text: str) -> Iterator[Passage]:
    """Passages of one document: paragraphs put together up to the limit, never across a heading, each behind the heading it stands under.

    A paragraph that is too long is cut at the ends of sentences, else at white space, else where the limit is.
    """
    heading, line, pending, begun = "", 1, "", 1
    at = 0
    for found in [*_BLANK.finditer(text), None]:
        paragraph = text[at : found.start() if found else len(text)]
        skipped = len(paragraph) - len(paragraph.lstrip())
        line_here = line + paragraph[:skipped].count("\n")
        for block, line_of_block in _blocks(paragraph.strip(), line_here):
            title = _HEADING.fullmatch(block) if len(block) <= MAX_HEADING_LINE_CHARS else None
            if title:
                yield from _passages(path, heading, pending, begun)
                heading, pending = title[1][:MAX_HEADING_CHARS], ""
                continue
            together = f"{pending}\n\n{block}" if pending else block
            if pending and len(heading) + 1 + len(together) > MAX_PASSAGE_CHARS:
                yield from _passages(path, heading, pending, begun)
                pending, begun = block, line_of_block
            else:
                pending, begun = together, begun if pending else line_of_block
        line += text[at : found.end() if found else len(text)].count("\n")
        at = found.end() if found else len(text)
    yield from _passages(path, heading, pending, begun)


def _blocks(paragraph: str, line: int) -> Iterator[tuple[str, int]]:
    """Headings, and the text between them, of one paragraph, with the line of each."""
    rest: list[str] = []
    begun = line
    for number, row in enumerate(paragraph.split("\n"), start=line):
        if len(row) <= MAX_HEADING_LINE_CHARS and _HEADING.fullmatch(row.strip()):
            if rest:
                yield "\n".join(rest), begun
            yield row.strip(), number
            rest = []
        else:
            begun = begun if rest else number
            rest.append(row)
    if "".join(rest).strip():
        yield "\n".join(rest), begun


def _passages(path: str, heading: str, text: str, line: int) -> Iterator[Passage]:
    """One passage, or several where the text is too long for one."""
    room = MAX_PASSAGE_CHARS - (len(heading) + 1 if heading else 0)
    start = 0
    while start < len(text):
        end = len(text) if len(text) - start <= room else _cut_at(text, start, start + room)
        piece = text[start:end]
        shown = piece.strip()
        if shown:
            begun = line + piece[: len(piece) - len(piece.lstrip())].count("\n")
            yield Passage(path=path, line=begun, text=f"{heading}\n{shown}" if heading else shown)
        line += piece.count("\n")
        start = end


def _cut_at(text: str, start: int, limit: int) -> int:
    """Where to cut: behind the last sentence that ends in the second half before `limit`, else behind the last space there, else there."""
    middle = (start + limit) // 2
    ends = [found.end() for found in _SENTENCE_END.finditer(text, middle, limit)]
    if ends:
        return ends[-1]
    space = max(text.rfind(" ", middle, limit), text.rfind("\t", middle, limit))
    return space + 1 if space >= 0 else limit
