"""`luthier chat` on a pseudo terminal, with an engine that plays a script: what a person sees, and what Ctrl-C does."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.hostile import HOSTILE

SCRIPTED = Path(__file__).resolve().parents[1] / "fixtures" / "scripted_chat.py"


class Terminal:
    """The command on a pseudo terminal, and everything it wrote there."""

    def __init__(self, script: dict[str, Any], words: list[str], root: Path, columns: int = 80) -> None:
        (root / "script.json").write_text(json.dumps(script), encoding="utf-8")
        self.child, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, columns))
        env = {**os.environ, "LUTHIER_CACHE": str(root / "cache"), "TERM": "dumb", "INPUTRC": "/dev/null"}
        env.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPTED), str(root / "script.json"), "chat", "some-run", *words],
            stdin=slave, stdout=slave, stderr=slave, env=env, cwd=root, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""
        self.all = ""

    def until(self, wanted: str, timeout_s: float = 60.0) -> str:
        """What was written up to and with `wanted`, a regular expression, since the last call."""
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(wanted, self.seen, re.DOTALL)):
            assert time.monotonic() < deadline, f"no {wanted!r} in {self.seen!r}"
            assert self._read(), f"it left before {wanted!r}: {self.seen!r}"
        part, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return part

    def _read(self) -> bool:
        """What it writes within a moment; whether its end is still open."""
        if select.select([self.child], [], [], 0.2)[0]:
            try:
                read = os.read(self.child, 65536).decode("utf-8", "replace")
            except OSError:
                return False
            self.seen, self.all = self.seen + read, self.all + read
        return True

    def type(self, text: str) -> None:
        """Type a line, once the prompt is there."""
        self.until("> ")
        os.write(self.child, f"{text}\n".encode())

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.kill(self.process.pid, signal.SIGINT)

    def leaves(self) -> int:
        """Its exit code. What it still writes is read: nobody reading would hold it up."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None and self._read():
            if time.monotonic() >= deadline:
                os.kill(self.process.pid, signal.SIGUSR1)
                for _ in range(10):
                    self._read()
                raise AssertionError(f"it stays, having written {self.all[-6000:]!r}")
        return self.process.wait(timeout=30)


Open = Callable[..., Terminal]


@pytest.fixture
def open_terminal(tmp_path: Path) -> Iterator[Open]:
    terminals: list[Terminal] = []

    def opened(*words: str, columns: int = 80, **script: Any) -> Terminal:
        terminals.append(Terminal({"answers": ["We open at nine."], **script}, list(words), tmp_path, columns))
        return terminals[-1]

    yield opened
    for terminal in terminals:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.child)


def _records(root: Path) -> list[dict[str, Any]]:
    [path] = (root / "cache" / "chat").rglob("*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_ctrl_c_stops_the_answer_and_then_leaves(open_terminal: Open, tmp_path: Path) -> None:
    terminal = open_terminal(answers=["abc" * 300], pause_s=0.05)
    terminal.type("hello")
    terminal.until("abcabc")  # it is there long before the end
    terminal.interrupt()
    terminal.until(r"\(stopped\)")
    terminal.type("/good")
    terminal.until("error: the answer was stopped before its end")  # and the chat goes on
    terminal.type("/bad")
    terminal.until("is marked bad")
    terminal.until("> ")
    for _ in range(10):  # between the prompt's appearance and the reading of a line one can be lost; a person presses again
        terminal.interrupt()
        try:
            terminal.until(r"to go on: luthier chat some-run --continue", timeout_s=5.0)
        except AssertionError:
            continue
        break
    assert terminal.leaves() == 130
    answer = _records(tmp_path)[1]["answers"][0]
    assert answer["finish"] == "cancelled" and 6 <= len(answer["text"]) < 300


def test_a_second_ctrl_c_leaves_at_once(open_terminal: Open) -> None:
    terminal = open_terminal(answers=["abc" * 300], pause_s=2.0)  # each step takes so long that the first is not heard yet
    terminal.type("hello")
    terminal.until("a")
    terminal.interrupt()
    time.sleep(0.1)
    terminal.interrupt()
    terminal.until("to go on")
    assert terminal.leaves() == 130


def test_hostile_answers_never_move_the_cursor(open_terminal: Open, tmp_path: Path) -> None:
    text = " ".join(part.encode("utf-8", "replace").decode() for part in HOSTILE)
    terminal = open_terminal("--max-new-tokens", "20000", answers=[text], context=40_000)
    terminal.type("show")
    shown = terminal.until(r"ends with quotes \"\"\r\n")
    terminal.type("/save copy.jsonl")
    terminal.until("copy.jsonl")
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", shown)
    assert "\r" not in shown.replace("\r\n", "") and "\u202e" not in shown and "⟨U+001B⟩]52;" in shown
    assert _records(tmp_path)[1]["answers"][0]["text"] == text  # kept as it was written


def test_side_by_side_and_one_under_the_other(open_terminal: Open) -> None:
    terminal = open_terminal("--compare", "base", answers=["We open at nine. " * 6])
    terminal.type("hello")
    terminal.until(r"tuned +│ base\r\n─+┼─+\r\n")
    lines = terminal.until(r"\r\n> ").splitlines()
    assert len(lines) == 4 and all("│" in line for line in lines[:3])
    terminal.seen = "> "
    terminal.type("/edit [base] better")
    terminal.until(r"-1:base is marked edited")
    terminal.type("quit")
    terminal.until("rows of what you marked: luthier feedback some-run --out rows.jsonl")
    assert terminal.leaves() == 0
    narrow = open_terminal("--compare", "base", "--no-log", columns=40)
    narrow.type("hello")
    narrow.until(r"\[tuned\] We open at nine.\r\n\[base\] .enin ta nepo eW\r\n")


def test_old_turns_are_left_out_in_plain_sight(open_terminal: Open) -> None:
    terminal = open_terminal("--max-new-tokens", "20", context=100)
    for number in range(3):
        terminal.type(f"turn {number}")
    terminal.until("the oldest turn is not shown any more: with it, the prompt would not fit")
    terminal.type("y" * 90)
    terminal.until("error: tuned: the prompt has 97 tokens and the answer may take 20; the model sees 100")
    terminal.type("/help")
    terminal.until("/multi")
    terminal.type("/nope")
    terminal.until("there is no command /nope")


def test_going_on_says_so(open_terminal: Open) -> None:
    first = open_terminal()
    first.type("hello")
    first.type("/exit")
    first.until("kept in .*to go on: luthier chat some-run --continue")
    assert first.leaves() == 0
    second = open_terminal("--continue")
    second.until("Going on after 1 turn;")
    second.type("/multi")
    second.until(r"\. ")
