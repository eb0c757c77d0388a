"""`luthier models list` and `pull`."""

from __future__ import annotations

import dataclasses

import typer

from luthier.cli.command import Argument, Given, Outcome, add_command
from luthier.cli.options import EXIT_CODES

NAME = Argument(name="name", help="A name of `luthier models list`.")


def list_all(given: Given) -> Outcome:
    """List the known models.

    Those with a star are here.
    """
    del given
    from luthier.models.catalogue import cached_folder, is_complete, list_models

    rows: list[dict[str, object]] = []
    lines: list[str] = []
    for entry in list_models():
        folder = cached_folder(entry)
        here = is_complete(folder)
        rows.append({**dataclasses.asdict(entry), "here": here, "folder": str(folder) if here else None})
        size = "" if entry.num_params is None else f"{entry.num_params / 1e6:,.0f} M"
        lines.append(f"{'*' if here else ' '} {entry.name:<24} {size:>8}  {entry.licence:<12}  {entry.description}")
    return {"lines": [*lines, "", "* is here; get another with: luthier models pull NAME"], "json": {"models": rows}}


def pull_one(given: Given) -> Outcome:
    """Get a model into your cache.

    Once; this needs the network.
    """
    from luthier.core.console import note
    from luthier.models.pull import pull

    [name] = given.arguments
    folder = pull(name, progress=note)
    return {"lines": [str(folder)], "json": {"name": name, "folder": str(folder)}}


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(help="List the known models, get one.", epilog=EXIT_CODES, no_args_is_help=True, rich_markup_mode=None)
    add_command(group, "list", list_all)
    add_command(group, "pull", pull_one, argument=NAME)
    app.add_typer(group, name="models")
