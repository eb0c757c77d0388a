"""`luthier serve`: an OpenAI-compatible server for what was tuned."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from luthier.cli.command import Argument, Given, Outcome, add_command
from luthier.cli.options import Flag

if TYPE_CHECKING:
    from luthier.pipeline.serve import Serving

TARGET = Argument(name="run", help="Folder of a finished run or of an adapter, or a model's name or folder.")
ADAPTER = Flag(names=("--adapter",), type=str, help="Another adapter on the same base, as NAME=FOLDER; can be repeated.", many=True)
MODEL = Flag(names=("--model",), type=str, help="Base model of an adapter; default: the one the adapter names.")
GGUF = Flag(names=("--gguf",), type=str, help="Let llama.cpp answer, from this GGUF export of it; needs llama-cpp-python.")
VLLM = Flag(names=("--vllm",), type=bool, help="Let vLLM answer, in this process; it has to be installed.")
VLLM_MEMORY = Flag(names=("--vllm-memory",), type=float, help="Share of the device's memory vLLM may take, 0 to 1; default: vLLM's own.")
HOST = Flag(names=("--host",), type=str, help="Address to listen on; default: 127.0.0.1. Any other needs --key-env.")
PORT = Flag(names=("--port",), type=int, help="Port to listen on; default: 8000, 0 takes a free one.")
KEY_ENV = Flag(names=("--key-env",), type=str, help="Environment variable with an API key clients must send; can be repeated.", many=True)
ALLOW_HOST = Flag(names=("--allow-host",), type=str, help="Name clients call this machine by (Host header); can be repeated.", many=True)
BATCH = Flag(names=("--batch",), type=int, help="Answers written at once; default: 16, with --vllm 64, with --gguf 4.")
QUEUE = Flag(names=("--queue",), type=int, help="Answers written or waiting before requests are refused (429); default: 128.")
PLAN = Flag(names=("--plan",), type=bool, help="Print the command that serves the same on vLLM, for many users, and exit.")
FLAGS = (ADAPTER, MODEL, GGUF, VLLM, VLLM_MEMORY, HOST, PORT, KEY_ENV, ALLOW_HOST, BATCH, QUEUE, PLAN)

DEFAULT_HOST, DEFAULT_PORT, DEFAULT_BATCH, DEFAULT_GGUF_BATCH, DEFAULT_VLLM_BATCH, DEFAULT_QUEUE = "127.0.0.1", 8000, 16, 4, 64, 128
MOST_BATCH = 1024
MOST_GGUF_BATCH = 64  # llama.cpp takes the memory of all at its start


def serve(given: Given) -> Outcome:
    """Serve the tuned model of a run over HTTP, as OpenAI's API.

    Its base model too, and any number of adapters, each under a name of its own. Ctrl-C or SIGTERM ends it; answers are finished first.
    """
    host = str(given.values.get("host", DEFAULT_HOST))
    port = _number(given, "port", DEFAULT_PORT, low=0, high=65_535)
    gguf, is_vllm = given.values.get("gguf"), bool(given.values.get("vllm"))
    default = DEFAULT_GGUF_BATCH if gguf is not None else DEFAULT_VLLM_BATCH if is_vllm else DEFAULT_BATCH
    most = MOST_BATCH if gguf is None else MOST_GGUF_BATCH
    batch = _number(given, "batch", default, low=1, high=most)
    queue = _number(given, "queue", DEFAULT_QUEUE, low=batch, high=100_000)
    key_names, base = _texts(given, "key_env"), given.values.get("model")
    find = _finder(given, base=None if base is None else str(base))
    if given.values.get("plan"):
        _refuse_gguf(gguf, "--plan", "vLLM is given the model itself")
        from luthier.pipeline.serve import vllm_command

        command = vllm_command(find(), host=host, port=port, key_env=key_names[0] if key_names else None)
        return {"lines": [command], "json": {"vllm": command}}

    _require_extra()
    memory = _vllm_memory(given, is_vllm=is_vllm)

    from luthier.core.console import note, result_json
    from luthier.serve.guard import rules_for

    rules = rules_for(host, allowed_hosts=_texts(given, "allow_host"), keys={name: os.environ.get(name) for name in key_names})
    if given.values.get("adapter"):
        _refuse_gguf(gguf, "--adapter", "a GGUF file is one model, and no adapters are put on it")
    serving = find()

    from luthier.pipeline.in_vllm import find_in_vllm
    from luthier.pipeline.open import open_engine
    from luthier.pipeline.serve import open_service
    from luthier.serve.api import build_app
    from luthier.serve.server import bind, serve_until_stopped

    listener = bind(host, port)
    with closing(listener), ExitStack() as until:
        if gguf is not None:
            serving = _in_llama(serving, Path(str(gguf)).expanduser(), given.arguments[0], until, num_rows=batch)
        opener = find_in_vllm(until, memory=memory).open_engine if is_vllm else open_engine
        service = open_service(serving, batch=batch, queue=queue, opener=opener)
        names = [offer.name for offer in serving.offers]
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/v1"

        def say_ready(stop: Callable[[], None]) -> None:
            del stop  # signals end this one
            if given.as_json:
                result_json({"url": url, "models": names})
            note(f"serving {', '.join(names)} at {url}; Ctrl-C ends it")

        serve_until_stopped(build_app(service, rules), listener, on_ready=say_ready, drain=service.dispatcher.drain)
    return {}


def _vllm_memory(given: Given, *, is_vllm: bool) -> float | None:
    """What vLLM may take. Raises ConfigError, and MissingExtraError where vLLM is asked for and not here, before anything is opened."""
    from luthier.generate.vllm_package import require_vllm
    from luthier.pipeline.in_vllm import share_of_memory

    if is_vllm:
        _refuse_gguf(given.values.get("gguf"), "--vllm", "a GGUF file is answered from by llama.cpp")
        require_vllm()
    return share_of_memory(given.values.get("vllm_memory"), is_vllm=is_vllm)


def _finder(given: Given, *, base: str | None) -> Callable[[], Serving]:
    """What finds the models; called once the options are known to be good, for it takes seconds."""

    def find() -> Serving:
        from luthier.pipeline.serve import find_serving

        return find_serving(given.arguments[0], adapters=_texts(given, "adapter"), base=base)

    return find


def _refuse_gguf(gguf: object, flag: str, why: str) -> None:
    from luthier.core.errors import ConfigError

    if gguf is not None:
        raise ConfigError(why, where=flag, fix=f"leave --gguf or {flag} out")


def _in_llama(serving: Serving, gguf: Path, target: str, until: ExitStack, *, num_rows: int) -> Serving:
    from luthier.pipeline.in_llama import find_in_llama
    from luthier.pipeline.serve import by_llama

    return by_llama(serving, find_in_llama(gguf, target, until, num_rows=num_rows))


def _require_extra() -> None:
    from luthier.core.errors import MissingExtraError

    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"serving needs {' and '.join(missing)}", where="luthier serve", fix="pip install 'luthier[serve]'")


def _texts(given: Given, name: str) -> tuple[str, ...]:
    found = given.values.get(name, ())
    return tuple(str(item) for item in found) if isinstance(found, list | tuple) else ()


def _number(given: Given, name: str, default: int, *, low: int, high: int) -> int:
    from luthier.core.errors import ConfigError

    found = given.values.get(name, default)
    if not isinstance(found, int) or not low <= found <= high:
        raise ConfigError(f"found {found}, expected {low} to {high}", where=f"--{name}", fix=f"--{name} {max(low, default)}")
    return found


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    add_command(app, "serve", serve, FLAGS, argument=TARGET)
