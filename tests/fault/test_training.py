"""Training killed, stopped, given numbers that are none, changed settings, or done twice: matrix A1, A3, A6, A10, A11, A12.

Through the real command on a tiny model. `make test-faults` runs the larger counts.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.e2e.test_parallel import _command, _env, _go, _result
from tests.fixtures.tiny_model import make_tiny_model
from tests.fixtures.workplace import make_workplace

from luthier.core.hashing import sha256_file
from luthier.models.load import open_model
from luthier.train.optim import make_optimiser
from luthier.train.step import Pieces, train_step

LARGE = bool(os.environ.get("LUTHIER_LARGE"))
KILLS = 200 if LARGE else 20
REPEATS = 10 if LARGE else 2
STOPS = 14 if LARGE else 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def whole(place: Path) -> dict:
    started = time.monotonic()
    result = _result(_go(_command(place, "whole", ranks=1, epochs=4)))
    return {**result, "wall_s": time.monotonic() - started}


def _equal(got: dict, want: dict) -> None:
    assert got["losses"] == want["losses"] and got["dev_losses"] == want["dev_losses"]
    assert sha256_file(Path(got["adapter"])) == sha256_file(Path(want["adapter"]))


@pytest.mark.timeout(3600)
def test_killed_at_random_instants_the_same_command_ends_the_same(place: Path, whole: dict) -> None:
    """A run is killed again and again until it is through, then the next begins; every one ends bit-equal."""
    rng = random.Random(7)
    kills, runs = 0, 0
    while kills < KILLS:
        command = _command(place, f"kill-{runs}", ranks=1, epochs=4)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_env())
        try:
            stdout, stderr = process.communicate(timeout=rng.uniform(0.3, 1.1) * whole["wall_s"])
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, stderr
        _equal(json.loads(stdout.strip().splitlines()[-1]), whole)
        runs += 1
    _equal(_result(_go(_command(place, f"kill-{runs}", ranks=1, epochs=4))), whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_says_how_to_go_on_and_ends_the_same(place: Path, whole: dict, number: signal.Signals) -> None:
    rng = random.Random(int(number))
    for i in range(STOPS // 2):
        command = _command(place, f"stop-{number.name}-{i}", ranks=1, epochs=4)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_env())
        steps = place / f"stop-{number.name}-{i}" / "journal" / "steps.jsonl"
        wanted = rng.randrange(1, 30)
        while process.poll() is None and not (steps.exists() and steps.read_text(encoding="utf-8").count("\n") >= wanted):
            time.sleep(0.01)
        process.send_signal(number)
        started = time.monotonic()
        _, stderr = process.communicate(timeout=30)
        if process.returncode != 0:  # it was not through already
            assert process.returncode == 128 + number and "to go on: luthier train" in stderr, stderr
            assert time.monotonic() - started < 30
            saved = max(int(p.name.removeprefix("step-")) for p in (steps.parents[1] / "train" / "checkpoints").glob("step-*"))
            assert saved == steps.read_text(encoding="utf-8").count("\n")  # no update is lost
        _equal(_result(_go(command)), whole)


@pytest.mark.timeout(900)
def test_repeated_it_is_bit_equal(place: Path, whole: dict) -> None:
    for i in range(REPEATS):
        _equal(_result(_go(_command(place, f"again-{i}", ranks=1, epochs=4))), whole)


CHANGES = {
    "lora_r": ("--lora-r", "8"), "lr": ("--lr", "1e-3"), "length": ("--max-length", "100"), "seed": ("--seed", "1"),
    "batch": ("--batch", "4"),
    "dtype": ("--set", "model.dtype=bfloat16"), "epochs": ("--epochs", "3"), "schedule": ("--set", "train.schedule=wsd"),
    "instruction": ("--instruction", "Name it."),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_what_is_trained_is_refused_with_the_difference(place: Path, whole: dict, change: str) -> None:
    done = _go([*_command(place, "whole", ranks=1, epochs=4), *CHANGES[change]])
    assert done.returncode == 2 and "other settings" in done.stderr and "--fresh" in done.stderr, done.stderr


def test_changed_rows_model_and_template_are_refused(place: Path, whole: dict, tmp_path: Path) -> None:
    rows = (place / "train.jsonl").read_text(encoding="utf-8")
    other_model = make_tiny_model(tmp_path / "other", seed=1)
    for name, change in {"a row": rows.replace("alpha", "omega", 1), "order": "\n".join(reversed(rows.splitlines())) + "\n"}.items():
        (place / "train.jsonl").write_text(change, encoding="utf-8")
        done = _go(_command(place, "whole", ranks=1, epochs=4))
        (place / "train.jsonl").write_text(rows, encoding="utf-8")
        assert done.returncode == 2 and "data.paths" in done.stderr, name
    done = _go([*_command(place, "whole", ranks=1, epochs=4), "--model", str(other_model)])
    assert done.returncode == 2 and "model" in done.stderr
    for name, said in {"chat_template.jinja": "model.template", "tokenizer.json": "model.tokenizer"}.items():
        path = place / "model" / name
        was = path.read_text(encoding="utf-8")
        path.write_text(was + ("{# another #}" if "jinja" in name else "\n"), encoding="utf-8")
        done = _go(_command(place, "whole", ranks=1, epochs=4))
        path.write_text(was, encoding="utf-8")
        assert done.returncode == 2 and said in done.stderr and "--fresh" in done.stderr, done.stderr


def test_a_change_that_changes_nothing_is_taken_and_noted(place: Path, whole: dict) -> None:
    more = ("--save-every", "7", "--set", "train.micro_batch=2", "--set", "train.checkpoint_activations=true")
    assert _result(_go([*_command(place, "whole", ranks=1, epochs=4), *more]))["losses"] == whole["losses"]
    events = [json.loads(line) for line in (place / "whole" / "journal" / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any(event["event"] == "changed" and "train.save_every" in str(event["changes"]) for event in events)


def test_a_second_process_is_refused_at_once_and_a_dead_one_s_lock_is_free(place: Path) -> None:
    command = _command(place, "locked", ranks=1, epochs=40)
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_env())
    while not (place / "locked" / "owner.json").exists():
        time.sleep(0.01)
    second = _go(command)
    assert second.returncode == 2 and f"process {first.pid}" in second.stderr
    first.kill()
    first.communicate()
    assert len(_result(_go(command))["losses"]) > 100


@pytest.mark.parametrize("where", ["loss", "one gradient", "learning rate", "a loaded weight", "one micro-batch"])
def test_a_number_that_is_none_reaches_no_weight(place: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    from luthier.core.types import TokenRow
    from luthier.models.backbone import use_layout_attention
    from luthier.train import step
    from luthier.train.objectives.sft import LossSum

    model = open_model(place / "model", dtype=torch.float32)
    model.requires_grad_(requires_grad=True)
    use_layout_attention(model)
    optimiser = make_optimiser(model, weight_decay=0.0, compute_dtype=torch.float32)
    before = {name: master.clone() for name, master in optimiser.masters.items()}
    rows = [TokenRow(example_id=str(i), input_ids=(5, 6, 7 + i, 8), is_label=(False, False, True, True)) for i in range(4)]
    lr, calls, plain = 1e-3, [0], step.sft_loss

    def poisoned(*args, **options):
        calls[0] += 1
        loss = plain(*args, **options)
        return LossSum(loss.sum * math.nan, loss.weight, loss.logs) if where == "loss" or calls[0] == 3 else loss

    if where in ("loss", "one micro-batch"):
        monkeypatch.setattr(step, "sft_loss", poisoned)
    elif where == "one gradient":
        model.model.norm.weight.register_hook(lambda grad: grad.index_fill(0, torch.tensor([3]), math.inf))
    elif where == "learning rate":
        lr = math.nan
    else:
        model.model.norm.weight.data[0] = math.inf
    with pytest.raises(FloatingPointError):
        train_step(model, optimiser, rows, pieces=Pieces(micro_batch=1), lr=lr, max_grad_norm=1.0)
    assert all(torch.equal(before[name], master) for name, master in optimiser.masters.items())
    assert not optimiser.grad_M.any() and all(p.grad is None for p in optimiser.params.values())


def test_a_model_with_a_weight_that_is_no_number_is_refused(place: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = make_tiny_model(tmp_path / "bad")
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    done = _go([*_command(place, "bad", ranks=1), "--model", str(path)])
    assert done.returncode == 2 and "not numbers" in done.stderr and not (place / "bad" / "adapter").exists()
