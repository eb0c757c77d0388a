"""`luthier judge`: whether a run's judge says what a person says."""

from __future__ import annotations

from pathlib import Path

import typer

from luthier.cli.command import Argument, Given, Outcome, add_command
from luthier.cli.options import Flag

RUN = Argument(name="run", help="Folder of a finished run that has a judge (luthier run ... --judge-endpoint URL --judge-model NAME).")
FLAGS = (
    Flag(names=("--sample",), type=str, help="Write pairs of answers to this CSV file, to be labelled by a person."),
    Flag(names=("--pairs",), type=int, help="With --sample: so many pairs; default: 60, of which 50 have to be labelled."),
    Flag(names=("--labels",), type=str, help="Read what was written into the column better of such a file: A, B or tie."),
)


def judge(given: Given) -> Outcome:
    """Show what the judge of a run said, and calibrate it.

    A judge counts as calibrated when it agrees with a person on at least 50 pairs of answers (Cohen's kappa at least 0.6). No model is
    needed.
    """
    from luthier.core.errors import ConfigError
    from luthier.pipeline.judge_labels import show_judge, take_labels, write_sample
    from luthier.verdict.judge import SAMPLE_PAIRS

    run_dir, values = Path(given.arguments[0]), given.values
    if "sample" in values and "labels" in values:
        fix = f"luthier judge {run_dir} --sample NEW.csv"
        raise ConfigError("found --sample and --labels, expected one of them", where="judge", fix=fix)
    if "pairs" in values and ("sample" not in values or int(str(values["pairs"])) < 1):
        raise ConfigError("expected a number from 1 on, and only with --sample", where="--pairs", fix="--sample pairs.csv --pairs 60")
    if "sample" in values:
        return write_sample(run_dir, Path(str(values["sample"])).expanduser(), int(str(values.get("pairs", SAMPLE_PAIRS))))
    if "labels" in values:
        return take_labels(run_dir, Path(str(values["labels"])).expanduser())
    return show_judge(run_dir)


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    add_command(app, "judge", judge, FLAGS, argument=RUN)
