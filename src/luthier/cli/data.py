"""`luthier run`, `check` and `train`: the commands that start from examples."""

from __future__ import annotations

import typer

from luthier.cli.command import Argument, Given, Outcome, add_command
from luthier.cli.options import DATA, DECIDE, DRY_RUN, MEASURE, TRAIN

FILES = Argument(name="files", help="Files with your examples: JSONL, JSON, CSV, TSV, Parquet or text.", many=True)


def run(given: Given) -> Outcome:
    """Do the whole job and write the report.

    Check and split the examples, prompt, fine-tune, measure all on the same locked items, decide. Repeating the same command
    after an interruption goes on where it stopped.
    """
    settings = given.load()
    from luthier.core.console import show_progress
    from luthier.pipeline.run import run as run_pipeline

    with show_progress() as progress:
        return run_pipeline(settings, progress)


def check(given: Given) -> Outcome:
    """Look over your examples.

    What is in the files, what is wrong with it and where, and what a model would be trained on.
    """
    settings = given.load()
    from luthier.core.console import show_progress
    from luthier.pipeline.check import check as check_pipeline

    with show_progress() as progress:
        return check_pipeline(settings, progress)


def train(given: Given) -> Outcome:
    """Fine-tune only.

    Nothing is measured; the trained weights are left in the run folder. Repeating the same command goes on where it stopped. Several
    processes: torchrun --nproc-per-node 2 -m luthier train ...
    """
    if given.values.get(DRY_RUN.parameter):
        return estimate(given)
    settings = given.load()
    from luthier.core.console import show_progress
    from luthier.pipeline.train import train as train_pipeline

    with show_progress() as progress:
        return train_pipeline(settings, progress)


def estimate(given: Given) -> Outcome:
    """Say what a training would need: time, memory, disk.

    From a few of its own updates, the largest first. Nothing is left behind.
    """
    settings = given.load()
    from luthier.core.console import show_progress
    from luthier.pipeline.train import estimate as estimate_pipeline

    with show_progress() as progress:
        return estimate_pipeline(settings, progress)


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    add_command(app, "run", run, (*DATA, *TRAIN, *MEASURE, *DECIDE), argument=FILES, takes_settings=True)
    add_command(app, "check", check, DATA, argument=FILES, takes_settings=True)
    add_command(app, "train", train, (*DATA, *TRAIN, DRY_RUN), argument=FILES, takes_settings=True)
    add_command(app, "estimate", estimate, (*DATA, *TRAIN), argument=FILES, takes_settings=True)
