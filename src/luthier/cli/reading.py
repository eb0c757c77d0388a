"""`luthier decide` and `report`: the commands that start from a finished run and need no model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import typer

from luthier.cli.command import Argument, Given, Outcome, add_command
from luthier.cli.options import DECIDE, SET

RUN = Argument(name="run", help="Folder of a finished run.")


def decide(given: Given) -> Outcome:
    """Decide again on a finished run.

    Under another margin, volume or price; from what was measured, without a model.
    """
    overrides = given.overrides()
    _refuse_other_settings(overrides)
    from luthier.pipeline.decide import redecide

    return redecide(Path(given.arguments[0]), overrides)


def report(given: Given) -> Outcome:
    """Write the report of a run anew.

    From what was measured, without a model.
    """
    from luthier.pipeline.decide import redecide

    return redecide(Path(given.arguments[0]), {})


def _refuse_other_settings(overrides: Mapping[str, object]) -> None:
    """What was measured cannot be changed afterwards; the metric was declared before the test items were opened."""
    from luthier.core.errors import ConfigError

    other = [key for key in overrides if not key.startswith("decide.") or key == "decide.metric"]
    if other:
        raise ConfigError(
            f"{', '.join(other)}: expected settings of the decision alone (decide.*, but not decide.metric)",
            where="--set",
            fix="start another run with it: luthier run ... --run-dir NEW",
        )


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    add_command(app, "decide", decide, (*DECIDE, SET), argument=RUN)
    add_command(app, "report", report, argument=RUN)
