"""Child process: renders one unknown chat template under limits, so that a template bomb takes nobody else down.

    python -m luthier.tokens.probe  <request.json  >answer.json

jinja2's sandbox keeps a template away from the interpreter but not from the processor or the memory: `{{ 'a' * 10**9 }}` and
nested loops run for as long as they like. This file imports nothing of ours and no torch, so that it starts in a moment.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CPU_S = 2
MAX_EXTRA_MIB = 96
MAX_OUTPUT_CHARS = 1_000_000


class _StrictSandbox(ImmutableSandboxedEnvironment):
    """A sandbox that refuses at the first reach for an unsafe attribute; jinja2's own renders it as nothing."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Called for each attribute that is not safe."""
        raise SecurityError(f"access to {attribute!r} of a {type(obj).__name__}")


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}`, which transformers' templates may use, as plain text."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own attribute

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The body, unchanged."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _limit_resources() -> Callable[[], float]:
    """Cap processor time and memory where the system can; returns a function that tells the peak memory in MiB."""
    if sys.platform == "win32":
        return lambda: 0.0
    import resource

    def peak_mib() -> float:
        unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is bytes on macOS, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(usage.ru_utime + usage.ru_stime) + MAX_CPU_S
    memory = _address_space_bytes() + MAX_EXTRA_MIB * 2**20
    for what, limit in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory)):
        try:
            resource.setrlimit(what, (limit, limit))
        except (OSError, ValueError):
            continue  # not on this system, or a lower limit holds already
    return peak_mib


def _address_space_bytes() -> int:
    """What this process has mapped now; where the system does not tell, a generous guess (the resident peak is checked too)."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 512 * 2**20


def _strftime_now(form: str) -> str:
    return form


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateRuntimeError(str(message))


def probe(template: str, conversations: list[list[dict[str, str]]], variables: dict[str, Any]) -> dict[str, str]:
    """Render each conversation with and without a generation prompt: {"state": "ok" | a kind of failure, "detail": ...}.

    A template that refuses a conversation (`raise_exception`) has answered properly: that is not a failure.
    """
    environment = _StrictSandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    functions: dict[str, Any] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    environment.globals.update(functions)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, indent=options.get("indent"))
    peak_mib = _limit_resources()
    before = peak_mib()
    try:
        compiled = environment.from_string(template)
        for messages in conversations:
            for add_generation_prompt in (False, True):
                try:
                    text = compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, **variables)
                except jinja2.TemplateRuntimeError as error:
                    if isinstance(error, SecurityError | jinja2.UndefinedError):
                        raise
                    continue
                if len(text) > MAX_OUTPUT_CHARS:
                    return {"state": "memory", "detail": f"{len(text):,} characters for a one-word conversation"}
    except SecurityError as error:
        return {"state": "unsafe", "detail": str(error)}
    except (MemoryError, OverflowError):
        return {"state": "memory", "detail": "out of memory"}
    except RecursionError:
        return {"state": "memory", "detail": "endless recursion"}
    except Exception as error:  # whatever a template can raise is an answer, never a crash
        return {"state": "broken", "detail": f"{type(error).__name__}: {error}"[:500]}
    grown = peak_mib() - before
    if grown > MAX_EXTRA_MIB:
        return {"state": "memory", "detail": f"{grown:.0f} MiB for a one-word conversation"}
    return {"state": "ok", "detail": ""}


if __name__ == "__main__":
    request = json.loads(sys.stdin.buffer.read())
    sys.stdout.write(json.dumps(probe(request["template"], request["conversations"], request["variables"])))
