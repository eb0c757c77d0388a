"""An Ollama Modelfile: written, and read as Ollama's own parser reads it.

Ollama does not run the Jinja template inside a GGUF file: it guesses a template of its own by likeness, or uses none. So the chat
template is written out in Go's template language. Which words stand around a turn is found by rendering stand-ins through the
model's own template; the gate then renders real items from the file and holds them against it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.core.errors import InputError, ModelError
from luthier.core.types import Message
from luthier.core.untrusted import render_untrusted
from luthier.tokens.render import PLAIN_SEPARATOR, fold_system, render_chat
from luthier.tokens.template import ChatEncoder

MIN_CONTEXT = 4096  # Ollama's own default; longer prompts would be cut without a word
MAX_CONTEXT = 32768  # memory for it is taken at once
_SYSTEM, _USER, _ANSWER, _LATER = "Wq7sys1Wq", "Wq7usr2Wq", "Wq7ans3Wq", "Wq7usr4Wq"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """What a template writes around each part of a conversation."""

    opening: str  # in front of everything, where there is no system text
    system: tuple[str, str]
    user: tuple[str, str]
    answer: tuple[str, str]
    prompt: str  # behind the last turn, where the model is to answer
    folds_system: bool  # system text goes in front of the first user text


def find_turns(encoder: ChatEncoder, *, strip_bos: bool) -> Turns:
    """Learn a template's turns from stand-ins. With `strip_bos` its own BOS is left out: the runtime puts one there.

    Raises ModelError for a template that is more than words around texts.
    """
    user, answer, later = (
        Message(role="user", content=_USER),
        Message(role="assistant", content=_ANSWER),
        Message(role="user", content=_LATER),
    )
    alone, shown = _render(encoder, [user], False), _render(encoder, [user], True)
    talk, pair = _render(encoder, [user, answer, later], False), _render(encoder, [user, answer], False)
    bos = str(encoder.tokenizer.bos_token or "") if strip_bos else ""
    try:
        before, after_user = alone.split(_USER)
        between, after_answer = pair.split(_USER)[1].split(_ANSWER)
        middle = talk.split(_ANSWER)[1].split(_LATER)[0]
        if not (shown.startswith(alone) and between.startswith(after_user) and middle.startswith(after_answer)):
            raise ValueError
        before_user = middle.removeprefix(after_answer)
        if not before.endswith(before_user):
            raise ValueError
        opening, system = before.removesuffix(before_user), ("", "")
        if not encoder.folds_system:
            parts = _render(encoder, [Message(role="system", content=_SYSTEM), user], False).split(_USER)[0].split(_SYSTEM)
            system = (parts[0], parts[1].removesuffix(before_user))
            if not parts[1].endswith(before_user):
                raise ValueError
    except (ValueError, IndexError) as error:
        raise ModelError(
            "the chat template is more than words around each turn, so it cannot be written as an Ollama template",
            where=str(encoder.tokenizer.name_or_path),
            fix="--to gguf, and serve it with llama-server --jinja, which runs the template itself",
        ) from error
    return Turns(
        opening=opening.removeprefix(bos),
        system=(system[0].removeprefix(bos), system[1]),
        user=(before_user, after_user),
        answer=(between.removeprefix(after_user), after_answer),
        prompt=shown.removeprefix(alone),
        folds_system=encoder.folds_system,
    )


def _render(encoder: ChatEncoder, messages: Sequence[Message], is_prompt: bool) -> str:
    if encoder.is_chat:
        return render_chat(encoder.tokenizer, messages, add_generation_prompt=is_prompt)
    ends = {"system": PLAIN_SEPARATOR, "user": "\n", "assistant": PLAIN_SEPARATOR}  # as `render_plain`
    return "".join(message.content + ends[message.role] for message in messages)


def go_template(turns: Turns) -> str:
    """The turns in Go's template language. All words stand in quoted strings, so nothing in them can be an action."""

    def around(pair: tuple[str, str], inner: str) -> str:
        return _words(pair[0]) + inner + _words(pair[1])

    if turns.folds_system:
        fold = "{{ if $system }}{{ $system }}" + _words(PLAIN_SEPARATOR) + '{{ $system = "" }}{{ end }}'
        head, user = "{{ $system := .System }}" + _words(turns.opening), around(turns.user, fold + "{{ .Content }}")
    else:
        no_system = "{{ else }}" + _words(turns.opening) if turns.opening else ""
        head = "{{ if .System }}" + around(turns.system, "{{ .System }}") + no_system + "{{ end }}"
        user = around(turns.user, "{{ .Content }}")
    answer = around(turns.answer, "{{ .Content }}")
    roles = '{{ if eq .Role "user" }}' + user + '{{ else if eq .Role "assistant" }}' + answer + "{{ end }}"
    return head + "{{ range .Messages }}" + roles + "{{ end }}" + _words(turns.prompt)


