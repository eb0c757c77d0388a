from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core.errors import RunError
from luthier.store import files
from luthier.store.files import TMP_PREFIX, atomic_write_bytes, atomic_write_json, atomic_write_text, remove_leftovers


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    atomic_write_text(path, "Grüße\r\n")
    assert path.read_bytes() == "Grüße\r\n".encode()
    atomic_write_json(path, {"é": [1, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, None]}
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_others_may_read_it_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x", encoding="utf-8")
    atomic_write_text(tmp_path / "atomic", "x")
    assert stat.S_IMODE((tmp_path / "atomic").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_not_a_number_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        atomic_write_json(tmp_path / "a", float("nan"))
    assert list(tmp_path.iterdir()) == []


class Killed(BaseException):
    pass


@pytest.mark.parametrize("point", ["replace", "fsync"])
def test_killed_in_the_middle_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    path = tmp_path / "a.json"
    atomic_write_text(path, "old")

    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(files.os, point, die)
    with pytest.raises(Killed):
        atomic_write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_process_that_vanishes_before_the_rename_leaves_only_a_leftover(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    atomic_write_text(path, "old")
    code = (
        "import os, sys, pathlib\nfrom luthier.store import files\n"
        "files.os.replace = lambda *a: os._exit(9)\n"
        "files.atomic_write_text(pathlib.Path(sys.argv[1]), 'new')\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    assert path.read_text(encoding="utf-8") == "old"
    assert any(p.name.startswith(TMP_PREFIX) for p in tmp_path.iterdir())
    assert remove_leftovers(tmp_path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES])
def test_disk_errors_say_what_was_to_be_written_and_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "a"
    atomic_write_bytes(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(RunError) as caught:
        atomic_write_bytes(path, b"x" * 1234)
    assert "1,234 bytes" in caught.value.message and "MiB free" in caught.value.message and os.strerror(code) in caught.value.message
    assert caught.value.where == str(path) and caught.value.fix
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_no_leftovers_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert remove_leftovers(tmp_path / "none") == 0
