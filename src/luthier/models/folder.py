"""A model folder before anything loads it: what must be there, what must not, and whether the weight files are sound.

Imports no torch. A folder is untrusted: pickle is refused because loading it runs code, `auto_map` because it names code to run,
and the header of each safetensors file is checked against the file's size before a byte of it is mapped.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from luthier.core.errors import ModelError
from luthier.core.hashing import sha256_file
from luthier.models.catalogue import is_complete, read_manifest

MAX_JSON_BYTES = 4 * 2**20
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
UNCHANGED = "use an unchanged copy of the model"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor as its file announces it."""

    dtype: str
    shape: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder. Raises ModelError if it is not there, too large or not an object."""
    fix = UNCHANGED
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelError(f"has {path.stat().st_size:,} bytes, at most {MAX_JSON_BYTES:,} are read", where=str(path), fix=fix)
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            "is not there", where=str(path), fix="give the folder that holds config.json, safetensors and tokenizer.json"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot be read as JSON: {error}", where=str(path), fix=fix) from error
    if not isinstance(found, dict):
        raise ModelError(f"holds a {type(found).__name__}, expected an object", where=str(path), fix=fix)
    return cast("dict[str, Any]", found)


def stated_context(path: Path) -> int | None:
    """Tokens the model sees, as config.json states it, its attention window included; None where it states nothing."""
    config = read_json(path / "config.json")
    text = config.get("text_config")
    for part in (text if isinstance(text, dict) else {}, config):
        for key in ("max_position_embeddings", "n_positions"):
            if isinstance(part.get(key), int):
                window = part.get("sliding_window") if "sliding_attention" in (part.get("layer_types") or ()) else None
                return min(part[key], window) if isinstance(window, int) else part[key]
    return None


def refuse_remote_code(path: Path) -> None:
    """Raise ModelError if a config of the folder asks for Python code of the folder to be run."""
    asking: list[str] = []
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if (path / name).is_file() and read_json(path / name).get("auto_map"):
            asking.append(name)
    if asking:
        code = ", ".join(sorted(p.name for p in path.glob("*.py"))) or "none of it in the folder"
        raise ModelError(
            f"{', '.join(asking)} asks to run code that comes with the model (auto_map; Python files: {code}); that is never done",
            where=str(path),
            fix="choose a model whose architecture transformers has itself, such as smollm2-135m",
        )


def weight_files(path: Path) -> tuple[Path, ...]:
    """The safetensors files of the folder, by its index if it has one. Raises ModelError where there are none."""
    index_path = path / "model.safetensors.index.json"
    if index_path.is_file():
        mapped = read_json(index_path).get("weight_map")
        names = sorted({str(name) for name in cast("dict[str, object]", mapped).values()}) if isinstance(mapped, dict) else []
        fix = "copy the model again, all its files"
        if not names:
            raise ModelError("has no weight_map", where=str(index_path), fix=fix)
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors") or not (path / name).is_file():
                raise ModelError(f"names {name!r}, which is not a weight file of this folder", where=str(index_path), fix=fix)
        return tuple(path / name for name in names)
    if (path / "model.safetensors").is_file():
        return (path / "model.safetensors",)
    pickled = sorted(p.name for p in path.iterdir() if p.suffix in PICKLED)
    if pickled:
        raise ModelError(
            f"has its weights only in pickled form ({', '.join(pickled)}), and loading that runs whatever code is in it",
            where=str(path),
            fix="take the model's safetensors version, or have its author convert it",
        )
    gguf = sorted(p.name for p in path.glob("*.gguf"))
    found = f" ({', '.join(gguf)} cannot be trained)" if gguf else ""
    raise ModelError(f"has no model.safetensors{found}", where=str(path), fix="take the model's safetensors version")


def read_headers(path: Path) -> dict[str, TensorHeader]:
    """Every tensor of a safetensors file: name, type and shape. Raises ModelError unless header and file agree to the byte.

    Checked: header length against the file, JSON, known types, non-negative sizes, offsets that begin at 0, follow one another
    without gap or overlap and end where the file ends.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise _damaged(path, f"announces a header of {length:,} bytes in a file of {size:,}")
        text = file.read(length)
    try:
        header: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"has a header that is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "has a header that is not an object")
    entries = cast("dict[str, Any]", header)
    entries.pop("__metadata__", None)
    spans: list[tuple[int, int, str]] = []
    out: dict[str, TensorHeader] = {}
    for name, about in entries.items():
        out[name], start, end = _tensor(path, name, about)
        spans.append((start, end, name))
    at = 0
    for start, end, name in sorted(spans):
        if start != at:
            raise _damaged(path, f"places {name!r} at byte {start:,}, expected {at:,}")
        at = end
    if at != size - 8 - length:
        raise _damaged(path, f"holds {size - 8 - length:,} bytes of tensors, its header announces {at:,}")
    return out


def _tensor(path: Path, name: str, about: object) -> tuple[TensorHeader, int, int]:
    fields = cast("Mapping[str, Any]", about) if isinstance(about, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) and len(cast("list[Any]", offsets)) == 2 else [-1]
    if dtype not in _DTYPE_BITS or any(type(number) is not int or number < 0 for number in numbers):
        raise _damaged(path, f"describes {name!r} in a way that cannot be: {json.dumps(about)[:200]}")
    bits = _DTYPE_BITS[str(dtype)]
    for extent in cast("list[int]", shape):
        bits *= extent
    start, end = cast("list[int]", offsets)
    if end - start != (bits + 7) // 8:
        raise _damaged(path, f"gives {name!r} {end - start:,} bytes, its shape {shape} needs {(bits + 7) // 8:,}")
    return TensorHeader(str(dtype), tuple(cast("list[int]", shape))), start, end


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(
        f"the weight file {what}", where=str(path), fix="copy or download the file again: it is damaged or was made to look like weights"
    )


def weights_sha256(path: Path, files: tuple[Path, ...]) -> str:
    """Names the weights of a folder: sha256 over the names and digests of its weight files.

    A pulled model's digests come from its manifest; any other folder is read whole (about a second per GB).
    """
    known: Any = read_manifest(path).get("files", {}) if is_complete(path) else {}
    lines = [f"{file.name} {known[file.name]['sha256'] if file.name in known else sha256_file(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
