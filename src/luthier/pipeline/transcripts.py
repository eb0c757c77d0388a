"""Where conversations are kept: in the run's own folder, else in the user's cache, a file each."""

from __future__ import annotations

import datetime
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from luthier.core.errors import RunError
from luthier.core.folders import cache_root
from luthier.core.hashing import sha256_text
from luthier.store.files import disk_error
from luthier.store.layout import RunFolder

SUFFIX = ".jsonl"


def transcript_folders(target: str) -> tuple[Path, ...]:
    """Where the conversations with a run or model lie, the folder for new ones first.

    A run's are in the run, so that they go where it goes; those with an adapter, a model, or a run that cannot be written to are in
    the cache, under the name of the target and a digest of its whole path.
    """
    path = Path(target)
    where = str(path.resolve()) if path.exists() else target
    name = "".join(char if char.isalnum() or char in "-_." else "-" for char in Path(where).name)[:40]
    cached = cache_root() / "chat" / f"{name}-{sha256_text(where)[:8]}"
    run = RunFolder(path)
    if not run.config.is_file():
        return (cached,)
    return (run.chat, cached) if os.access(run.root, os.W_OK) else (cached, run.chat)


def new_path(target: str) -> Path:
    """A name for a new conversation: when it began, and six letters to tell it by."""
    stamp = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    return transcript_folders(target)[0] / f"{stamp}-{secrets.token_hex(3)}{SUFFIX}"


def transcripts_of(target: str) -> list[Path]:
    """The conversations with a run or model, oldest first."""
    found = [path for folder in transcript_folders(target) if folder.is_dir() for path in folder.glob(f"*{SUFFIX}") if path.is_file()]
    return sorted(found, key=lambda path: path.name)


def latest_transcript(target: str) -> Path:
    """The newest conversation. Raises RunError where there is none."""
    found = transcripts_of(target)
    if not found:
        raise RunError("there is no conversation to go on with", where=target, fix="start one: the same command without --continue")
    return found[-1]


@contextmanager
def held(path: Path | None) -> Generator[None]:
    """Hold a transcript for the block, so that two chats never write into one. Raises RunError when another chat does."""
    if path is None:
        yield
        return
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise RunError("another chat is writing this conversation", where=str(path), fix="leave that one, or start a new one") from error
    except OSError as error:
        raise disk_error(path, 0, error) from error
    try:
        yield
    finally:
        with suppress(OSError):  # some systems cannot delete an open file; an empty one left behind does no harm
            Path(lock.lock_file).unlink()
        lock.release()
