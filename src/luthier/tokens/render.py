"""The text of a conversation: through the model's own chat template, or the plain one for models that have none.

A template comes with the model and is untrusted. transformers renders it in jinja2's sandbox; before that, a template this
version does not know is rendered once in a child process with limits (`probe.py`). That one trial cannot find a
template that misbehaves only for certain contents; those stay inside the sandbox but are not bounded in time.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import jinja2

from luthier.core.errors import InputError, ModelError
from luthier.core.hashing import sha256_text
from luthier.core.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TEMPLATE_CHARS = 200_000
PROBE_WALL_S = 20.0  # the limit that counts is 2 s of processor time inside; this one is for what sleeps instead of working

# What templates may ask for. Fixed, because the same seed must give the same tokens on any day: Llama 3 writes the date
# into its prompt, and Qwen 3 leaves room to think unless told not to, which no training response contains.
TEMPLATE_DATE = datetime.date(2024, 7, 26)  # Llama 3's own, where its template is given none
TEMPLATE_VARIABLES: dict[str, Any] = {"date_string": TEMPLATE_DATE.strftime("%d %b %Y"), "enable_thinking": False}
_DATE_CALL = re.compile(r"""strftime_now\(\s*(?:format\s*=\s*)?(["'])([^"'\\]*)\1\s*\)""")
_DATE_TEST = re.compile(r"strftime_now\s+is\s+(?:not\s+)?defined")

# sha256 of templates that were read by a person and need no trial.
KNOWN_TEMPLATES = frozenset({"872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"})  # SmolLM2-Instruct


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template a conversation without tools is rendered with, its date held; None for a base model. Raises ModelError."""
    if not tokenizer.chat_template:
        return None
    try:
        template = tokenizer.get_chat_template()
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"the tokenizer has several chat templates and none is the default: {error}",
            where=str(tokenizer.name_or_path),
            fix="keep only the template to use, as chat_template.jinja in the model folder",
        ) from error
    if len(template) > MAX_TEMPLATE_CHARS:
        raise ModelError(
            f"the chat template has {len(template):,} characters, at most {MAX_TEMPLATE_CHARS:,} are read",
            where=str(tokenizer.name_or_path),
            fix="use the model's original chat_template.jinja",
        )
    return hold_date(template, where=str(tokenizer.name_or_path))


@lru_cache(maxsize=32)
def hold_date(template: str, *, where: str) -> str:
    """The template with each call of `strftime_now`, which tells today's date, replaced by `TEMPLATE_DATE` in the format it asks for.

    transformers gives a template the function itself and turns any other that it is handed into text, so the call has to go.
    Raises ModelError for a call whose format is not written out.
    """
    held = _DATE_CALL.sub(lambda call: json.dumps(TEMPLATE_DATE.strftime(call[2])), template)
    if "strftime_now" in _DATE_TEST.sub("", held):
        raise ModelError(
            "the chat template writes the date of the day in a way that cannot be held still: tokens would change over midnight",
            where=where,
            fix=f"write strftime_now's format out in chat_template.jinja, or a date in its place, such as {TEMPLATE_DATE}",
        )
    return held


def check_template(template: str, *, where: str, bos_token: str, eos_token: str) -> None:
    """Render an unknown template once under limits. Raises ModelError for bombs, sandbox escapes and broken templates."""
    if sha256_text(template) in KNOWN_TEMPLATES:
        return
    state, detail = _probe(template, bos_token, eos_token)
    reasons = {
        "time": "the chat template did not finish in time on a one-word conversation",
        "memory": f"the chat template takes too much memory ({detail})",
        "unsafe": f"the chat template reaches outside its sandbox ({detail})",
        "broken": f"the chat template cannot be rendered ({detail})",
    }
    if state != "ok":
        raise ModelError(reasons[state], where=where, fix="replace chat_template.jinja in the model folder by the model's original one")


@lru_cache(maxsize=32)
def _probe(template: str, bos_token: str, eos_token: str) -> tuple[str, str]:
    talk = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user", "assistant")]
    request = {
        "template": template,
        "conversations": [talk[1:2], talk[:2], talk[1:], talk],
        "variables": {**TEMPLATE_VARIABLES, "bos_token": bos_token, "eos_token": eos_token},
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "luthier.tokens.probe"],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=PROBE_WALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "time", ""
    if done.returncode < 0:  # ended by a signal: SIGXCPU or SIGKILL at the processor limit
        return "time", ""
    try:
        answer = json.loads(done.stdout)
        return str(answer["state"]), str(answer["detail"])
    except (ValueError, KeyError, TypeError):
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        return ("memory", "out of memory") if "MemoryError" in "".join(last) else ("broken", "".join(last)[:500])


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, object]] = (),
) -> str:
    """The conversation as text through the tokenizer's template. Raises InputError when the template refuses it."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            turns,
            tools=cast("list[Any]", list(tools)) or None,
            chat_template=chat_template(tokenizer),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **TEMPLATE_VARIABLES,
        )
    except (jinja2.TemplateError, TypeError, ValueError, RecursionError) as error:
        roles = " ".join(message.role for message in messages)
        raise InputError(
            f"the model's chat template refuses this conversation ({roles}): {error}",
            fix="bring the turns into the order the model knows: an optional system turn, then user and assistant in turn",
        ) from error
    assert isinstance(text, str)
    return text


PLAIN_SEPARATOR = "\n\n"  # between the turns of plain text


def render_plain(messages: Sequence[Message]) -> str:
    r"""The plain template for base models: `{system}\n\n{user}\n`, an earlier answer followed by a blank line.

    There are no role names: a base model has none, and each would be a word to learn.
    """
    ends = {"system": PLAIN_SEPARATOR, "user": "\n", "assistant": PLAIN_SEPARATOR}
    return "".join(message.content + ends[message.role] for message in messages)


def fold_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The system text moved in front of the first user turn, a blank line between, for templates without a system role."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    rest = [message for message in messages if message.role != "system"]
    if not system or not rest:
        return tuple(rest)
    first = Message(role=rest[0].role, content=f"{system}\n\n{rest[0].content}")
    return (first, *rest[1:])
