"""Turning what pydantic says about settings into errors a person can act on."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from luthier.core.errors import ConfigError
from luthier.pipeline.origin import Problem

MAX_SHOWN_CHARS = 60


def raise_all(problems: Sequence[Problem]) -> NoReturn:
    """One ConfigError for all of them, in order; with a single one, its place and remedy stand in `where` and `fix`."""
    if len(problems) == 1:
        one = problems[0]
        raise ConfigError(f"found {one.found}, expected {one.expected}", where=one.where, fix=one.fix)
    lines = "".join(f"\n  {number}. {one}\n     fix: {one.fix}" for number, one in enumerate(problems, start=1))
    raise ConfigError(f"{len(problems)} settings cannot be used:{lines}", fix="mend each as said")


def problems_of(error: ValidationError, where: Mapping[str, str], defaults: Mapping[str, object]) -> list[Problem]:
    """One problem for each setting pydantic refused. `where` maps dotted keys to origins, `defaults` all dotted keys to defaults."""
    out: dict[str, Problem] = {}
    for detail in error.errors(include_url=False, include_context=True):
        problem = _problem(detail, where, defaults)
        out.setdefault(problem.where, problem)  # a union reports each of its members
    return list(out.values())


def _problem(detail: ErrorDetails, where: Mapping[str, str], defaults: Mapping[str, object]) -> Problem:
    groups = tuple(dict.fromkeys(name.split(".")[0] for name in defaults if "." in name))
    dotted = _dotted(detail["loc"], defaults, groups)
    origin = where.get(dotted) or next((o for key, o in where.items() if key.startswith(f"{dotted}.")), "")
    place = f"{dotted} ({origin})" if origin else dotted
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        right = nearest(dotted, groups if isinstance(value, dict) and "." not in dotted else defaults)
        fix = f"write {right} instead of {dotted}"
        return Problem(where=place, found="a key that does not exist", expected=f"a setting; did you mean {right}?", fix=fix)
    if kind == "model_type":
        inner = ", ".join(name.partition(".")[2] for name in defaults if name.startswith(f"{dotted}."))
        fix = f"put its settings below `{dotted}:`, indented"
        return Problem(where=place, found=_brief(value), expected=f"a group of settings ({inner})", fix=fix)
    if kind == "value_error":
        limit, _, fix = (
            detail["msg"].removeprefix("Value error, ").partition(" | ")
        )  # the remedy behind it, where it is not the limit itself
        return Problem(
            where=place, found="settings that do not fit each other", expected=limit, fix=fix or f"set {limit.replace(' at most ', ' <= ')}"
        )
    return Problem(where=place, found=_brief(value), expected=_expected(detail), fix=_remedy(detail, dotted, defaults.get(dotted)))


def _expected(detail: ErrorDetails) -> str:
    limits = detail.get("ctx", {})
    words = {
        "int_type": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "text",
        "tuple_type": "a list",
        "finite_number": "a finite number",
        "greater_than_equal": f"{_number(limits.get('ge'))} or more",
        "greater_than": f"more than {_number(limits.get('gt'))}",
        "less_than_equal": f"{_number(limits.get('le'))} or less",
        "less_than": f"less than {_number(limits.get('lt'))}",
    }
    return words.get(detail["type"]) or detail["msg"].removeprefix("Input should be ").removeprefix("Input should have ")


def _number(limit: object) -> str:
    return f"{limit:g}" if isinstance(limit, int | float) else str(limit)


def _remedy(detail: ErrorDetails, dotted: str, default: object) -> str:
    limits, value = detail.get("ctx", {}), detail["input"]
    if detail["type"] == "literal_error":
        allowed = [part.strip("'") for part in str(limits.get("expected", "")).replace(" or ", ", ").split(", ")]
        close = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)
        return f"set {dotted} to {close[0]}" if close else f"set {dotted} to one of these"
    for name, words in (("ge", "or more"), ("le", "or less")):
        if name in limits:
            return f"set {dotted} to {_number(limits[name])} {words}"
    if detail["type"] == "string_type" and isinstance(value, bool | int | float):
        return f"put the text in quotes: {dotted}: {json.dumps(str(value))}"
    return f"leave {dotted} out to get the default" + ("" if default is None else f" ({_brief(default)})")


def nearest(key: str, names: Iterable[str]) -> str:
    """The known dotted key most like `key`: a slip of the pen in its own group first, then the same name in another group."""
    group, _, last = key.rpartition(".")

    def likeness(name: str) -> tuple[float, float]:
        name_group, _, name_last = name.rpartition(".")
        own = difflib.SequenceMatcher(None, last, name_last).ratio()
        return own + (0.3 if name_group == group else 0.0), difflib.SequenceMatcher(None, group, name_group).ratio() if group else 0.0

    return max(names, key=likeness)


def _dotted(loc: tuple[int | str, ...], names: Iterable[str], groups: Sequence[str]) -> str:
    """The setting an error belongs to; list positions and union members, which pydantic appends, are dropped."""
    parts = [str(part) for part in loc]
    if not parts:
        return "settings"
    if len(parts) == 1 or (parts[0] in names and parts[0] not in groups):
        return parts[0]
    return ".".join(parts[:2])


def _brief(value: object) -> str:
    """As it would be written in YAML, cut when long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 1]}…"
