"""Checkpoints that are either whole or not there.

    .tmp-step-000040/   written and fsynced first
        state.safetensors   masters, moments, random state
        state.json          update number, best dev loss, history
        manifest.json       last: size and sha256 of each file
    step-000040/        the same folder, renamed; only then are older ones pruned

The latest checkpoint is the newest one whose manifest holds, not the highest number. Rank 0 writes and reads it for all ranks, also
where weights are sharded, a tensor at a time: one format that any number of ranks goes on from, on disks that need not be shared.
torch.distributed.checkpoint is not used: its index (`.metadata`) is a pickle.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from luthier.core.hashing import sha256_file
from luthier.store.files import disk_error

SCHEMA = 2  # 1 had the moments of AdamW alone, and random state
MANIFEST, WEIGHTS = "manifest.json", "state.safetensors"
FROM_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64, "I64": torch.int64}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One valid checkpoint: its state is read, its tensors are read when asked for."""

    path: Path
    step: int
    state: dict[str, Any]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors, read now."""
        with self.open() as file:
            return {name: file.read(name) for name in file.header()}

    @contextmanager
    def open(self) -> Generator[TensorFile]:
        """The tensors, to be read one by one."""
        with safe_open(self.path / WEIGHTS, framework="pt") as file:
            yield TensorFile(file)


@dataclass(frozen=True, slots=True)
class TensorFile:
    """An open safetensors file."""

    file: Any  # safetensors' own handle, which has no public type

    def header(self) -> dict[str, tuple[list[int], str]]:
        """Name -> shape and torch's name of the dtype, in the order of names."""
        slices = {name: self.file.get_slice(name) for name in sorted(self.file.keys())}
        return {name: (piece.get_shape(), str(FROM_STORED[piece.get_dtype()]).removeprefix("torch.")) for name, piece in slices.items()}

    def read(self, name: str, first: int | None = None, end: int | None = None) -> Tensor:
        """A tensor, or its rows from `first` to before `end`."""
        return self.file.get_tensor(name) if first is None else self.file.get_slice(name)[first:end]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Tensors that are never all in memory: name -> (dtype, shape), and their values in this order, in blocks of any size."""

    header: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    values: Iterator[Tensor]

    @property
    def num_bytes(self) -> int:
        """Of all values."""
        return sum(math.prod(shape) * dtype.itemsize for dtype, shape in self.header.values())

    def write(self, path: Path) -> None:
        """A safetensors file: length of the header, header as JSON, values. Raises OSError."""
        names = {dtype: name for name, dtype in FROM_STORED.items()}
        header: dict[str, object] = {}
        end = 0
        for name, (dtype, shape) in self.header.items():
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for value in self.values:
                file.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            assert file.tell() == 8 + len(text) + end


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(
    root: Path, *, step: int, tensors: Mapping[str, Tensor] | Blocks, state: Mapping[str, Any], key: str, keep: int = 2
) -> Path:
    """Write `root/step-N` atomically and prune all but the newest `keep`. `key` is the digest of what the training depends on."""
    root.mkdir(parents=True, exist_ok=True)
    final, tmp = root / f"step-{step:06d}", root / f".tmp-step-{step:06d}"
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    try:
        if isinstance(tensors, Blocks):
            tensors.write(tmp / WEIGHTS)
        else:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp / WEIGHTS)
        (tmp / "state.json").write_text(json.dumps(dict(state)), encoding="utf-8")
        names = (WEIGHTS, "state.json")
        for name in names:
            _fsync(tmp / name)
        files = {name: {"size": (tmp / name).stat().st_size, "sha256": sha256_file(tmp / name)} for name in names}
        (tmp / MANIFEST).write_text(json.dumps({"schema": SCHEMA, "step": step, "key": key, "files": files}), encoding="utf-8")
        _fsync(tmp / MANIFEST)
        _fsync(tmp)
        if final.exists():  # the same step again after a fall-back: replace it
            shutil.rmtree(final)
        tmp.rename(final)
        _fsync(root)
    except (OSError, SafetensorError) as error:  # safetensors hides a full disk in an error of its own
        shutil.rmtree(tmp, ignore_errors=True)
        is_blocks = isinstance(tensors, Blocks)
        num_bytes = tensors.num_bytes if is_blocks else sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        raise disk_error(final, num_bytes, error if isinstance(error, OSError) else OSError(str(error))) from error
    steps = sorted(root.glob("step-*"))
    stale = [path for path in steps if path.name > final.name]  # damaged, or of another training: this one never came so far
    for old in (*stale, *[path for path in steps if path not in stale][:-keep]):
        shutil.rmtree(old, ignore_errors=True)
    return final


def _is_valid(path: Path, key: str) -> bool:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA or manifest["key"] != key:
            return False
        return set(manifest["files"]) == {WEIGHTS, "state.json"} and all(
            (path / name).stat().st_size == entry["size"] and sha256_file(path / name) == entry["sha256"]
            for name, entry in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def latest_checkpoint(root: Path, *, key: str) -> Checkpoint | None:
    """The newest valid checkpoint of this training, or None; leftovers of a torn write are removed."""
    if not root.is_dir():
        return None
    for stale in root.glob(".tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    for path in sorted(root.glob("step-*"), reverse=True):
        if not _is_valid(path, key):
            continue
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        found = Checkpoint(path, int(path.name.removeprefix("step-")), state)
        try:
            with found.open():
                return found
        except SafetensorError:
            continue
    return None
