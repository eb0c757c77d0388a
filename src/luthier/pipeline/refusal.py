"""Turning what pydantic says about settings into errors a person can act on."""

from __future__ import annotations

import difflib
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
    raise ConfigError(f"{len(problems)} settings cannot be used:{lines}", where="settings", fix="mend each as said above")


def problems_of(error: ValidationError, where: Mapping[str, str], known: Iterable[str]) -> list[Problem]:
    """One problem for each setting pydantic refused. `where` maps dotted keys to origins, `known` lists all dotted keys."""
    names = list(known)
    out: dict[str, Problem] = {}
    for detail in error.errors(include_url=False, include_context=True):
        problem = _problem(detail, where, names)
        out.setdefault(problem.where, problem)  # a union reports each of its members
    return list(out.values())


def _problem(detail: ErrorDetails, where: Mapping[str, str], names: Sequence[str]) -> Problem:
    groups = {name.split(".")[0] for name in names if "." in name}
    dotted = _dotted(detail["loc"], names, groups)
    place = f"{dotted} ({origin})" if (origin := _origin(dotted, where)) else dotted
    found = _brief(detail["input"])
    if detail["type"] == "extra_forbidden":
        right = nearest(dotted, names)
        return Problem(
            where=place,
            found="a key that does not exist",
            expected=f"a setting; did you mean {right}?",
            fix=f"write {right} instead of {dotted}",
        )
    if detail["type"] == "model_type":
        inner = ", ".join(name.partition(".")[2] for name in names if name.startswith(f"{dotted}."))
        return Problem(where=place, found=found, expected=f"a group of settings ({inner})", fix=f"indent its settings below `{dotted}:`")
    if detail["type"] == "value_error":
        limit = detail["msg"].removeprefix("Value error, ")
        return Problem(
            where=place, found="settings that do not fit each other", expected=limit, fix=f"set {limit.replace(' at most ', ' <= ')}"
        )
    expected = detail["msg"].removeprefix("Input should be ").removeprefix("Input should have ")
    return Problem(where=place, found=found, expected=expected, fix=_remedy(detail, dotted))


def _remedy(detail: ErrorDetails, dotted: str) -> str:
    limits = detail.get("ctx", {})
    if detail["type"] == "literal_error":
        allowed = [part.strip("'") for part in str(limits.get("expected", "")).replace(" or ", ", ").split(", ")]
        close = difflib.get_close_matches(str(detail["input"]), allowed, n=1, cutoff=0.0)
        return f"set {dotted} to {close[0]}" if close else f"set {dotted} to one of these"
    if "ge" in limits:
        return f"set {dotted} to {limits['ge']} or more"
    if "le" in limits:
        return f"set {dotted} to {limits['le']} or less"
    if detail["type"] == "string_type" and not isinstance(detail["input"], dict | list):
        return f'put the text in quotes: {dotted}: "{detail["input"]}"'
    return f"mend {dotted}, or leave it out to get the default"


def nearest(key: str, names: Iterable[str]) -> str:
    """The known dotted key most like `key`: a slip of the pen in its own group first, then the same name in another group."""
    known = list(names)
    group, _, last = key.rpartition(".")

    def likeness(name: str) -> tuple[float, float]:
        name_group, _, name_last = name.rpartition(".")
        own = difflib.SequenceMatcher(None, last, name_last).ratio()
        return own + (0.3 if name_group == group else 0.0), difflib.SequenceMatcher(None, key, name).ratio()

    return max(known, key=likeness)


def _dotted(loc: tuple[int | str, ...], names: Sequence[str], groups: set[str]) -> str:
    """The setting an error belongs to; list positions and the members of unions that pydantic appends are dropped."""
    parts = [str(part) for part in loc]
    if not parts:
        return "settings"
    two = ".".join(parts[:2])
    if parts[0] in groups and len(parts) > 1:
        return two
    return parts[0] if parts[0] in names or parts[0] in groups or len(parts) == 1 else two


def _origin(dotted: str, where: Mapping[str, str]) -> str:
    """Where a key was set, or else something below it (a group that is not one)."""
    return where.get(dotted) or next((origin for key, origin in where.items() if key.startswith(f"{dotted}.")), "")


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 1]}…"
