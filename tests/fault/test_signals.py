"""SIGTERM and SIGINT in each phase of a training: saved within an update, the exit code of the signal, and the same end. Matrix A3.

Through the real command, in which one function sends the signal as it begins. Of `luthier run`: tests/e2e/test_run.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.e2e.test_parallel import _command, _env, _go, _result
from tests.fixtures.workplace import make_workplace

LARGE = bool(os.environ.get("LUTHIER_LARGE"))

# argv: phase, number of the signal, then the command. Some calls go well first: of the updates those of the forecast, too.
SIGNALLED = """
import os, sys, time
phase, number, sys.argv[1:] = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
calls = [0]
def after(function, good):
    def call(*args, **options):
        calls[0] += 1
        if calls[0] == good + 1:
            os.kill(os.getpid(), number)
            if phase == "hangs": time.sleep(60)
        return function(*args, **options)
    return call
from luthier.pipeline import plan, prepare, tune
from luthier.train import loop
if phase == "prepare": prepare.encode_examples = after(prepare.encode_examples, 0)
if phase == "load": plan.open_model = after(plan.open_model, 0)
if phase in ("train", "hangs"): loop.train_step = after(loop.train_step, 12)
if phase == "look": loop.evaluate_loss = after(loop.evaluate_loss, 1)
if phase == "save": loop.save_checkpoint = after(loop.save_checkpoint, 1)
if phase == "result": tune.save_trained = after(tune.save_trained, 0)
from luthier.cli.main import main
main()
"""
UPDATES = {"prepare": 1, "load": 1, "train": 9, "look": 10, "save": 7}  # made when it ends; 4 of 13 updates are the forecast's
BOTH = [(phase, number) for phase in (*UPDATES, "result") for number in (signal.SIGTERM, signal.SIGINT)]
CASES = BOTH if LARGE else [case for i, case in enumerate(BOTH) if i % 2 == (i // 2) % 2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("signals"))


@pytest.fixture(scope="module")
def whole(place: Path) -> dict:
    return _result(_go(_command(place, "whole", ranks=1)))


def _signalled(place: Path, name: str, phase: str, number: signal.Signals) -> list[str]:
    script = place / "signalled.py"
    script.write_text(SIGNALLED, encoding="utf-8")
    words = _command(place, name, ranks=1, more=("--set", "train.eval_every=5"))
    at = words.index("luthier")
    return [*words[: at - 1], str(script), phase, str(int(number)), *words[at + 1 :]]


@pytest.mark.parametrize(("phase", "number"), CASES)
def test_asked_to_stop_in_any_phase(place: Path, whole: dict, phase: str, number: signal.Signals) -> None:
    name = f"{phase}-{number.name}"
    done = _go(_signalled(place, name, phase, number))
    run_dir = place / name
    if phase == "result":  # nothing is left to be stopped
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 128 + number and "to go on: luthier train" in done.stderr and "Traceback" not in done.stderr, done.stderr
        updates = (run_dir / "journal" / "steps.jsonl").read_text(encoding="utf-8").count("\n")
        saved = max(int(path.name.removeprefix("step-")) for path in (run_dir / "train" / "checkpoints").glob("step-*"))
        assert updates == saved == UPDATES[phase]
    again = _result(_go(_command(place, name, ranks=1, more=("--set", "train.eval_every=5"))))
    assert again["losses"] == whole["losses"]


def test_a_second_signal_ends_it_at_once_and_nothing_is_lost(place: Path, whole: dict) -> None:
    command = _signalled(place, "hangs", "hangs", signal.SIGTERM)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_env())
    steps = place / "hangs" / "journal" / "steps.jsonl"
    deadline = time.monotonic() + 120
    while not (steps.exists() and steps.read_text(encoding="utf-8").count("\n") >= 8) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)  # the first signal has come, and the update hangs
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM and time.monotonic() - started < 2
    again = _result(_go(_command(place, "hangs", ranks=1, more=("--set", "train.eval_every=5"))))
    assert again["losses"] == whole["losses"]
