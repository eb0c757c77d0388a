"""`chat` and `serve` with `--vllm`: vLLM computes, all else is as ever; what cannot be had so is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from tests.e2e.test_serve import serving, user
from tests.fixtures.fake_vllm import make_fake_vllm
from tests.fixtures.tiny_model import make_tiny_model

from luthier.models.load import inspect_folder, open_model
from luthier.models.lora import LoraSettings, add_lora, save_adapter


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two adapters on it that change its answers and one vLLM does not compute, and an installed vLLM."""
    root = tmp_path_factory.mktemp("vllm")
    path = make_tiny_model(root / "model")
    for seed, name in ((1, "one"), (2, "two"), (3, "dora")):
        model = add_lora(open_model(path, dtype=torch.float32), LoraSettings(r=4, alpha=16, dropout=0.0, use_dora=name == "dora"), seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
        save_adapter(model, root / name, base_info=inspect_folder(path))
    make_tiny_model(root / "other", seed=9)
    (root / "pickled").mkdir()
    shutil.copyfile(root / "one" / "adapter_config.json", root / "pickled" / "adapter_config.json")
    (root / "pickled" / "adapter_model.bin").write_bytes(b"\x80\x04.")
    make_fake_vllm(root / "installed")
    make_fake_vllm(root / "old", "0.8.0")
    return root


def _said(*words: str, path: Path | None, cache: Path) -> tuple[int, str, str]:
    found = [str(path)] if path is not None else []
    env = {**os.environ, "LUTHIER_CACHE": str(cache), "PYTHONPATH": os.pathsep.join([*found, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "luthier", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env, timeout=120, input="")
    return done.returncode, done.stdout, done.stderr


def _answers(out: str) -> Any:
    return [turn["answers"] for turn in json.loads(out.splitlines()[-1])["turns"]]


def test_a_conversation_with_the_tuned_model_beside_its_base(place: Path, tmp_path: Path) -> None:
    words = ("chat", str(place / "one"), "--model", str(place / "model"), "--compare", "base", "-p", "hello", "--max-new-tokens", "8")
    words = (*words, "--no-log", "--json")
    code, out, err = _said(*words, "--vllm", path=place / "installed", cache=tmp_path)
    assert code == 0, err
    [answers] = _answers(out)
    assert list(answers) == ["tuned", "base"] and answers["tuned"] != answers["base"]
    code, out, _ = _said(*words, "--vllm", path=place / "installed", cache=tmp_path)
    assert code == 0 and _answers(out) == [answers]


def test_a_base_and_its_adapters_are_served(place: Path) -> None:
    words = (str(place / "one"), "--model", str(place / "model"), "--adapter", f"second={place / 'two'}")
    ask: dict[str, Any] = {"messages": user("hello"), "max_tokens": 12, "logprobs": True}
    prints: dict[str, str | None] = {}
    for kind, more, env in (("own", (), {}), ("vllm", ("--vllm",), {"PYTHONPATH": str(place / "installed")})):
        with serving(*words, *more, env=env) as (process, ready):
            assert ready["models"] == ["one", "second", "model"]
            with openai.OpenAI(base_url=ready["url"], api_key="none") as client:
                found = {name: client.chat.completions.create(model=name, **ask) for name in ready["models"]}
                texts = {name: answer.choices[0].message.content for name, answer in found.items()}
                assert len(set(texts.values())) == 3
                prints[kind] = found["one"].system_fingerprint
                streamed = client.chat.completions.create(model="second", stream=True, **ask)
                assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == texts["second"]
                schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
                form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
                made = client.chat.completions.create(model="one", messages=user("x"), response_format=form)
                assert json.loads(made.choices[0].message.content or "")["ok"] in (True, False)
                drawn = [
                    client.completions.create(model="one", prompt="The", temperature=1.0, seed=seed, n=2).choices for seed in (5, 5, 6)
                ]
                assert [c.text for c in drawn[0]] == [c.text for c in drawn[1]] != [c.text for c in drawn[2]]
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
            assert process.returncode == 0 and "bug" not in errors
    assert prints["own"] != prints["vllm"]  # the same seed draws otherwise there


def test_what_cannot_be_had_so_is_refused(place: Path, tmp_path: Path) -> None:
    model, dora = str(place / "model"), str(place / "dora")

    def refused(*words: str, path: Path | None = place / "installed") -> str:
        code, out, err = _said(*words, path=path, cache=tmp_path)
        assert code == 2 and not out, err
        return err

    for command in (("chat", "-p", "x"), ("serve", "--port", "0")):
        told = refused(command[0], model, *command[1:], "--vllm", path=None)
        assert "there is no vLLM here" in told and "leave --vllm out" in told
        assert "found vLLM 0.8.0, expected 0.32 or newer" in refused(command[0], model, *command[1:], "--vllm", path=place / "old")
        assert "leave --gguf or --vllm out" in refused(command[0], model, *command[1:], "--vllm", "--gguf", "x.gguf")
        assert "vLLM does not answer" in refused(command[0], model, *command[1:], "--vllm-memory", "0.5")
        assert "expected a share above 0" in refused(command[0], model, *command[1:], "--vllm", "--vllm-memory", "1.5")
        told = refused(command[0], dora, "--model", model, *command[1:], "--vllm")
        assert "a DoRA adapter, which vLLM does not compute" in told and "--to merged" in told
        told = refused(command[0], str(place / "one"), "--model", str(place / "other"), *command[1:], "--vllm")
        assert "the adapter was trained on model" in told
        told = refused(command[0], str(place / "pickled"), "--model", model, *command[1:], "--vllm")
        assert "pickled form (adapter_model.bin)" in told
    assert "temperature must be in [0, 2]" in refused("chat", model, "-p", "x", "--temperature", "3", "--vllm")
    assert "more KV cache memory is needed" in refused("serve", model, "--port", "0", "--vllm", "--batch", "13")
