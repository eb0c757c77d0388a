"""`luthier export`: the tuned model as files for others."""

from __future__ import annotations

from pathlib import Path

import typer

from luthier.cli.command import Argument, Given, Outcome, add_command
from luthier.cli.options import Flag

RUN = Argument(name="run", help="Folder of a finished run.")
TO = Flag(names=("--to",), type=str, help="adapter, merged, gguf, ollama or hub-folder.")
OUT = Flag(names=("--out",), type=str, help="Folder to write; it appears whole or not at all.")
TYPE = Flag(
    names=("--type", "--quantise"),
    type=str,
    help="gguf, ollama: F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1, Q4_0; default: F16 for gguf, Q8_0 for ollama. "
    "merged: float32, float16, bfloat16; default: as the base model. hub-folder: adapter, merged or one of these.",
)
ITEMS = Flag(names=("--parity-items",), type=int, help="Compare on so many of the locked items; 0: all. Default: 100.")
DEFAULT_ITEMS = 100


def export(given: Given) -> Outcome:
    """Hand the tuned model over as files.

    They are read back from disk and answer the locked test items; only if they answer like the tested model do they appear in the
    folder. Otherwise: exit code 2, and which answers differ.
    """
    from luthier.core.console import show_progress
    from luthier.core.errors import ConfigError

    kind, out, storage = (str(given.values.get(name) or "") for name in ("to", "out", "type"))
    if not kind or not out:
        missing = "--to" if not kind else "--out"
        raise ConfigError("is missing", where=missing, fix=f"luthier export {given.arguments[0]} --to {kind or 'merged'} --out NEW_FOLDER")
    items = given.values.get("parity_items", DEFAULT_ITEMS)
    if not isinstance(items, int) or items < 0:
        raise ConfigError(f"found {items}, expected 0 (all) or more", where="--parity-items", fix=f"--parity-items {DEFAULT_ITEMS}")
    from luthier.pipeline.artefact import check_kind
    from luthier.pipeline.export import ExportRequest
    from luthier.pipeline.export import export as run_export

    request = ExportRequest(run=Path(given.arguments[0]), kind=check_kind(kind), out=Path(out), storage=storage, max_items=items or None)
    with show_progress() as progress:
        return run_export(request, progress)


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    add_command(app, "export", export, (TO, OUT, TYPE, ITEMS), argument=RUN)
