"""Several processes as one training, started by torchrun through the real command: 2 and 4 ranks, two hosts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.fixtures.workplace import make_workplace


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("ranks"))


def _command(place: Path, run_dir: str, *, ranks: int, epochs: int = 2, more: tuple[str, ...] = ()) -> list[str]:
    start = [sys.executable]
    if ranks > 1:
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d"]
        start += ["--rdzv-endpoint", "127.0.0.1:0"]
    return [
        *start, "-m", "luthier", "train", str(place / "train.jsonl"), "--instruction", "Name the kind.", "--input", "text", "--output",
        "category", "--model", str(place / "model"), "--run-dir", str(place / run_dir), "--epochs", str(epochs), "--batch", "8",
        "--lr", "5e-3", "--save-every", "3", "--threads", "1", "--seed", "0", "--set", "model.dtype=float32", "--json", *more,
    ]  # fmt: skip


def _go(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=_env(), timeout=240, check=False)


def _env() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _result(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1, done.stdout  # rank 0 alone speaks
    return json.loads(lines[0])


@pytest.fixture(scope="module")
def alone(place: Path) -> dict:
    return _result(_go(_command(place, "alone", ranks=1)))


def _same(got: dict, want: dict) -> None:
    assert got["losses"] == pytest.approx(want["losses"], rel=1e-5)
    assert [step for step, _ in got["dev_losses"]] == [step for step, _ in want["dev_losses"]]
    ours, theirs = load_file(got["adapter"]), load_file(want["adapter"])
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_makes_the_same_update(place: Path, alone: dict, ranks: int) -> None:
    _same(_result(_go(_command(place, f"ranks-{ranks}", ranks=ranks))), alone)


def test_dropout_differs_by_rank_and_repeats(place: Path) -> None:
    more = ("--set", "train.lora_dropout=0.2")
    first, again = (_result(_go(_command(place, name, ranks=2, epochs=1, more=more))) for name in ("drop-a", "drop-b"))
    assert first["losses"] == again["losses"]
    assert first["losses"] != _result(_go(_command(place, "drop-c", ranks=1, epochs=1, more=more)))["losses"]


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


@pytest.fixture
def two_hosts() -> Iterator[list[str]]:
    """Two network namespaces joined by one cable: as far as sockets can tell, two machines."""
    names = [f"luthier{os.getpid()}{side}" for side in "ab"]
    cables = [f"lu{os.getpid()}{side}"[:15] for side in "ab"]
    try:
        for name in names:
            _ip(f"netns add {name}")
        _ip(f"link add {cables[0]} type veth peer name {cables[1]}")
        for i, (name, cable) in enumerate(zip(names, cables, strict=True)):
            _ip(f"link set {cable} netns {name}")
            for words in (f"addr add 10.213.7.{i + 1}/24 dev {cable}", f"link set {cable} up", "link set lo up"):
                _ip(f"netns exec {name} ip {words}")
    except (OSError, subprocess.CalledProcessError) as error:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        pytest.skip(f"network namespaces need root and iproute2: {error}")
    yield [f"{name} {cable}" for name, cable in zip(names, cables, strict=True)]
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.mark.skipif(shutil.which("ip") is None, reason="network namespaces are made with ip")
def test_two_hosts_with_a_folder_each(place: Path, alone: dict, two_hosts: list[str]) -> None:
    processes: list[subprocess.Popen[str]] = []
    for rank, host in enumerate(two_hosts):
        name, cable = host.split()
        command = _command(place, f"host-{rank}", ranks=1)
        start = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        start += ["--node-rank", str(rank), "--master-addr", "10.213.7.1", "--master-port", "29500"]
        env = {**_env(), "GLOO_SOCKET_IFNAME": cable}
        words = [*start, *command[1:]]
        processes.append(
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)
        )
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert [process.returncode for process in processes] == [0, 0], outputs
    _same(json.loads(next(line for line in outputs[0][0].splitlines() if line.startswith("{"))), alone)
    assert not (place / "host-1").exists()  # rank 0 alone writes


def test_run_alone_takes_over_what_ranks_trained_and_refuses_ranks(place: Path) -> None:
    trained = _result(_go(_command(place, "handed", ranks=2, epochs=1)))
    command = [word if word != "train" else "run" for word in _command(place, "handed", ranks=2, epochs=1)]
    refused = _go(command)
    assert refused.returncode != 0 and "measures with one process" in refused.stderr
    done = _go([word if word != "train" else "run" for word in _command(place, "handed", ranks=1, epochs=1)])
    assert done.returncode == 0, done.stderr
    record = json.loads((place / "handed" / "results.json").read_text(encoding="utf-8"))
    assert [step["loss"] for step in record["train"]["curve"]] == trained["losses"]


def test_half_of_torchrun_s_variables_is_refused(place: Path) -> None:
    done = subprocess.run(
        _command(place, "half", ranks=1), capture_output=True, text=True, env={**_env(), "WORLD_SIZE": "2"}, timeout=60, check=False
    )
    assert done.returncode == 2 and "torchrun" in done.stderr and not (place / "half").exists()
