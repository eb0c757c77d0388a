"""From a flag table and a function to a command: the one place where options become settings and errors become exit codes."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.options import ALWAYS, CONFIG, DEBUG, EXIT_CODES, JSON, SET, Flag

if TYPE_CHECKING:
    from luthier.pipeline.settings import Settings

DEFAULT_CONFIG = "luthier.yaml"
METAVARS: Mapping[type, str] = {str: "TEXT", int: "INTEGER", float: "NUMBER"}
MAX_ERROR_CHARS = 200
EXIT_OURS, EXIT_USER, EXIT_SIGINT = 1, 2, 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """A positional argument; `many` takes any number of them, `default` None makes it required."""

    name: str
    help: str
    many: bool = False
    default: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What was typed. Options that were not given are not in it."""

    arguments: tuple[str, ...]
    values: Mapping[str, object]  # parameter name -> value, for the command's own flags
    settings: Mapping[str, object]  # dotted key -> value
    set_items: tuple[str, ...]
    config: str | None
    as_json: bool

    def overrides(self) -> dict[str, object]:
        """Dotted keys of flags and `--set`, flags first. Raises ConfigError."""
        from luthier.pipeline.settings import parse_set

        return {**parse_set(self.set_items), **self.settings}

    def load(self) -> Settings:
        """The settings of this call. Raises ConfigError."""
        from luthier.core.console import note
        from luthier.pipeline.settings import load_settings

        overrides = dict(self.settings)
        path = Path(self.config) if self.config else None
        if self.arguments:
            overrides["data.paths"] = list(self.arguments)
        elif path is None and Path(DEFAULT_CONFIG).is_file():
            path = Path(DEFAULT_CONFIG)
            note(f"settings from {DEFAULT_CONFIG}")
        return load_settings(path, overrides, set_items=self.set_items)


Outcome = Mapping[str, object]  # "lines" for people, "json" for programs; `check` adds "pieces" and "is_refused"; empty: nothing to say


def add_command(
    app: typer.Typer,
    name: str,
    function: Callable[[Given], Outcome],
    flags: Sequence[Flag] = (),
    *,
    argument: Argument | None = None,
    takes_settings: bool = False,
) -> None:
    """Make `function` a command. Its docstring is the help; `takes_settings` adds --config and --set.

    Every command gets --json and --debug.
    """
    table = (*flags, *((CONFIG, SET) if takes_settings else ()), *ALWAYS)
    assert len({flag.parameter for flag in table}) == len(table)

    def command(**values: object) -> None:  # typer calls by keyword, with exactly the names in `table`
        given = _given(table, values, argument)
        raise typer.Exit(guarded(function, given, debug=bool(values[DEBUG.parameter])))

    parameters = ([_positional(argument)] if argument else []) + [_option(flag) for flag in table]
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    command.__doc__ = inspect.getdoc(function)
    app.command(name, epilog=EXIT_CODES)(command)


def _positional(argument: Argument) -> inspect.Parameter:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    info = typer.Argument(help=argument.help, metavar=argument.name.upper())
    if argument.many:
        return inspect.Parameter(argument.name, kind, annotation=Annotated[list[str] | None, info], default=None)
    default = inspect.Parameter.empty if argument.default is None else argument.default
    return inspect.Parameter(argument.name, kind, annotation=Annotated[str, info], default=default)


def _option(flag: Flag) -> inspect.Parameter:
    metavar = " ".join(flag.words) or (None if flag.type is bool else METAVARS[flag.type])
    info = typer.Option(*flag.names, help=flag.help, show_default=False, metavar=metavar)
    kind = list[flag.type] if flag.many else flag.type  # pyright: ignore[reportInvalidTypeArguments]
    if flag.words:
        kind = tuple[(flag.type,) * len(flag.words)]  # pyright: ignore[reportInvalidTypeArguments]
    return inspect.Parameter(flag.parameter, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind | None, info], default=None)


def _given(table: Sequence[Flag], values: Mapping[str, object], argument: Argument | None) -> Given:
    typed = {flag.parameter: flag for flag in table if values[flag.parameter] not in (None, [], ())}
    own = {name: values[name] for name, flag in typed.items() if not flag.key}
    first = values[argument.name] if argument else None
    items = own.pop(SET.parameter, ())
    config = own.pop(CONFIG.parameter, None)
    return Given(
        arguments=tuple(first) if isinstance(first, list) else (str(first),) if first is not None else (),
        values={name: value for name, value in own.items() if name not in (JSON.parameter, DEBUG.parameter)},
        settings={flag.key: values[name] for name, flag in typed.items() if flag.key},
        set_items=tuple(items) if isinstance(items, list | tuple) else (),
        config=None if config is None else str(config),
        as_json=bool(values[JSON.parameter]),
    )


def guarded(function: Callable[[Given], Outcome], given: Given, *, debug: bool) -> int:
    """Run a command, show what came of it, and return the exit code. Errors never show a traceback unless asked, and never locals."""
    from luthier.core.console import note, result_json, result_lines, result_pieces
    from luthier.core.errors import LuthierError
    from luthier.core.stop import Stopped

    try:
        outcome = function(given)
    except LuthierError as error:
        note(_traceback() if debug else f"error: {error}")
        if given.as_json:
            result_json({"error": {"where": error.where, "message": error.message, "fix": error.fix}, "exit_code": EXIT_USER})
        return EXIT_USER
    except KeyboardInterrupt as error:
        code = error.exit_code if isinstance(error, Stopped) else EXIT_SIGINT
        go_on = error.go_on if isinstance(error, Stopped) else ""
        again = go_on or shlex.join(["luthier", *(word for word in sys.argv[1:] if word != "--fresh")])  # which would start over
        note(f"stopped; to go on: {again}")
        if given.as_json:
            result_json({"error": {"where": "", "message": "stopped", "fix": again}, "exit_code": code})
        return code
    except BrokenPipeError:
        return EXIT_OURS  # whoever read our output left; there is nobody to tell
    except Exception as error:  # the border of the program: whatever else escapes is a bug of ours
        first = f"{type(error).__name__}: {error}".splitlines()[0][:MAX_ERROR_CHARS]
        summary = f"error: this is a bug, sorry ({first}). Repeat with --debug to see the traceback, and please report it."
        note(_traceback() if debug else summary)
        if given.as_json:
            result_json({"error": {"where": "", "message": f"a bug: {type(error).__name__}", "fix": "--debug"}, "exit_code": EXIT_OURS})
        return EXIT_OURS
    if not outcome:
        return 0  # one of several processes, and not the one that speaks
    lines, pieces, value = outcome.get("lines", ()), outcome.get("pieces", ()), outcome.get("json", {})
    assert isinstance(lines, list | tuple) and isinstance(pieces, list | tuple) and isinstance(value, Mapping)
    if given.as_json:
        result_json(value)
    else:
        result_lines(lines)
        result_pieces(pieces)
    return EXIT_USER if outcome.get("is_refused") else 0


def _traceback() -> str:
    import traceback

    return traceback.format_exc().rstrip()
