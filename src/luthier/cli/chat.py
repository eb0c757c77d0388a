"""`luthier chat`: talk to a tuned model, beside its base if you like."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from luthier.cli.command import Argument, Given, Outcome, add_command
from luthier.cli.options import Flag

if TYPE_CHECKING:
    from luthier.serve.chat import Conversation

TARGET = Argument(name="run", help="Folder of a finished run or of an adapter, or a model's name or folder.")
MODEL = Flag(names=("--model",), type=str, help="Base model of an adapter; default: the one the adapter names.")
COMPARE = Flag(names=("--compare",), type=bool, help="Let the base model answer too.")
SYSTEM = Flag(names=("--system",), type=str, help="System prompt; default: the one of the training rows.")
PROMPT = Flag(names=("--prompt", "-p"), type=str, help="Answer this one prompt and exit.")
LENGTH = Flag(names=("--max-new-tokens",), type=int, help="Longest answer in tokens; default: 256.")
DEFAULT_MAX_NEW_TOKENS = 256


def chat(given: Given) -> Outcome:
    """Talk to the tuned model of a run, or to an adapter.

    One prompt a line, from the terminal or a pipe; /reset forgets, /exit leaves.
    """
    from luthier.core.console import note, result_lines
    from luthier.core.errors import ConfigError
    from luthier.pipeline.chat import open_chat_with
    from luthier.serve.chat import say

    prompt, system, base = (given.values.get(name) for name in ("prompt", "system", "model"))
    max_new_tokens = given.values.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ConfigError(
            f"found {max_new_tokens}, expected 1 or more", where="--max-new-tokens", fix=f"--max-new-tokens {DEFAULT_MAX_NEW_TOKENS}"
        )
    conversation = open_chat_with(
        given.arguments[0],
        compare=bool(given.values.get("compare")),
        system=None if system is None else str(system),
        base=None if base is None else str(base),
    )
    if prompt is None and sys.stdin.isatty():
        note("One prompt a line; /reset forgets what was said, /exit leaves.")
    show_names = len(conversation.voices) > 1
    turns: list[dict[str, object]] = []

    def show(name: str, text: str) -> None:
        if not given.as_json:
            result_lines([f"[{name}] {text}" if show_names else text])

    for text in [str(prompt)] if prompt is not None else _typed(conversation):
        answers = say(conversation, text, max_new_tokens=max_new_tokens, on_answer=show)
        turns.append({"prompt": text, "answers": answers})
    return {"lines": [], "json": {"turns": turns}}


def _typed(conversation: Conversation) -> Iterator[str]:
    """Prompts line by line until the end of input or /exit."""
    from luthier.core.console import ask

    while (text := ask("> ")) is not None and text.strip() != "/exit":
        if text.strip() == "/reset":
            conversation.reset()
        elif text.strip():
            yield text


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    add_command(app, "chat", chat, (MODEL, COMPARE, SYSTEM, PROMPT, LENGTH), argument=TARGET)
