"""`luthier demo`: the whole job on the example data that comes with the source."""

from __future__ import annotations

from pathlib import Path

import typer

from luthier.cli.command import Given, Outcome, add_command
from luthier.cli.options import Flag

RUN_DIR = Flag(names=("--run-dir",), type=str, key="run_dir", help="Folder of the run; default: runs/demo.")
FRESH = Flag(names=("--fresh",), type=bool, key="fresh", help="Throw away what is in the run folder and start over.")


def demo(given: Given) -> Outcome:
    """Do the whole job on the example data.

    A support desk of a company that does not exist; about 10 minutes on 2 cores.
    """
    from luthier.core.console import show_progress
    from luthier.core.errors import InputError
    from luthier.pipeline.settings import load_settings

    source = Path(__file__).resolve().parents[3]
    config, examples = source / "examples" / "quickstart.yaml", source / "examples" / "support_desk" / "examples.jsonl"
    if not config.is_file() or not examples.is_file():
        raise InputError(
            "the example data is not here: it comes with the source, not with the installed package",
            where=str(examples),
            fix="get the source and run `make demo` in it, or run your own: luthier run examples.jsonl",
        )
    overrides = {"data.paths": [str(examples)], "run_dir": "runs/demo", **given.settings}
    settings = load_settings(config, overrides)
    from luthier.models.pull import pull
    from luthier.pipeline.run import run

    with show_progress() as progress:
        pull(settings.model.name, progress=lambda line: progress("model", 0, 0, line))
        return run(settings, progress)


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    add_command(app, "demo", demo, (RUN_DIR, FRESH))
