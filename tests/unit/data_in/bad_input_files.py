"""The bad inputs that are too big, or too binary, to be checked in: each written into a folder by its name."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

GOOD = json.dumps({"instruction": "Translate into German.", "input": "word", "output": "Wort"})


def _between_good(folder: Path, name: str, bad: bytes) -> Path:
    path = folder / name
    path.write_bytes(GOOD.encode() + b"\n" + bad + b"\n" + GOOD.encode() + b"\n")
    return path


def deep_nest(folder: Path) -> Path:
    return _between_good(folder, "deep.jsonl", b'{"text":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def deep_nest_json(folder: Path) -> Path:
    path = folder / "deep.json"
    path.write_bytes(b"[\n" + GOOD.encode() + b",\n" + b"[" * 100_000 + b"]" * 100_000 + b",\n" + GOOD.encode() + b"\n]")
    return path


def long_line(folder: Path) -> Path:
    return _between_good(folder, "long.jsonl", b'{"instruction":"a","input":"b","output":"' + b"x" * (64 * 2**20) + b'"}')


def long_item(folder: Path) -> Path:
    path = folder / "long.json"
    path.write_bytes(b"[" + GOOD.encode() + b',{"output":"' + b"x" * (64 * 2**20) + b'"},' + GOOD.encode() + b"]")
    return path


def thousand_keys(folder: Path) -> Path:
    return _between_good(folder, "keys.jsonl", json.dumps({f"k{i}": i for i in range(1000)}).encode())


def escaped_quotes(folder: Path) -> Path:
    """Quadratic for a scanner that starts again at each quote of a string that is never closed."""
    return _between_good(folder, "quotes.jsonl", b'{"a":"' + b'\\"' * 2_000_000 + b"[" * 100)


def long_field(folder: Path) -> Path:
    path = folder / "field.csv"
    path.write_text(f'prompt,completion\none,{"x" * 131_073}\ntwo,"{"y" * 131_073}"\n', encoding="utf-8")
    return path


def many_columns(folder: Path) -> Path:
    path = folder / "columns.csv"
    path.write_text(",".join(f"c{i}" for i in range(10_000)) + "\n" + ",".join("1" * 10_000) + "\n", encoding="utf-8")
    return path


def many_stray_quotes(folder: Path) -> Path:
    """Each line closes a field and opens one, so the record goes on for 100,000 lines and then fails; so does the one after it."""
    path = folder / "stray.csv"
    path.write_text("prompt,completion\n" + 'x",y,"\n' * 100_000 + '"a\n', encoding="utf-8")
    return path


def lying_footer(folder: Path) -> Path:
    path = folder / "lying.parquet"
    path.write_bytes(b"PAR1" + b"\x15\x00" * 500 + struct.pack("<I", 0x7FFFFFFF) + b"PAR1")
    return path


def gzip_bomb(folder: Path) -> Path:
    path = folder / "bomb.jsonl"  # not named .gz: the content tells
    path.write_bytes(gzip.compress(b"\0" * (50 * 2**20)))
    return path


def zip_slip(folder: Path) -> Path:
    path = folder / "slip.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escaped.jsonl", GOOD)
    return path


def tar_slip(folder: Path) -> Path:
    path = folder / "slip.json"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("../../escaped.jsonl")
        info.size = len(GOOD)
        archive.addfile(info, io.BytesIO(GOOD.encode()))
    return path


def link_out(folder: Path) -> Path:
    inside = folder / "inside"
    inside.mkdir()
    (folder / "secret.jsonl").write_text(GOOD + "\n", encoding="utf-8")
    (inside / "link.jsonl").symlink_to(folder / "secret.jsonl")
    return inside / "link.jsonl"


def long_chat(folder: Path) -> Path:
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i}"} for i in range(300)]
    return _between_good_chat(folder, "chat300.jsonl", turns)


def long_prompt(folder: Path) -> Path:
    return _between_good_chat(
        folder, "prompt.jsonl", [{"role": "user", "content": "word " * 200_000}, {"role": "assistant", "content": "yes"}]
    )


def long_answer(folder: Path) -> Path:
    return _between_good_chat(
        folder, "answer.jsonl", [{"role": "user", "content": "go on"}, {"role": "assistant", "content": "word " * 200_000}]
    )


def _between_good_chat(folder: Path, name: str, turns: list[dict[str, str]]) -> Path:
    good = json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]})
    path = folder / name
    path.write_text("\n".join((good, json.dumps({"messages": turns}), good)) + "\n", encoding="utf-8")
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    maker.__name__: maker
    for maker in (
        deep_nest, deep_nest_json, long_line, long_item, thousand_keys, escaped_quotes, long_field, many_columns, many_stray_quotes,
        lying_footer, gzip_bomb, zip_slip, tar_slip, link_out, long_chat, long_prompt, long_answer,
    )
}  # fmt: skip
