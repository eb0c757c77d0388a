"""Models, adapters, settings and disks that cannot serve, through the real command: one error, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.e2e.test_parallel import _command, _env
from tests.fixtures.tiny_model import make_tiny_model, make_tiny_tokenizer
from tests.fixtures.workplace import make_workplace

from luthier.cli.main import main

Go = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("bad"))


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Go:
    """Exit code, the object on the last line of stdout, and stderr of one command."""

    def run(*words: str) -> tuple[int, dict[str, Any], str]:
        monkeypatch.setattr(sys, "argv", ["luthier", *words, "--json"])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), json.loads(out.strip().splitlines()[-1]), err

    return run


def _train(place: Path, run_dir: Path, *more: str, model: Path | None = None) -> list[str]:
    words = _command(place, str(run_dir), ranks=1, epochs=1, more=more)
    words[words.index("--model") + 1] = str(model or place / "model")
    return [word for word in words[words.index("train") :] if word != "--json"]


def _errors(stderr: str) -> int:
    return sum(line.startswith("error:") for line in stderr.splitlines())


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def _pickle_only(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def _large_vocabulary(path: Path) -> None:
    make_tiny_tokenizer(512).save(str(path / "tokenizer.json"))


def _no_eos(path: Path) -> None:
    (path / "chat_template.jinja").unlink()
    config = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    (path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "eos_token"}), encoding="utf-8")


def _other_shape(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(99)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


BAD_MODELS: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "pickle-only weights": (_pickle_only, "only in pickled form", 512),
    "auto_map": (lambda p: _edit(p / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"}), "run code that comes with", 512),
    "auto_map of a tokenizer": (lambda p: _edit(p / "tokenizer_config.json", auto_map={"AutoTokenizer": "evil.T"}), "run code", 512),
    "vocabulary larger than the embedding": (_large_vocabulary, "the embedding only 300 rows", 300),
    "nothing ends an answer": (_no_eos, "no end-of-sequence token", 512),
    "a shape the config does not say": (_other_shape, "do not have the shape", 512),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "has no model.safetensors", 512),
    "a template that reaches out": (lambda p: (p / "chat_template.jinja").write_text("{{ ''.__class__ }}"), "outside its sandbox", 512),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_model_that_cannot_serve_is_refused_and_leaves_no_trace(go: Go, place: Path, tmp_path: Path, name: str) -> None:
    spoil, said, vocab = BAD_MODELS[name]
    bad = make_tiny_model(tmp_path / "bad", vocab=vocab)
    (bad / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    spoil(bad)
    run_dir = tmp_path / "run"
    code, found, err = go(*_train(place, run_dir, model=bad))
    assert code == 2 and said in found["error"]["message"] and found["error"]["fix"] and str(bad) in found["error"]["where"], err
    assert _errors(err) == 1 and "Traceback" not in err
    assert not (tmp_path / "ran").exists()
    assert not [p for p in run_dir.rglob("*") if p.is_file() and (p.suffix == ".safetensors" or p.name.startswith(".tmp-"))]
    code, found, err = go(*_train(place, run_dir))  # and binds nobody: the same folder serves with another model
    assert code == 0, err


WITHOUT: tuple[dict[str, Any], ...] = (
    {"has_pad": False}, {"pad_is_eos": False}, {"has_eos": False}, {"chat_template": None}, {"chat_template": None, "bos_first": True},
)  # fmt: skip


@pytest.mark.parametrize("options", WITHOUT)
def test_a_model_without_pad_or_eos_or_template_trains(go: Go, place: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Padding is by position, a template may end answers itself, and base models have none."""
    code, found, err = go(*_train(place, tmp_path / "run", model=make_tiny_model(tmp_path / "model", **options)))
    assert code == 0 and found["losses"][-1] < found["losses"][0], err


