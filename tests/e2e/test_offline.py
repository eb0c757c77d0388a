"""Nothing connects to anything: every command with its sockets taken away, from bad rows to an export. Matrix A13.

One process, in which opening a connection or looking up a name is written down and refused, and no variable says that it is offline.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fixtures.workplace import make_workplace

# argv: file for attempts; then commands as a JSON list of lists. Prints their exit codes as a JSON list on the last line.
CODE = """
import json, socket, sys, urllib.request
log, commands = sys.argv[1], json.loads(sys.argv[2])
def refused(name):
    def call(*args, **options):
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{name} {args[-1:]}\\n")
        raise OSError(101, "Network is unreachable")
    return call
for name in ("connect", "connect_ex", "sendto", "sendmsg"):
    setattr(socket.socket, name, refused(name))
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection"):
    setattr(socket, name, refused(name))
if commands == "try":
    for attempt in (socket.create_connection, socket.socket().connect, lambda to: urllib.request.urlopen(f"http://{to[0]}:{to[1]}")):
        try: attempt(("127.0.0.1", 9))
        except OSError: pass
    sys.exit()
from luthier.cli.main import main
codes = []
for words in commands:
    sys.argv = ["luthier", *words]
    try: main()
    except SystemExit as left: codes.append(left.code or 0)
    else: codes.append(0)
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("offline"))


def _go(place: Path, commands: object) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    log = place / "attempts"
    log.unlink(missing_ok=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    command = [sys.executable, "-c", CODE, str(log), json.dumps(commands)]
    env["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=env, timeout=900, check=False)
    return done, log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def test_an_attempt_would_be_seen(place: Path) -> None:
    _, attempts = _go(place, "try")
    assert len(attempts) >= 3


@pytest.mark.timeout(1000)
def test_no_command_attempts_a_connection(place: Path) -> None:
    rows = str(place / "train.jsonl")
    named = ("--instruction", "Name the kind.", "--input", "text", "--output", "category", "--model", str(place / "model"))
    small = ("--epochs", "0.2", "--lr", "1e-3", "--threads", "1", "--set", "arms.shots=[1]", "--set", "arms.dev_items=4")
    run = str(place / "run")
    commands = [
        ["check", rows, *named],
        ["estimate", rows, *named, *small[:6]],
        ["train", rows, *named, *small[:6], "--run-dir", str(place / "trained")],
        ["run", rows, *named, *small, "--set", "arms.latency_items=1", "--run-dir", run],
        ["decide", run, "--min-effect", "3"],
        ["chat", run, "-p", "hello", "--max-new-tokens", "3"],
        ["feedback", run, "--out", str(place / "more.jsonl")],
        ["export", run, "--to", "adapter", "--out", str(place / "out")],
        ["serve", run, "--plan"],
        ["models", "list"],
        ["doctor"],
        ["init", rows],
        ["train", rows, *named[:6], "--model", "acme/no-such-model"],
    ]
    done, attempts = _go(place, commands)
    assert attempts == []
    codes: list[int] = json.loads(done.stdout.strip().splitlines()[-1])
    assert codes[-1] == 2 and "luthier models pull" in done.stderr  # told how to get it, and not gone to get it
    judged = ("check", "export", "feedback")  # 2 is their verdict on so few rows, so short a training, and no marked answer
    failed = [words for words, code in zip(commands[:-1], codes, strict=False) if code not in ((0, 2) if words[0] in judged else (0,))]
    assert not failed, done.stderr
