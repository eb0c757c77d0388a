"""What a path is before it is read: missing, a folder, packed, in another encoding; each with a command to copy."""

from __future__ import annotations

import bz2
import lzma
import os
from pathlib import Path

import pytest

from luthier.core.errors import InputError
from luthier.data.read import iter_records
from luthier.data.source import check_encoding

ROW = b'{"prompt": "a", "completion": "b"}\n'


def _refusal(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        list(iter_records(path))
    assert caught.value.fix
    return caught.value


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train file.jsonl").write_bytes(ROW)
    assert f"did you mean '{tmp_path}/train file.jsonl'?" in _refusal(tmp_path / "train_file.json").fix
    assert "folder is not there" in _refusal(tmp_path / "no" / "a.jsonl").message
    assert "no such file" in _refusal(tmp_path / "train file.jsonl" / "a.jsonl").message
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    assert "link to a file that is not there" in _refusal(tmp_path / "gone.jsonl").message
    assert "cannot be opened" in _refusal(Path("a\0b.jsonl")).message


def test_folder_lists_what_it_holds(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "photo.png", ".hidden.jsonl"):
        (tmp_path / name).write_bytes(ROW)
    error = _refusal(tmp_path)
    assert "it holds a.csv, b.jsonl" in error.message
    assert error.fix.endswith("a.csv")
    (tmp_path / "empty").mkdir()
    assert "no file in it ends in" in _refusal(tmp_path / "empty").message


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "not a regular file" in _refusal(tmp_path / "pipe.jsonl").message


def test_link_inside_its_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jsonl").write_bytes(ROW)
    (tmp_path / "link.jsonl").symlink_to("sub/a.jsonl")
    assert len(list(iter_records(tmp_path / "link.jsonl"))) == 1
    (tmp_path / "folder_link").symlink_to(tmp_path / "sub")  # the file itself is no link
    assert len(list(iter_records(tmp_path / "folder_link" / "a.jsonl"))) == 1


@pytest.mark.parametrize(
    ("name", "data"), [("a.jsonl", b""), ("a.jsonl", b"\n \n"), ("a.csv", b"\n"), ("a.txt", b"\n\n"), ("a.json", b"[ ]")]
)
def test_empty(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert "empty" in (error := _refusal(tmp_path / name)).message or "no rows" in error.message


@pytest.mark.parametrize(
    ("name", "data", "fix"),
    [
        ("a b.jsonl.gz", b"\x1f\x8b\x08", "gunzip -k '"),
        ("a.tar.gz", b"\x1f\x8b\x08", "tar -xf"),
        ("a.jsonl.bz2", bz2.compress(ROW), "bunzip2"),
        ("a.jsonl.xz", lzma.compress(ROW), "unxz"),
        ("a.xlsx", b"PK\x03\x04", "CSV"),
        ("a.zst", b"\x28\xb5\x2f\xfd", "zstd -d"),
        ("a.db", b"SQLite format 3\x00", "sqlite3"),
        ("a.docs", ROW, "mv "),
    ],
)
def test_packed_and_unknown_files_are_not_opened(name: str, data: bytes, fix: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert fix in _refusal(tmp_path / name).fix


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_wide_encodings(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "it's.csv"
    path.write_bytes("text,label\nhello,a\nyou,b\n".encode(encoding))
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    assert _refusal(path).fix.startswith(f"iconv -f {name} -t UTF-8 ")
    assert "it'\"'\"'s.csv" in _refusal(path).fix


def test_eight_bit_encodings() -> None:
    path = Path("a.csv")
    lines = [f"caf\u00e9 {i},ok" for i in range(4)]
    with pytest.raises(InputError, match="ISO-8859-1"):
        check_encoding("\n".join(lines).encode("latin-1"), path)
    with pytest.raises(InputError, match="WINDOWS-1252"):
        check_encoding("\n".join(f"\u201c{line}\u201d" for line in lines).encode("cp1252"), path)
    # A damaged line or two in a UTF-8 file do not condemn the others.
    utf8 = "\n".join(lines).encode()
    assert check_encoding(utf8 + b"\n\xe9\n\xe9\n", path) == 0
    assert check_encoding(b"a\n\xe9\nb\n", path) == 0
    assert check_encoding(b"\xef\xbb\xbfa\n", path) == 3