def _words(text: str) -> str:
    """A Go string that prints `text`; nothing for no text."""
    return '{{ "' + "".join(_go_char(char) for char in text) + '" }}' if text else ""


def _go_char(char: str) -> str:
    named = {"\n": "\\n", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
    if char in named:
        return named[char]
    code = ord(char)
    if 0x20 <= code < 0x7F and char not in "{}":
        return char
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def render_modelfile(*, gguf_file: str, template: str, system: str, stops: Sequence[str], context: int) -> str:
    """The Modelfile. Raises InputError for a system text or stop that the format cannot hold.

    temperature and repeat_penalty are those of the measurement: Ollama's own defaults sample, and punish words said before.
    """
    lines = [
        f"FROM ./{gguf_file}",
        f'TEMPLATE """{template}"""',
        *([f"SYSTEM {render_untrusted(system, 'modelfile')}"] if system else []),
        *(f"PARAMETER stop {render_untrusted(stop, 'modelfile')}" for stop in stops),
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        f"PARAMETER num_ctx {max(min(context, MIN_CONTEXT), min(context, MAX_CONTEXT))}",
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Modelfile:
    """What Ollama makes of a Modelfile."""

    source: str
    template: str
    system: str
    parameters: tuple[tuple[str, str], ...]

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return tuple(value for name, value in self.parameters if name == "stop")


def read_modelfile(text: str) -> Modelfile:
    """Read as Ollama's `parser.ParseFile` does. Raises InputError for what it refuses, and for a command given twice or unknown."""
    found: dict[str, str] = {}
    parameters: list[tuple[str, str]] = []
    for name, value in _commands(text):
        if name == "parameter":
            key, _, rest = value.partition(" ")
            parameters.append((key, rest))
        elif name in ("from", "template", "system") and name not in found:
            found[name] = value
        else:
            raise InputError(f"has {name.upper()} where it should not be", where="Modelfile", fix="export again")
    unquoted = tuple((key, _unquoted(value.strip())[0]) for key, value in parameters)
    return Modelfile(source=found.get("from", ""), template=found.get("template", ""), system=found.get("system", ""), parameters=unquoted)


_COMMAND = re.compile(r"[ \t\r\n]*(#[^\r\n]*|[A-Za-z]+[ \t]+)")


def _commands(text: str) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    at = 0
    while text[at:].strip():
        match = _COMMAND.match(text, at)
        if match is None:
            raise InputError(f"has no command at character {at}", where="Modelfile", fix="export again")
        at = match.end()
        if match[1].startswith("#"):
            continue
        name = match[1].strip().lower()
        value, at = _value(text, at, is_parameter=name == "parameter")
        out.append((name, value))
    return out


def _value(text: str, start: int, *, is_parameter: bool) -> tuple[str, int]:
    """A value runs to the first line end before which its quotes are closed; unprintable characters are dropped."""
    end = start
    while True:
        newline = text.find("\n", end)
        stop = len(text) if newline < 0 else newline
        raw = "".join(char for char in text[start:stop] if char in " \n\t" or unicodedata.category(char)[0] not in "CZ")
        inner = raw.strip().partition(" ")[2].strip() if is_parameter else raw.strip()
        value, is_closed = _unquoted(inner)
        if is_closed:
            return (raw.strip() if is_parameter else value), stop
        if newline < 0:
            raise InputError("ends inside a quoted text", where="Modelfile", fix="export again")
        end = newline + 1


def _unquoted(value: str) -> tuple[str, bool]:
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            is_closed = len(value) >= 2 * len(quotes) and value.endswith(quotes)
            return (value[len(quotes) : -len(quotes)] if is_closed else ""), is_closed
    return value, True


_ACTION = re.compile(r'\{\{ (?:"((?:[^"\\]|\\.)*)"|([^"}]*(?:"[a-z]*")?)) \}\}')
_GO_ESCAPE = re.compile(r"\\(?:u([0-9a-f]{4})|U([0-9a-f]{8})|(.))")


def run_template(template: str, messages: Sequence[Message]) -> str:
    """What Ollama would send to the model: the part of Go's template language that `go_template` writes, and no more.

    Raises InputError for anything else.
    """
    tokens: list[tuple[str | None, str]] = []
    at = 0
    for match in _ACTION.finditer(template):
        if match.start() != at:
            raise InputError(f"has text outside its actions at character {at}", where="TEMPLATE", fix="export again")
        at = match.end()
        tokens.append((None if match[1] is None else _GO_ESCAPE.sub(_unescape, match[1]), match[2] or ""))
    if at != len(template):
        raise InputError(f"cannot be followed at character {at}", where="TEMPLATE", fix="export again")
    system = PLAIN_SEPARATOR.join(m.content for m in messages if m.role == "system")
    scope = {".System": system, "$system": ""}
    written, end = _run(tokens, 0, scope, messages, None)
    if end != len(tokens):
        raise InputError("has an {{ end }} too many", where="TEMPLATE", fix="export again")
    return written


def _unescape(match: re.Match[str]) -> str:
    code = match[1] or match[2]
    return chr(int(code, 16)) if code else {"n": "\n", "t": "\t"}.get(match[3], match[3])


def _run(
    tokens: Sequence[tuple[str | None, str]], at: int, scope: dict[str, str], messages: Sequence[Message], turn: Message | None
) -> tuple[str, int]:
    """Run until the end of a block; returns what was written and where the block ended."""
    out: list[str] = []
    while at < len(tokens):
        words, action = tokens[at]
        if action in ("end", "else") or action.startswith("else if "):
            return "".join(out), at
        at += 1
        if words is not None:
            out.append(words)
        elif action == ".Content" and turn is not None:
            out.append(turn.content)
        elif action in scope:
            out.append(scope[action])
        elif action == "$system := .System":
            scope["$system"] = scope[".System"]
        elif action == '$system = ""':
            scope["$system"] = ""
        elif action == "range .Messages":
            start = at
            for message in messages:
                written, at = _run(tokens, start, scope, messages, message)
                out.append(written)
            at += 1
        elif action.startswith("if "):
            written, at = _branch(tokens, at, action.removeprefix("if "), scope, messages, turn)
            out.append(written)
        else:
            raise InputError(f"has the action {action!r}", where="TEMPLATE", fix="export again")
    return "".join(out), at


def _branch(
    tokens: Sequence[tuple[str | None, str]],
    at: int,
    condition: str,
    scope: dict[str, str],
    messages: Sequence[Message],
    turn: Message | None,
) -> tuple[str, int]:
    """The first branch whose condition holds; returns what it wrote and where the whole `if` ended."""
    taken: str | None = None
    while True:
        role = re.fullmatch(r'eq \.Role "([a-z]+)"', condition)
        holds = condition == "" or (turn is not None and role is not None and turn.role == role[1]) or bool(scope.get(condition))
        before = dict(scope)
        written, at = _run(tokens, at, scope, messages, turn)
        if taken is None and holds:
            taken = written
        else:
            scope.update(before)
        if at >= len(tokens):
            raise InputError("has an {{ if }} without an end", where="TEMPLATE", fix="export again")
        action = tokens[at][1]
        at += 1
        if action == "end":
            return taken or "", at
        condition = action.removeprefix("else").removeprefix(" if ").strip() if action != "else" else ""


def expected_prompt(encoder: ChatEncoder, messages: Sequence[Message], *, strip_bos: bool) -> str:
    """The prompt as the model's own template writes it, for the comparison with `run_template`."""
    if not encoder.is_chat:
        return _render(encoder, messages, True)
    turns = fold_system(messages) if encoder.folds_system else messages
    text = render_chat(encoder.tokenizer, turns, add_generation_prompt=True)
    return text.removeprefix(str(encoder.tokenizer.bos_token or "")) if strip_bos else text
