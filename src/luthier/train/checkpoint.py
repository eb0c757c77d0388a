"""Checkpoints that are either whole or not there.

    .tmp-step-000040/   written and fsynced first
        state.safetensors   masters, moments, random state
        state.json          update number, best dev loss, history
        manifest.json       last: size and sha256 of each file
    step-000040/        the same folder, renamed; only then are older ones pruned

The latest checkpoint is the newest one whose manifest holds, not the highest number.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from luthier.core.hashing import sha256_file
from luthier.store.files import disk_error

SCHEMA = 2  # 1 had the moments of AdamW alone, and random state
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One valid checkpoint, read back."""

    path: Path
    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(root: Path, *, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], key: str, keep: int = 2) -> Path:
    """Write `root/step-N` atomically and prune all but the newest `keep`. `key` is the digest of what the training depends on."""
    root.mkdir(parents=True, exist_ok=True)
    final, tmp = root / f"step-{step:06d}", root / f".tmp-step-{step:06d}"
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp / "state.safetensors")
        (tmp / "state.json").write_text(json.dumps(dict(state)), encoding="utf-8")
        names = ("state.safetensors", "state.json")
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
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
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
        return set(manifest["files"]) == {"state.safetensors", "state.json"} and all(
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
        try:
            with safe_open(path / "state.safetensors", framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        except SafetensorError:
            continue
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return Checkpoint(path, int(path.name.removeprefix("step-")), tensors, state)
    return None
