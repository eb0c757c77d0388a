"""Answers that hang, or for which memory runs out: matrix A7, A9. Through the real command, in which one function is replaced."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.test_parallel import _env
from tests.fixtures.workplace import make_workplace

from luthier.train.watchdog import EXIT_HUNG

# argv: what happens, then the command
TROUBLE = """
import sys, time
kind, sys.argv[1:] = sys.argv[1], sys.argv[2:]
from luthier.generate import local
decode, calls = local._decode_batch, [0]
def call(model, requests, *more, **named):
    calls[0] += 1
    while kind == "hangs" and calls[0] > 3: time.sleep(1)
    if kind == "large" and len(requests) > 4 or kind == "any" and calls[0] > 3 and "on_first" not in named:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    return decode(model, requests, *more, **named)
local._decode_batch = call
from luthier.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_workplace(tmp_path_factory.mktemp("answers"))
    (root / "trouble.py").write_text(TROUBLE, encoding="utf-8")
    return root


def _run(place: Path, name: str, kind: str = "none", **more: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, str(place / "trouble.py"), kind, "run", str(place / "train.jsonl"), "--instruction", "Name the kind.", "--input",
        "text", "--output", "category", "--model", str(place / "model"), "--run-dir", str(place / name), "--epochs", "1", "--batch", "8",
        "--lr", "0.001", "--set", "arms.shots=[1]", "--set", "arms.dev_items=6", "--set", "arms.latency_items=2", "--set",
        "model.dtype=float32", "--set", "arms.consistency_items=0", "--set", "arms.max_new_tokens=8", "--set", "probes.safety=false",
        "--set", "probes.retention=false", "--threads", "1", "--json",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, env={**_env(), **more}, timeout=240, check=False)


def _scores(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[float, int]]:
    assert done.returncode == 0, done.stderr
    return {arm["name"]: (arm["score"], arm["n"]) for arm in json.loads(done.stdout.strip().splitlines()[-1])["arms"]}


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, tuple[float, int]]:
    return _scores(_run(place, "whole"))


def test_a_hang_is_given_up_and_the_same_command_goes_on(place: Path, whole: dict[str, tuple[float, int]]) -> None:
    done = _run(place, "hangs", "hangs", LUTHIER_ANSWERS_LIMIT_S="3")
    stacks = (place / "hangs" / "stacks.txt").read_text(encoding="utf-8")
    assert done.returncode == EXIT_HUNG, done.stderr
    for text in (done.stderr, stacks):
        assert "answers: not done after 3 s" in text and "LUTHIER_ANSWERS_LIMIT_S" in text and " in generate" in text and " in call" in text
    kept = len((place / "hangs" / "journal" / "generations.jsonl").read_text(encoding="utf-8").splitlines())
    assert kept > 0
    assert _scores(_run(place, "hangs")) == whole


def test_half_as_many_at_once_where_memory_runs_out(place: Path, whole: dict[str, tuple[float, int]]) -> None:
    done = _run(place, "large", "large")
    assert _scores(done) == whole
    assert "memory ran out, at most 4 prompts at once from here on" in done.stderr


def test_where_not_one_fits_the_arms_fail_and_the_rest_stands(place: Path) -> None:
    done = _run(place, "any", "any")
    assert done.returncode == 0, done.stderr
    arms = {arm["name"]: arm for arm in json.loads(done.stdout.strip().splitlines()[-1])["arms"]}
    failed = {name: arm["failed"] for name, arm in arms.items() if arm["failed"]}
    assert failed and all(
        "memory ran out while one prompt was answered" in why and "--set arms.shots=[2]" in why for why in failed.values()
    )
    assert arms["nearest neighbour"]["failed"] is None and arms["nearest neighbour"]["n"] > 0