UNFIT = {
    "unknown key": (("--set", "train.lora_rank=8"), "train.lora_r"),
    "unknown group": (("--set", "training.lr=1"), "unknown key"),
    "unknown flag": (("--lora-rank", "8"), "lora-rank"),
    "micro-batch above batch": (("--set", "train.micro_batch=9"), "train.micro_batch at most train.batch (8)"),
    "qlora": (("--method", "qlora"), "NVIDIA"),
    "8-bit moments": (("--set", "train.optimiser=adamw_8bit"), "8-bit moments"),
    "adapters without adapters": (("--method", "full", "--lora-r", "4"), "train.lora_r only with adapters"),
    "dora with pissa": (("--method", "dora", "--set", "train.lora_init=pissa"), "PiSSA"),
    "layers without freeze": (("--set", "train.last_layers=1"), "train.method freeze"),
    "a rate and rates to try": (("--set", "train.lr_candidates=[1e-3]"), "leaves nothing to try"),
    "a rate and trials": (("--set", "train.lr_probe_steps=4"), "leaves nothing to try"),
    "more layers than there are": (("--method", "freeze", "--set", "train.last_layers=3"), "has 2 layers"),
    "wrong type": (("--set", "train.warmup_ratio=many"), "a number"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_settings_that_cannot_be_are_refused_by_name(go: Go, place: Path, tmp_path: Path, name: str) -> None:
    more, said = UNFIT[name]
    code, found, err = go(*_train(place, tmp_path / "run", *more))
    assert code == 2 and said in f"{found['error']['message']} {found['error']['fix']}" and found["error"]["fix"], found
    assert (_errors(err) == 1 or "Usage:" in err) and "Traceback" not in err
    assert not [p for p in (tmp_path / "run").rglob("*.safetensors")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("offload_activations: true", "nowhere to offload"), ("label_smoothing: 0.1", "on purpose"), ("load_in_4bit: true", "NVIDIA"),
        ("optimizer: paged_adamw_8bit", "8-bit moments"), ("learning_rate: 1e-3", "train.lr"),
    ],
)  # fmt: skip
def test_what_other_programs_offer_is_refused_with_the_reason(go: Go, place: Path, tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"train:\n  {line}\n", encoding="utf-8")
    code, found, err = go(*_train(place, tmp_path / "run", "--config", str(tmp_path / "mine.yaml")))
    assert code == 2 and said in f"{found['error']['message']} {found['error']['fix']}", err
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_another_base_or_in_pickled_form_is_refused(go: Go, place: Path, tmp_path: Path) -> None:
    code, found, err = go(*_train(place, tmp_path / "run"))
    assert code == 0, err
    adapter = Path(found["adapter"]).parent
    other = make_tiny_model(tmp_path / "other", seed=1)
    code, found, err = go("chat", str(adapter), "--model", str(other), "-p", "hello")
    assert code == 2 and "was trained on model" in found["error"]["message"] and found["error"]["fix"], err
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    code, found, err = go("chat", str(adapter), "--model", str(place / "model"), "-p", "hello")
    assert code == 2 and "only in pickled form" in found["error"]["message"] and found["error"]["fix"], err
    code, found, err = go("chat", str(place / "model"), "--model", str(other), "-p", "hello")
    assert code == 2 and found["error"]["where"] == "--model", err


# ---------------------------------------------------------------- disks


def _limited(command: list[str], num_kib: int) -> subprocess.CompletedProcess[str]:
    """The command where no file may grow beyond a size: to a writer, a disk that is full."""
    script = f'ulimit -f {num_kib}; exec "$@"'
    words = ["bash", "-c", script, "bash", *command]
    return subprocess.run(words, capture_output=True, text=True, env=_env(), timeout=120, check=False)


def _refused(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and _errors(done.stderr) == 1, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])["error"]


def test_a_disk_that_fills_up_ends_with_one_error_and_the_same_command_goes_on(place: Path, tmp_path: Path) -> None:
    command = _command(place, str(tmp_path / "run"), ranks=1, epochs=1)
    error = _refused(_limited(command, 300))  # the checkpoint has 700 KiB
    assert "cannot write" in error["message"] and "MiB free" in error["message"] and error["fix"]
    left = [p for p in (tmp_path / "run").rglob("*") if p.suffix == ".safetensors" or p.name.startswith(".tmp-")]
    assert not left
    done = subprocess.run(command, capture_output=True, text=True, env=_env(), timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def _read_only(folder: Path, command: list[str]) -> list[str]:
    """The command where `folder` cannot be written to. Root may write anywhere but to what is mounted read-only."""
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        return command
    return ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro,size=1m none "$0" && exec "$@"', str(folder), *command]


def test_a_read_only_disk_ends_with_one_error(place: Path, tmp_path: Path) -> None:
    command = _read_only(tmp_path / "fixed", _command(place, str(tmp_path / "fixed" / "run"), ranks=1, epochs=1))
    error = _refused(subprocess.run(command, capture_output=True, text=True, env=_env(), timeout=120, check=False))
    assert str(tmp_path / "fixed") in error["where"] and error["fix"]
    assert not any((tmp_path / "fixed").iterdir())
