"""Content digests: the same content has the same digest on every machine and in every process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path, PurePath
from typing import cast


def sha256_text(text: str) -> str:
    """Hex sha256 of the UTF-8 bytes of `text`; lone surrogates, which files can hold, are hashed as they are."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in pieces. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(obj: object) -> str:
    """One text for one value: sorted keys, no spaces, ASCII, floats as `repr`.

    Takes None, bool, int, float, str, paths, sequences, sets of strings, mappings with string keys and dataclasses. Raises
    ValueError for NaN or infinity and TypeError for anything else, so that nothing is hashed by its memory address.
    """
    return json.dumps(_plain(obj), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(obj: object) -> str:
    """Hex sha256 of `canonical_json(obj)`."""
    return sha256_text(canonical_json(obj))


def _plain(obj: object) -> object:
    if obj is None or isinstance(obj, bool | int | float | str):
        return obj
    if isinstance(obj, PurePath):
        return obj.as_posix()
    if is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: _plain(getattr(obj, field.name)) for field in fields(obj)}
    if isinstance(obj, Mapping):
        mapping = cast("Mapping[object, object]", obj)
        for key in mapping:
            if not isinstance(key, str):
                raise TypeError(f"a key is {key!r} ({type(key).__name__}), expected text")
        return {str(key): _plain(value) for key, value in mapping.items()}
    if isinstance(obj, set | frozenset):
        members = cast("set[object]", obj)
        if not all(isinstance(member, str) for member in members):
            raise TypeError("a set can only be hashed when it holds nothing but text")
        return sorted(cast("set[str]", obj))
    if isinstance(obj, Sequence) and not isinstance(obj, bytes | bytearray | memoryview):
        return [_plain(item) for item in cast("Sequence[object]", obj)]
    raise TypeError(f"a {type(obj).__name__} has no canonical form")
