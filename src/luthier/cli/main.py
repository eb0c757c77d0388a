"""`luthier`: the verbs. Nothing heavy is imported here, so that --help answers at once."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from luthier import __version__
from luthier.cli import chat, data, demo, doctor, models, reading, setup
from luthier.cli.options import EXIT_CODES

HELP = "Prompt or fine-tune? Decided by measurement on your own examples, then built."


def build_app() -> typer.Typer:
    """The command tree."""
    app = typer.Typer(
        name="luthier",
        help=HELP,
        epilog=EXIT_CODES,
        no_args_is_help=True,
        rich_markup_mode=None,  # plain help: fast, and readable in every terminal
        pretty_exceptions_enable=False,
        add_completion=True,
        context_settings={"token_normalize_func": _dashes, "help_option_names": ["-h", "--help"]},
    )
    app.callback(epilog=EXIT_CODES)(_top)
    for part in (data, reading, chat, models, setup, demo, doctor):
        part.add_to(app)
    return app


def main() -> None:
    """Entry point of the console script."""
    build_app()(sys.argv[1:], prog_name="luthier")


def _show_version(wanted: bool) -> None:
    if wanted:
        from luthier.core.console import result_lines

        result_lines([f"luthier {__version__}"])
        raise typer.Exit


def _top(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)] = False,
) -> None:
    del version


def _dashes(token: str) -> str:
    """Both --test-rows and --test_rows."""
    return token.replace("_", "-")


if __name__ == "__main__":
    main()
