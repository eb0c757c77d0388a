"""The checkpoint writer killed at each of its steps, on a full or broken disk, and its files damaged: matrix A2, A4, A5.

`make test-faults` runs the larger counts.
"""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from luthier.core.errors import RunError
from luthier.train import checkpoint
from luthier.train.checkpoint import latest_checkpoint, save_checkpoint

LARGE = bool(os.environ.get("LUTHIER_LARGE"))
DAMAGES = 300 if LARGE else 30
TENSORS = {"master.a": torch.arange(500.0), "optimiser.all.exp_avg": torch.ones(500)}

# 1 before the temporary folder, 2 in the middle of the weights, 3 before fsync, 4 before the manifest, 5 in the middle of the manifest,
# 6 before the rename, 7 before pruning, 8 in the middle of pruning
KILL = """
import os, sys
from pathlib import Path
import torch
from luthier.train import checkpoint as c
point = int(sys.argv[2])
tensors = {"master.a": torch.arange(500.0) + 1, "optimiser.all.exp_avg": torch.ones(500)}
die = lambda *a, **k: os._exit(9)
def weights(t, path):
    Path(path).write_bytes(b"half"); os._exit(9)
write_text = c.Path.write_text
def text(self, data, **k):
    if self.name == c.MANIFEST and point == 4: os._exit(9)
    if self.name == c.MANIFEST and point == 5:
        write_text(self, data[: len(data) // 2]); os._exit(9)
    return write_text(self, data, **k)
rmtree = c.shutil.rmtree
def prune(path, **k):
    if Path(path).name.startswith("step-"):
        if point == 8: next(Path(path).iterdir()).unlink()
        os._exit(9)
    rmtree(path, **k)
if point == 1: c.Path.mkdir = die
if point == 2: c.save_file = weights
if point == 3: c._fsync = die
if point in (4, 5): c.Path.write_text = text
if point == 6: c.Path.rename = die
if point in (7, 8): c.shutil.rmtree = prune
c.save_checkpoint(Path(sys.argv[1]), step=30, tensors=tensors, state={"n": 30}, key="k")
os._exit(8)
"""


@pytest.mark.parametrize("point", range(1, 9))
def test_killed_at_any_step_of_the_writer_leaves_the_old_or_the_new(tmp_path: Path, point: int) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, step=step, tensors=TENSORS, state={"n": step}, key="k")
    done = subprocess.run([sys.executable, "-c", KILL, str(tmp_path), str(point)], capture_output=True, check=False)
    assert done.returncode == 9, done.stderr
    found = latest_checkpoint(tmp_path, key="k")
    assert found is not None and found.step == (30 if point >= 7 else 20) and found.state == {"n": found.step}
    assert torch.equal(found.tensors["master.a"], TENSORS["master.a"] + (1 if found.step == 30 else 0))
    assert not list(tmp_path.glob(".tmp-*"))  # what was left over is gone
    save_checkpoint(tmp_path, step=40, tensors=TENSORS, state={"n": 40}, key="k")
    assert sorted(p.name for p in tmp_path.iterdir())[-1] == "step-000040" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", range(6))
def test_a_disk_that_fails_at_any_call_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: int) -> None:
    """The n-th of: weights, state, and their syncs, manifest and its sync fails; it works again once there is space."""
    save_checkpoint(tmp_path, step=10, tensors=TENSORS, state={"n": 10}, key="k")
    counted = [0]

    def failing(function):
        def call_it(*args, **options):
            counted[0] += 1
            if counted[0] == call + 1:
                raise OSError(number, os.strerror(number))
            return function(*args, **options)

        return call_it

    monkeypatch.setattr(checkpoint, "save_file", failing(checkpoint.save_file))
    monkeypatch.setattr(checkpoint.Path, "write_text", failing(Path.write_text))
    monkeypatch.setattr(checkpoint.os, "fsync", failing(os.fsync))
    with pytest.raises(RunError, match="bytes") as caught:
        save_checkpoint(tmp_path, step=20, tensors=TENSORS, state={"n": 20}, key="k")
    monkeypatch.undo()
    assert "step-000020" in caught.value.where and "free" in caught.value.message and os.strerror(number) in caught.value.message
    found = latest_checkpoint(tmp_path, key="k")
    assert found is not None and found.step == 10 and not list(tmp_path.glob(".tmp-*"))
    save_checkpoint(tmp_path, step=20, tensors=TENSORS, state={"n": 20}, key="k")
    assert latest_checkpoint(tmp_path, key="k").step == 20  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(DAMAGES))
def test_any_damage_is_seen_before_loading(tmp_path: Path, seed: int) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, step=step, tensors={"x": TENSORS["master.a"] + step}, state={"n": step}, key="k")
    rng = random.Random(seed)
    newest, older = tmp_path / "step-000020", tmp_path / "step-000010"
    victim = newest / rng.choice(["state.safetensors", "state.json", "manifest.json"])
    data = bytearray(victim.read_bytes())
    kind = rng.choice(["flip", "cut", "zero", "swap", "gone"])
    if kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        victim.write_bytes(data)
    elif kind == "cut":
        victim.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "zero":
        victim.write_bytes(bytes(len(data)))
    elif kind == "swap":
        victim.write_bytes((older / victim.name).read_bytes())
    else:
        victim.unlink()
    found = latest_checkpoint(tmp_path, key="k")
    assert found is not None
    if found.step == 20:  # only a change that says the same: the manifest's own bytes carry no data but these
        manifest = json.loads((newest / "manifest.json").read_text(encoding="utf-8"))
        assert victim.name == "manifest.json" and manifest["key"] == "k"
    assert torch.equal(found.tensors["x"], TENSORS["master.a"] + found.step) and found.state == {"n": found.step}
