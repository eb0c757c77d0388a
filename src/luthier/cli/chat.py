"""`luthier chat`: talk to a tuned model, beside its base if you like."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from luthier.cli.command import Argument, Given, Outcome, add_command
from luthier.cli.options import Flag

if TYPE_CHECKING:
    from luthier.core.chat import ChatTranscript, ChatTurn
    from luthier.pipeline.in_llama import InLlama
    from luthier.pipeline.open import OpenEngine
    from luthier.serve.chat import Conversation, Drawing

TARGET = Argument(name="run", help="Folder of a finished run or of an adapter, or a model's name or folder.")
FLAGS = (
    Flag(names=("--model",), type=str, help="Base model of an adapter; default: the one the adapter names."),
    Flag(names=("--gguf",), type=str, help="Let llama.cpp answer, from this GGUF export of it; needs llama-cpp-python."),
    Flag(names=("--vllm",), type=bool, help="Let vLLM answer, in this process; it has to be installed."),
    Flag(names=("--vllm-memory",), type=float, help="Share of the device's memory vLLM may take, 0 to 1; default: vLLM's own."),
    Flag(names=("--compare",), type=str, help="Let another model answer beside it: base, or a model's name or folder."),
    Flag(names=("--system", "-s"), type=str, help="System prompt; default: the one of the training rows."),
    Flag(names=("--prompt", "-p"), type=str, help="Answer this one prompt and exit."),
    Flag(names=("--lines",), type=bool, help="Read a pipe line by line, as if typed; without it all of it is one prompt."),
    Flag(names=("--continue", "-c"), type=bool, help="Go on with the latest conversation, or with that of --transcript."),
    Flag(names=("--transcript",), type=str, help="Keep the conversation in this file; default: in the run, or in the cache."),
    Flag(names=("--no-log", "-n"), type=bool, help="Keep the conversation nowhere."),
    Flag(names=("--max-new-tokens",), type=int, help="Longest answer in tokens; default: 256."),
    Flag(names=("--temperature",), type=float, help="0 (the default) takes the likeliest token; above it tokens are drawn."),
    Flag(names=("--top-p",), type=float, help="Draw from the likeliest tokens that together have this probability."),
    Flag(names=("--top-k",), type=int, help="Draw from so many of the likeliest tokens."),
    Flag(names=("--seed",), type=int, help="Seed of the drawing; default: 0."),
)
DEFAULT_MAX_NEW_TOKENS = 256


def chat(given: Given) -> Outcome:
    """Talk to the tuned model of a run, to an adapter, or to any model.

    In a terminal one prompt a line; /help says what else there is. A pipe is one prompt: cat letter.txt | luthier chat RUN -s "Sum it
    up." Ctrl-C stops an answer, once more leaves. What was said is kept: --continue goes on with it, luthier feedback makes rows of it.
    """
    drawing = _drawing(given)
    from luthier.cli.chat_loop import Listener, answer_all, answer_one
    from luthier.core.console import read_document
    from luthier.pipeline.chat import open_chat_with
    from luthier.pipeline.talk import open_talk

    base, compare, system, prompt, file = (_text(given, name) for name in ("model", "compare", "system", "prompt", "transcript"))
    target, gguf = given.arguments[0], _text(given, "gguf")
    is_person = prompt is None and sys.stdin.isatty()
    by_line = is_person or bool(given.values.get("lines"))
    if prompt is None and not by_line:
        prompt = read_document()
    with ExitStack() as until:
        by = _engine(gguf, target, until, is_vllm=bool(given.values.get("vllm")), vllm_memory=given.values.get("vllm_memory"))

        def open_conversation(before: ChatTranscript | None) -> Conversation:
            said = before.system if system is None and before is not None else system
            return open_chat_with(target, compare=compare, base=base, system=said, by=by)

        talk = until.enter_context(
            open_talk(
                target,
                open_conversation,
                file=None if file is None else Path(file).expanduser(),
                goes_on=bool(given.values.get("continue_")),
                is_kept=not given.values.get("no_log"),
            )
        )
        listener = Listener(target=target, is_person=is_person, is_shown=not given.as_json)
        turns = answer_all(talk, drawing, listener) if prompt is None else [answer_one(talk, prompt, drawing, listener)]
        return {"lines": [], "json": {"turns": [_as_json(turn) for turn in turns], "transcript": talk.transcript.path or None}}


def _engine(gguf: str | None, target: str, until: ExitStack, *, is_vllm: bool, vllm_memory: object) -> InLlama | OpenEngine:
    """What answers. Raises ConfigError for both and for a share of memory that is none, MissingExtraError for what is not installed."""
    from luthier.core.errors import ConfigError
    from luthier.pipeline.in_llama import find_in_llama
    from luthier.pipeline.in_vllm import find_in_vllm, share_of_memory
    from luthier.pipeline.open import open_engine

    if gguf is not None and is_vllm:
        raise ConfigError("a GGUF file is answered from by llama.cpp", where="--vllm", fix="leave --gguf or --vllm out")
    memory = share_of_memory(vllm_memory, is_vllm=is_vllm)
    if is_vllm:
        return find_in_vllm(until, memory=memory).open_engine
    return open_engine if gguf is None else find_in_llama(Path(gguf).expanduser(), target, until, num_rows=1)


def _drawing(given: Given) -> Drawing:
    """The flags that say how answers are drawn. Raises ConfigError."""
    from luthier.core.errors import ConfigError
    from luthier.core.types import Sampling
    from luthier.serve.chat import Drawing

    number = {name: given.values.get(name) for name in ("max_new_tokens", "temperature", "top_p", "top_k", "seed")}
    bounds = {"max_new_tokens": (1, None), "temperature": (0, 10), "top_p": (0, 1), "top_k": (1, None), "seed": (0, None)}
    for name, value in number.items():
        low, high = bounds[name]
        is_out = isinstance(value, int | float) and not (
            low <= value and (high is None or value <= high) and (name != "top_p" or value > 0)
        )
        if is_out:
            expected = f"{low} or more" if high is None else f"between {low} and {high}" if name != "top_p" else "above 0 and at most 1"
            flag = f"--{name.replace('_', '-')}"
            fix = f"{flag} {DEFAULT_MAX_NEW_TOKENS if name == 'max_new_tokens' else 1}"
            raise ConfigError(f"found {value}, expected {expected}", where=flag, fix=fix)
    idle = [f"--{name.replace('_', '-')}" for name in ("top_p", "top_k", "seed") if number[name] is not None]
    if idle and not number["temperature"]:
        raise ConfigError(
            "changes nothing while the likeliest token is taken", where=idle[0], fix=f"add --temperature 1, or leave {idle[0]} out"
        )
    longest = number.pop("max_new_tokens")
    sampling = Sampling(**{name: value for name, value in number.items() if value is not None})  # pyright: ignore[reportArgumentType]
    return Drawing(max_new_tokens=longest if isinstance(longest, int) else DEFAULT_MAX_NEW_TOKENS, sampling=sampling)


def _text(given: Given, name: str) -> str | None:
    value = given.values.get(name)
    return None if value is None else str(value)


def _as_json(turn: ChatTurn) -> dict[str, object]:
    return {
        "prompt": turn.prompt,
        "answers": {answer.voice: answer.text for answer in turn.answers},
        "ids": {answer.voice: answer.id for answer in turn.answers},
        "finish": {answer.voice: answer.finish for answer in turn.answers},
        "num_dropped": {answer.voice: answer.num_dropped for answer in turn.answers},
    }


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    add_command(app, "chat", chat, FLAGS, argument=TARGET)
