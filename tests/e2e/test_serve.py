"""`luthier serve` as a user starts it: a process, the tiny model, an adapter on it, and signals."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import openai
import pytest
from tests.fixtures.tiny_model import make_tiny_model

KEY = "a-key-of-enough-characters"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and two adapters that change its answers."""
    import torch

    from luthier.models.load import inspect_folder, open_model
    from luthier.models.lora import LoraSettings, add_lora, save_adapter

    root = tmp_path_factory.mktemp("serve")
    path = make_tiny_model(root / "model")
    for seed, name in ((1, "one"), (2, "two")):
        model = add_lora(open_model(path, dtype=torch.float32), LoraSettings(r=4, alpha=16, dropout=0.0), seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
        save_adapter(model, root / name, base_info=inspect_folder(path))
    return root


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "luthier", "serve", *words]


@contextmanager
def serving(*words: str, env: dict[str, str] | None = None) -> Generator[tuple[subprocess.Popen[str], dict]]:
    """The running server and what it said when it was ready."""
    process = subprocess.Popen(
        command(*words, "--port", "0", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, json.loads(line)
    finally:
        process.kill()
        process.communicate()


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def test_a_base_and_its_adapters_under_names_of_their_own(folder: Path) -> None:
    words = (str(folder / "one"), "--model", str(folder / "model"), "--adapter", f"second={folder / 'two'}")
    with serving(*words, "--key-env", "K", env={"K": KEY}) as (process, ready):
        assert ready["models"] == ["one", "second", "model"]
        with pytest.raises(openai.AuthenticationError), openai.OpenAI(base_url=ready["url"], api_key="wrong") as client:
            client.models.list()
        with openai.OpenAI(base_url=ready["url"], api_key=KEY) as client:
            assert [model.id for model in client.models.list()] == ready["models"]
            ask = {"messages": user("hello"), "max_tokens": 12, "logprobs": True}
            texts = {name: client.chat.completions.create(model=name, **ask).choices[0].message.content for name in ready["models"]}
            assert len(set(texts.values())) == 3
            # all at once they are the same answers
            found: dict[tuple[str, int], str | None] = {}

            def work(name: str, number: int) -> None:
                found[name, number] = client.chat.completions.create(model=name, **ask).choices[0].message.content

            threads = [threading.Thread(target=work, args=(name, number)) for name in texts for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert found == {(name, number): texts[name] for name in texts for number in range(4)}
            streamed = client.chat.completions.create(model="second", stream=True, **ask)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == texts["second"]
            drawn = [client.completions.create(model="one", prompt="The", temperature=1.0, seed=seed, n=2).choices for seed in (5, 5, 6)]
            assert [c.text for c in drawn[0]] == [c.text for c in drawn[1]] != [c.text for c in drawn[2]]
            assert drawn[0][0].text != drawn[0][1].text
            with pytest.raises(openai.BadRequestError, match="no place for tools"):
                client.chat.completions.create(model="one", messages=user("x"), tools=[{"type": "function", "function": {"name": "f"}}])
            with pytest.raises(openai.BadRequestError) as error:
                client.chat.completions.create(model="one", messages=user("word " * 600))
            assert error.value.code == "context_length_exceeded"
            schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            made = client.chat.completions.create(model="one", messages=user("x"), response_format=form)
            assert json.loads(made.choices[0].message.content)["ok"] in (True, False)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=15)
        assert process.returncode == 0 and KEY not in errors and "bug" not in errors and "hello" not in errors


def _stream_raw(url: str, out: list[bytes], number: int) -> None:
    body = {"model": "model", "messages": user(f"go on {number}"), "stream": True, "temperature": 1.0}
    connection = http.client.HTTPConnection(url.removeprefix("http://").removesuffix("/v1"), timeout=30)
    with closing(connection), suppress(OSError, http.client.HTTPException):  # the test looks at what came
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            while chunk := response.read1():
                out[number] += chunk


def test_sigterm_during_eight_streams(folder: Path) -> None:
    """D7: every stream ends whole, or with the error event; the process ends with 0 within 10 s."""
    with serving(str(folder / "model")) as (process, ready):
        out = [b""] * 8
        threads = [threading.Thread(target=_stream_raw, args=(ready["url"], out, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while not all(out) and time.monotonic() < deadline:
            time.sleep(0.01)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=15)
        assert process.returncode == 0 and time.monotonic() - started <= 10 and "bug" not in errors
        for thread in threads:
            thread.join()
        for stream in out:
            last = stream.decode().removesuffix("\n\n").rpartition("data: ")[2]
            assert last == "[DONE]" or json.loads(last)["error"]["code"] == "server_shutting_down"


def test_a_second_signal_ends_it_at_once(folder: Path) -> None:
    with serving(str(folder / "model")) as (process, ready):
        out = [b""]
        thread = threading.Thread(target=_stream_raw, args=(ready["url"], out, 0), daemon=True)
        thread.start()
        deadline = time.monotonic() + 10
        while not out[0] and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=5)
        thread.join()
        assert process.returncode in (0, 130)


def _refused(*words: str, env: dict[str, str] | None = None) -> dict:
    done = subprocess.run(
        command(*words, "--json"), capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})}, check=False
    )
    assert done.returncode == 2, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["error"]


def test_what_is_refused_before_anything_is_opened(folder: Path) -> None:
    found = _refused(str(folder / "model"), "--host", ".".join(["0"] * 4))
    assert "takes a key" in found["message"] and "--key-env" in found["fix"]
    assert "empty or not set" in _refused("no-such-model", "--key-env", "NOT_THERE")["message"]  # asked before any model is looked for
