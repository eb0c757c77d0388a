"""A section that hangs is given up: stacks on stderr and in the run folder, exit code 75, and the same command goes on. Matrix A9.

Through the real command, in which one function is replaced by one that never returns.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.e2e.test_parallel import _command, _env, _go, _result
from tests.fixtures.workplace import make_workplace

from luthier.core.errors import ConfigError
from luthier.train.watchdog import EXIT_HUNG, MEDIANS, Watchdog

# argv: section, kind of hang, then the command. Updates and saves go well a few times first: a hang in the fourth is not a slow start.
HANG = """
import os, re, sys, time
section, kind, sys.argv[1:] = sys.argv[1], sys.argv[2], sys.argv[3:]
calls = [0]
def hang():
    while kind == "sleeps": time.sleep(1)
    while kind == "computes": pass
    re.match("(a+)+$", "a" * 64 + "b")  # keeps Python's lock for good
def after(function, good, only_rank="0"):
    def call(*args, **options):
        calls[0] += 1
        if calls[0] > good and os.environ.get("RANK", "0") == only_rank: hang()
        return function(*args, **options)
    return call
from luthier.pipeline import prepare
from luthier.train import checkpoint, loop, watchdog
watchdog.LAST_RESORT_S = 2.0
if section == "setup": prepare.encode_examples = after(prepare.encode_examples, 0)
if section == "update": loop.train_step = after(loop.train_step, 12, os.environ.get("HANGING_RANK", "0"))
if section == "save": checkpoint._fsync = after(checkpoint._fsync, 6)
from luthier.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("hangs"))


@pytest.fixture(scope="module")
def whole(place: Path) -> dict:
    return _result(_go(_command(place, "whole", ranks=1)))


def _hang(
    place: Path, section: str, kind: str, *, ranks: int = 1, shard: tuple[str, ...] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    script = place / "hang.py"
    script.write_text(HANG, encoding="utf-8")
    words = _command(place, f"{section}-{kind}-{ranks}{''.join(shard)}", ranks=ranks, more=shard)
    at = words.index("luthier")
    command = [*words[: at - 1], str(script), section, kind, *words[at + 1 :]]
    env = {**_env(), f"LUTHIER_{section.upper()}_LIMIT_S": "3", **more}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)


@pytest.mark.parametrize(("section", "kind", "where"), [
    ("setup", "sleeps", "prepare"), ("update", "computes", "attempt_update"), ("save", "sleeps", "save_checkpoint"),
])  # fmt: skip
def test_a_hang_is_given_up_and_the_same_command_goes_on(place: Path, whole: dict, section: str, kind: str, where: str) -> None:
    done = _hang(place, section, kind)
    run_dir = place / f"{section}-{kind}-1"
    stacks = (run_dir / "stacks.txt").read_text(encoding="utf-8")
    assert done.returncode == EXIT_HUNG == 75, done.stderr
    for text in (done.stderr, stacks):
        assert f"{section}: not done after 3 s" in text and f"LUTHIER_{section.upper()}_LIMIT_S" in text
        assert f" in {where}" in text and " in hang" in text and text.count("hread 0x") >= 2
    checkpoints = sorted(path.name for path in (run_dir / "train").glob("checkpoints/step-*"))
    assert checkpoints == {"setup": [], "update": ["step-000003", "step-000006"], "save": ["step-000003"]}[section]
    again = _result(_go(_command(place, run_dir.name, ranks=1)))
    assert again["losses"] == whole["losses"]


def test_a_hang_that_keeps_python_s_lock_ends_too(place: Path) -> None:
    """No thread of Python can run then: the last resort is one of C, which knows exit code 1 alone."""
    done = _hang(place, "setup", "keeps-the-lock")
    assert done.returncode == 1 and "Timeout" in done.stderr and " in hang" in done.stderr


@pytest.mark.parametrize("shard", [(), ("--shard",)])
def test_one_rank_that_hangs_ends_all(place: Path, shard: tuple[str, ...]) -> None:
    started = time.monotonic()
    done = _hang(place, "update", "sleeps", ranks=2, shard=shard, HANGING_RANK="1")
    assert done.returncode != 0 and time.monotonic() - started < 60
    assert "update: not done after 3 s" in done.stderr and "exitcode  : 75" in done.stderr, done.stderr


def test_limits() -> None:
    found: list[float] = []
    watch = Watchdog()
    watch._enter = lambda section: found.append(0.0 if section is None else section.limit_s)  # type: ignore[method-assign]
    for section in (watch.setup(), watch.update([]), watch.update([0.1, 9.0, 0.2]), watch.update([4.0, 5.0, 6.0]), watch.save()):
        with section:
            pass
    assert found[::2] == [600, 600, 60, MEDIANS * 5.0, 420]
    with watch.update([5.0], updates=3.0):
        pass
    assert found[-2] == 300


def test_a_section_within_a_section_and_none_at_all(tmp_path: Path) -> None:
    """The inner limit is the shorter one; after it the outer one counts again; outside nothing does."""
    code = (
        "import sys, time; from pathlib import Path; from luthier.train.watchdog import Watchdog\n"
        "w = Watchdog(stacks=Path(sys.argv[1]), setup_s=1.5, save_s=0.2)\n"
        "with w.save(): time.sleep(0.1)\n"
        "time.sleep(0.5)\n"
        "with w.setup():\n"
        "    with w.save(): time.sleep(0.1)\n"
        "    time.sleep(0.5)\n"
        "time.sleep(1.5); print('alive')\n"
        "with w.setup():\n"
        "    with w.save(): pass\n"
        "    time.sleep(20)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 75 and done.stdout == "alive\n" and "setup: not done after 1.5 s" in done.stderr
    assert "setup: not done" in (tmp_path / "s").read_text(encoding="utf-8")


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP here")
def test_a_process_that_was_stopped_did_not_hang() -> None:
    """Stopped for longer than the limit, as by Ctrl-Z and fg: the clock stands meanwhile. A hang after it is still one."""
    code = (
        "import time; from luthier.train import watchdog\n"
        "watchdog.STOPPED_S = 0.5\n"
        "w = watchdog.Watchdog(setup_s=8.0)\n"
        "with w.setup():\n"
        "    print('in', flush=True)\n"
        "    for _ in range(10): time.sleep(0.3)\n"
        "print('alive', flush=True)\n"
        "with w.setup(): time.sleep(30)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(10)
    process.send_signal(signal.SIGCONT)
    out, error = process.communicate(timeout=60)
    assert out == "alive\n" and process.returncode == EXIT_HUNG and error.count("not done after 8 s") == 1, error


@pytest.mark.parametrize("value", ["soon", "-1", "0", "inf", "nan"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LUTHIER_SAVE_LIMIT_S", value)
    with pytest.raises(ConfigError, match="LUTHIER_SAVE_LIMIT_S"):
        Watchdog.from_environment(None)
