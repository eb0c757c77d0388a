"""A score of the user's own: `module:function`, imported only because the user named it.

The code is the user's and is trusted as such: it runs with all the rights of this process, unchecked. What it returns is not: anything but
a number from 0 to 1, or None for "could not be scored", is refused with the item. Answers are untrusted text, for that code too.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from pathlib import Path

from luthier.core.errors import ConfigError
from luthier.core.hashing import sha256_file
from luthier.core.types import Example

KEY = "decide.metric"
NUM_TRIED = 20
CONTRACT = "f(answer: str, references: tuple[str, ...]) -> float from 0 to 1, higher is better, or None for 'could not be scored'"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnMetric:
    """The opened function. `sha256` is of the file it stands in; modules that file imports are not in it."""

    name: str  # module:function, as the user wrote it and as its scores are recorded
    file: str
    sha256: str
    function: Callable[..., object]

    def score(self, example: Example, text: str) -> float | None:
        """One answer against all right ones. Raises ConfigError, with the item, for whatever breaks the contract."""
        references = (example.response, *example.references)
        where = f"{KEY} {self.name}, item {example.id} ({example.path}:{example.line})"
        fix = f"mend it in {self.file}; it is {CONTRACT}"
        try:
            value = self.function(text, references)
        except (Exception, SystemExit) as error:
            first = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise ConfigError(f"raised {first}{_line_in(error, self.file)}", where=where, fix=fix) from error
        if value is None:
            return None
        number = float(value) if isinstance(value, Real) else math.nan
        if not 0 <= number <= 1:  # NaN is not either
            raise ConfigError(f"returned {_shown(value)}, expected a number from 0 to 1, or None", where=where, fix=fix)
        return number


def is_own(name: str) -> bool:
    """Whether a metric's name is one of the user's own."""
    return ":" in name


@lru_cache(maxsize=8)
def open_own_metric(name: str) -> OwnMetric:
    """Import the module and take the function. Raises ConfigError for a name, module or function that is none.

    The folder the command was typed in is looked at first while the module is imported, and last from then on, so that
    no file there can stand in for a module of this program.
    """
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise ConfigError(f"found {name!r}, expected module:function", where=KEY, fix="--metric score:points, for points in score.py")
    here = str(Path.cwd())
    is_new = here not in sys.path
    if is_new:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        first = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        fix = f"call it where {module_name.replace('.', '/')}.py lies, or install the package it is in"
        raise ConfigError(f"importing {module_name} failed: {first}", where=KEY, fix=fix) from error
    finally:
        if is_new:
            sys.path.remove(here)
            sys.path.append(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")][:8]
        there = f"; there are {', '.join(known)}" if known else ""
        fix = f"--metric {module_name}:{known[0]}" if known else f"def {function_name}(answer, references): …"
        raise ConfigError(f"{module_name} has no function {function_name!r}{there}", where=KEY, fix=fix)
    file = getattr(module, "__file__", None)
    if file is None or not str(file).endswith(".py"):
        fix = "wrap it in a function of a Python file of your own and name that"
        raise ConfigError(f"{module_name} is no Python file, so what scored could not be recorded", where=KEY, fix=fix)
    return OwnMetric(name=name, file=str(file), sha256=sha256_file(Path(file)), function=function)


def try_own_metric(own: OwnMetric, items: Sequence[Example]) -> tuple[float, int] | None:
    """What the items' own right answers score, mean and number scored, before any model computes; None where none could be scored.

    Each is scored twice, and an empty answer once: a function that raises, or that does not know its own mind, is found out here.
    """
    scores: list[float] = []
    for item in items[:NUM_TRIED]:
        first, second = own.score(item, item.response), own.score(item, item.response)
        own.score(item, "")
        if first != second:
            where = f"{KEY} {own.name}, item {item.id} ({item.path}:{item.line})"
            problem = f"scored the same answer {_shown(first)} and then {_shown(second)}; a verdict needs the same score each time"
            raise ConfigError(problem, where=where, fix=f"take the chance out of it in {own.file}")
        if first is not None:
            scores.append(first)
    return (math.fsum(scores) / len(scores), len(scores)) if scores else None


def _line_in(error: BaseException, file: str) -> str:
    """Where in the user's file it went wrong, innermost."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line} of {file})" if line else ""


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:
        text = "a value that cannot be shown"
    return f"{text[:80]} ({type(value).__name__})"
