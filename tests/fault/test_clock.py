"""A wall clock that jumps by a day, forward or back, while a run goes on: matrix A10. Nothing that is measured or decided may notice.

Through the real command on a tiny model, with the C library's clock replaced in its process.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.e2e.test_parallel import _command, _env, _go, _result
from tests.fixtures.workplace import make_workplace

from luthier.core.hashing import sha256_file
from luthier.kernels.compiled import COMPILERS

DAY_S = 86_400
SOURCE = Path(__file__).resolve().parents[1] / "fixtures" / "jumping_clock.c"
COMPILER = next((found for name in ("cc", "gcc", *COMPILERS) if (found := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="needs Linux and a C compiler, for a library that stands before the clock"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = make_workplace(tmp_path_factory.mktemp("clock"))
    assert COMPILER is not None
    command = [COMPILER, "-x", "c", "-O1", "-shared", "-fPIC", str(SOURCE), "-o", str(place / "clock.so"), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return place


@pytest.fixture(scope="module")
def whole(place: Path) -> dict:
    return _result(_go(_command(place, "whole", ranks=1, epochs=4)))


def _env_of(place: Path, flag: Path, jump_s: int) -> dict[str, str]:
    return {**_env(), "LD_PRELOAD": str(place / "clock.so"), "CLOCK_JUMPS_WITH": str(flag), "CLOCK_JUMP_S": str(jump_s)}


def _start(place: Path, run_dir: str, flag: Path, jump_s: int) -> subprocess.Popen[str]:
    """A training whose clock has jumped after five updates."""
    command = _command(place, run_dir, ranks=1, epochs=4)
    env = _env_of(place, flag, jump_s)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    steps = place / run_dir / "journal" / "steps.jsonl"
    while process.poll() is None and not (steps.exists() and steps.read_text(encoding="utf-8").count("\n") >= 5):
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    flag.touch()
    return process


def _equal(got: dict, want: dict) -> None:
    assert got["losses"] == want["losses"] and got["dev_losses"] == want["dev_losses"]
    assert sha256_file(Path(got["adapter"])) == sha256_file(Path(want["adapter"]))


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_the_clock_of_the_test_jumps(place: Path, tmp_path: Path, jump_s: int) -> None:
    """Else the others could not fail."""
    show = "import time, datetime; print(time.time(), datetime.datetime.now().timestamp(), time.monotonic())"
    found = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", show], capture_output=True, text=True, check=True, env=_env_of(place, tmp_path / "now", jump_s)
        )
        found.append([float(number) for number in done.stdout.split()])
        (tmp_path / "now").touch()
    wall, date, measured = (after - before for before, after in zip(*found, strict=True))
    assert abs(wall - jump_s) < 60 and abs(date - jump_s) < 60 and 0 < measured < 60


@pytest.mark.timeout(600)
@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_a_jump_while_training_changes_nothing(place: Path, whole: dict, tmp_path: Path, jump_s: int) -> None:
    process = _start(place, f"jump{jump_s}", tmp_path / "now", jump_s)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    got = json.loads(out.strip().splitlines()[-1])
    _equal(got, whole)
    assert 0 < got["train_seconds"] < 240  # nor what was measured
    steps = (place / f"jump{jump_s}" / "journal" / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(0 < json.loads(line)["seconds"] < 240 for line in steps)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_a_run_that_was_killed_in_another_day_goes_on(place: Path, whole: dict, tmp_path: Path, jump_s: int) -> None:
    """While it lives a second one is refused, whatever the clocks say; when it is dead its lock is free and its checkpoints count."""
    first = _start(place, f"killed{jump_s}", tmp_path / "now", jump_s)
    first.send_signal(signal.SIGSTOP)  # or it would be through before the second has asked
    command = _command(place, f"killed{jump_s}", ranks=1, epochs=4)
    second = _go(command)
    assert second.returncode == 2 and f"process {first.pid}" in second.stderr, second.stderr
    first.kill()
    first.communicate()
    _equal(_result(_go(command)), whole)
