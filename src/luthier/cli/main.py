"""`luthier`: the verbs. Nothing heavy is imported here, so that --help answers at once."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from luthier import __version__
from luthier.cli import chat, data, demo, doctor, export, feedback, judge, models, reading, serve, setup
from luthier.cli.command import EXIT_SIGINT, EXIT_USER
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
    for part in (data, reading, judge, chat, feedback, serve, export, models, setup, demo, doctor):
        part.add_to(app)
    return app


def main() -> None:
    """Entry point of the console script."""
    words = sys.argv[1:]
    # oneDNN, and torch above it, keep 1,024 compiled products each, one for each shape met, of 0.3 MB. Making one anew takes 0.3 ms.
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "128")
    try:
        code = build_app()(words, prog_name="luthier", standalone_mode=False)
    except typer.Abort:
        sys.exit(EXIT_SIGINT)
    except Exception as error:  # a mistake in the command line; its class belongs to the click that typer carries in itself
        message, show = getattr(error, "message", None), getattr(error, "show", None)
        if message is None or show is None:
            raise
        show()
        if "--json" in words:
            from luthier.core.console import result_json

            fix = "luthier " + " ".join([*(w for w in words[:1] if not w.startswith("-")), "--help"])
            result_json({"error": {"where": "command line", "message": str(message), "fix": fix}, "exit_code": EXIT_USER})
        sys.exit(EXIT_USER)
    leave(code if isinstance(code, int) else 0)


def leave(code: int) -> NoReturn:
    """End this process. One of several that train together ends at once: now and then Python aborts while it is taken down, when all is
    written, and torchrun then ends the others and reports a failure (docs/log.md).
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


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
