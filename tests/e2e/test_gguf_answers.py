"""`chat` and `serve` with `--gguf`: llama.cpp computes, all else is as ever; what cannot be had so is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import openai
import pytest
from tests.e2e.test_chat import Say, _turns, say
from tests.e2e.test_serve import command as serve_command
from tests.e2e.test_serve import serving, user
from tests.fixtures.fake_llama import make_fake_llama
from tests.fixtures.tiny_gguf import write_tiny_gguf
from tests.fixtures.tiny_model import make_tiny_model

from luthier.generate.llama_file import VARIABLE

__all__ = ["say"]  # a fixture


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, the file of the first, and a Python with llama.cpp."""
    root = tmp_path_factory.mktemp("gguf")
    make_tiny_model(root / "other", seed=3, chat_template=None)
    write_tiny_gguf(make_tiny_model(root / "model"), root / "tiny.gguf")
    make_fake_llama(root / "llama")
    return root


def test_a_conversation_goes_on_as_with_the_model_itself(say: Say, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(place / "llama" / "python"))
    words = ("chat", str(place / "model"), "--lines", "--max-new-tokens", "6", "--no-log", "--json")
    piped = b"hello\nand then?\n"
    code, out, _ = say(*words, piped=piped)
    assert code == 0
    want = [turn["answers"] for turn in _turns(out)]
    code, out, err = say(*words, "--gguf", str(place / "tiny.gguf"), piped=piped)
    assert code == 0 and [turn["answers"] for turn in _turns(out)] == want
    assert "tiny.gguf is no export of" in err  # a plain model has no exports
    drawn = (*words, "--temperature", "1.5", "--seed", "3")
    assert (
        _turns(say(*drawn, piped=piped)[1])[0]["answers"]
        == _turns(say(*drawn, "--gguf", str(place / "tiny.gguf"), piped=piped)[1])[0]["answers"]
    )


def test_what_cannot_be_had_so_is_refused(say: Say, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, gguf = str(place / "model"), str(place / "tiny.gguf")

    def refused(*words: str) -> str:
        code, out, err = say(*words)
        assert code == 2 and not out
        return err

    monkeypatch.setenv(VARIABLE, "none")
    assert "there is no llama.cpp here" in (told := refused("chat", model, "--gguf", gguf, "-p", "x")) and f"export {VARIABLE}=" in told
    monkeypatch.setenv(VARIABLE, str(place / "llama" / "python"))
    assert (
        "there is no such file" in (told := refused("chat", model, "--gguf", str(tmp_path / "no.gguf"), "-p", "x")) and "--to gguf" in told
    )
    assert f"--gguf {gguf}" in refused("chat", model, "--gguf", str(place), "-p", "x")
    assert "expected 1 to 64" in refused("serve", model, "--gguf", gguf, "--batch", "65")
    told = refused("chat", str(place / "other"), "--gguf", gguf, "-p", "x")
    assert "tiny.gguf: is of another model than" in told and "chat template" in told
    assert "vLLM is given the model itself" in refused("serve", model, "--gguf", gguf, "--plan")
    assert "no adapters are put on it" in refused("serve", model, "--gguf", gguf, "--adapter", "a=b", "--port", "0")
    monkeypatch.setenv(VARIABLE, make_fake_llama(tmp_path / "llama", "refuse"))
    told = refused("chat", model, "--gguf", gguf, "-p", "x")
    assert "llama.cpp does not open the file" in told and "leave --gguf out" in told


def test_it_is_served_by_the_name_of_the_model(place: Path) -> None:
    env = {VARIABLE: str(place / "llama" / "python")}
    with serving(str(place / "model"), "--gguf", str(place / "tiny.gguf"), env=env) as (_, ready):
        assert ready["models"] == ["model"]
        with openai.OpenAI(base_url=ready["url"], api_key="none") as client:
            ask = {"model": "model", "messages": user("hello"), "max_tokens": 6, "logprobs": True}
            whole = client.chat.completions.create(**ask)
            streamed = "".join(
                part.choices[0].delta.content or "" for part in client.chat.completions.create(**ask, stream=True) if part.choices
            )
            many = client.chat.completions.create(**ask, n=6)
    with serving(str(place / "model")) as (_, ready), openai.OpenAI(base_url=ready["url"], api_key="none") as client:
        want = client.chat.completions.create(**ask)
    assert whole.choices[0].message.content == want.choices[0].message.content == streamed
    assert [one.message.content for one in many.choices] == [streamed] * 6
    assert len(whole.choices[0].logprobs.content) == len(want.choices[0].logprobs.content) == whole.usage.completion_tokens
    assert whole.system_fingerprint != want.system_fingerprint


def test_ctrl_c_is_for_the_server_and_lets_answers_be_finished(place: Path) -> None:
    """A terminal sends it to the whole group, llama.cpp among them."""
    command = [*serve_command(str(place / "model"), "--gguf", str(place / "tiny.gguf")), "--port", "0", "--json"]
    env = {**os.environ, VARIABLE: str(place / "llama" / "python")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)
    try:
        ready = json.loads(process.stdout.readline())
        with openai.OpenAI(base_url=ready["url"], api_key="none", max_retries=0) as client:
            ask = {"model": "model", "messages": user("hello"), "max_tokens": 60, "temperature": 2.0, "seed": 5}
            parts = client.chat.completions.create(**ask, stream=True)
            first = next(parts)
            os.killpg(process.pid, signal.SIGINT)
            rest = list(parts)
        assert first.choices and rest[-1].choices[0].finish_reason in ("stop", "length")
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0 and "llama.cpp: ended" not in said
    finally:
        process.kill()
        process.communicate()


def test_a_schema_holds_the_answers_too(place: Path) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    env = {VARIABLE: str(place / "llama" / "python")}
    started = serving(str(place / "model"), "--gguf", str(place / "tiny.gguf"), env=env)
    with started as (_, ready), openai.OpenAI(base_url=ready["url"], api_key="none") as client:
        found = client.chat.completions.create(model="model", messages=user("hello"), max_tokens=40, response_format=form)
    assert set(json.loads(found.choices[0].message.content)) == {"ok"}


def test_a_llama_cpp_that_ends_costs_the_answers_under_way_only(place: Path, tmp_path: Path) -> None:
    env = {VARIABLE: make_fake_llama(tmp_path / "llama", "abort later")}  # at its second step, each time it is opened
    started = serving(str(place / "model"), "--gguf", str(place / "tiny.gguf"), env=env)
    with started as (process, ready), openai.OpenAI(base_url=ready["url"], api_key="none", max_retries=0) as client:
        for _ in range(2):
            with pytest.raises(openai.InternalServerError):
                client.chat.completions.create(model="model", messages=user("hello"), max_tokens=6)
        assert client.chat.completions.create(model="model", messages=user("hello"), max_tokens=1).usage.completion_tokens == 1
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert said.count("tiny.gguf: llama.cpp: ended with signal 6") == said.count("the answers under way were given up") == 2
    assert "a bug" not in said
