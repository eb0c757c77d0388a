"""Writing files so that a reader sees the old content or the new one, never a half."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path

from luthier.core.errors import RunError

TMP_PREFIX = ".tmp-"


def atomic_write_text(path: Path, text: str) -> None:
    """Write UTF-8 text: to a temporary file beside `path`, fsync, rename over it, fsync the folder.

    The folder is made if need be; line ends are written as they are. Raises RunError when the disk is full or read-only;
    `path` is then as it was and nothing is left behind.
    """
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON with a final newline, like `atomic_write_text`. NaN is refused (ValueError)."""
    atomic_write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write bytes, like `atomic_write_text`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = path.with_name(f"{TMP_PREFIX}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            with tmp.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(tmp, path)  # noqa: PTH105  named so that a test can make it fail
        except BaseException:
            tmp.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)
    except OSError as error:
        raise disk_error(path, len(data), error) from error


def fsync_folder(path: Path) -> None:
    """Make renames and new names in a folder durable; systems that cannot open a folder (Windows) do it by themselves."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_folder(tmp: Path, path: Path) -> None:
    """Put the finished folder `tmp` at `path`, in place of what is there. Both lie side by side."""
    if path.exists():
        old = tmp.with_name(f"{tmp.name}-old")
        path.rename(old)
        tmp.rename(path)
        shutil.rmtree(old)
    else:
        tmp.rename(path)
    fsync_folder(path.parent)


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder and those below it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def require_free(folder: Path, num_bytes: int, *, fix: str, what: str = "checkpoints and result") -> None:
    """Raise RunError unless `num_bytes` more fit beside `folder`: better now than in an hour. An unknown free space passes."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return
    if free < num_bytes:
        raise RunError(
            f"{num_bytes / 2**20:,.0f} MiB are needed for {what}, {free / 2**20:,.0f} MiB are free",
            where=str(folder),
            fix=fix,
        )


def remove_leftovers(folder: Path) -> int:
    """Delete temporary files and folders that a killed process left in `folder`; returns how many. Only for the holder of the run lock."""
    stale = list(folder.glob(f"{TMP_PREFIX}*")) if folder.is_dir() else []
    for path in stale:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(stale)


def disk_error(path: Path, num_bytes: int, error: OSError) -> RunError:
    """The error for a write that failed: what was to be written, what is free, what to do."""
    try:
        free = f"{shutil.disk_usage(path.parent).free / 2**20:,.1f} MiB free"
    except OSError:
        free = "free space unknown"
    return RunError(
        f"cannot write {num_bytes:,} bytes ({free}): {error.strerror or error}",
        where=str(path),
        fix="free some space or mend the permissions, then repeat the same command: it goes on where it stopped",
    )
