"""A rank killed at any instant ends all ranks, and another number of them goes on to the same end: matrix A8.

`make test-faults` runs the larger count. Through the real command on a tiny model; whole and sharded weights in turn.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.e2e.test_parallel import _command, _env, _go, _result
from tests.fixtures.workplace import make_workplace

LARGE = bool(os.environ.get("LUTHIER_LARGE"))
KILLS = 20 if LARGE else 4
EPOCHS = 4
GONE_S = 60

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="ranks are found through /proc")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def alone(place: Path) -> dict:
    return _result(_go(_command(place, "alone", ranks=1, epochs=EPOCHS)))


def _ranks_of(launcher: int) -> list[int]:
    """Process numbers of the ranks under torchrun, or of the one process that is its own."""
    found: list[tuple[int, int]] = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if f"\nPPid:\t{launcher}\n" in status.read_text(encoding="utf-8"):
                environ = (status.parent / "environ").read_bytes().decode(errors="replace")
                found.append((int(environ.split("\0RANK=")[1].split("\0")[0]), int(status.parent.name)))
        except (OSError, IndexError):
            continue
    return [pid for _, pid in sorted(found)] or [launcher]


def _updates(run_dir: Path) -> int:
    steps = run_dir / "journal" / "steps.jsonl"
    return steps.read_text(encoding="utf-8").count("\n") if steps.exists() else 0


def _kill_one(place: Path, name: str, *, ranks: int, victim: int, after: int, delay_s: float, more: tuple[str, ...]) -> None:
    """Start, wait for so many more updates and a moment, kill one rank; all must be gone soon."""
    command = _command(place, name, ranks=ranks, epochs=EPOCHS, more=more)
    enough = _updates(place / name) + after
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_env(), start_new_session=True
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while (len(pids := _ranks_of(process.pid)) < ranks or _updates(place / name) < enough) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay_s)
        os.kill(pids[victim], signal.SIGKILL)
        process.communicate(timeout=GONE_S)  # no hang
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode != 0
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(KILLS))
def test_killed_as_two_then_as_one_it_ends_as_two(place: Path, alone: dict, number: int) -> None:
    """Either rank of two, after 0 (while it starts) to 11 updates; then the one process that goes on; two do the rest. 2 -> 1 -> 2."""
    rng = random.Random(number)
    more = ("--shard",) if number % 2 else ()
    name = f"killed-{number}"
    victim = number // 2 % 2
    after = rng.randrange(12)
    _kill_one(place, name, ranks=2, victim=victim, after=after, delay_s=rng.uniform(0, 0.05 if after else 4.0), more=more)
    _kill_one(place, name, ranks=1, victim=0, after=rng.randrange(8), delay_s=rng.uniform(0, 0.05), more=more)
    got = _result(_go(_command(place, name, ranks=2, epochs=EPOCHS, more=more)))
    assert len(got["losses"]) == len(alone["losses"])
    assert got["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert [step for step, _ in got["dev_losses"]] == [step for step, _ in alone["dev_losses"]]
