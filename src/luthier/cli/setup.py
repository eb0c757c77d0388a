"""`luthier init` and `schema`: a settings file to start from, and its schema for editors."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from luthier.cli.command import DEFAULT_CONFIG, Argument, Given, Outcome, add_command
from luthier.cli.options import Flag

SCHEMA_FILE = "luthier.schema.json"
FILES = Argument(name="files", help="Files with your examples, to be named in the settings.", many=True)
FORCE = Flag(names=("--force",), type=bool, help="Replace files that are there.")


def init(given: Given) -> Outcome:
    """Write a luthier.yaml to start from.

    Every setting with its default and what it means, and beside it a schema by which editors complete and check it.
    """
    from luthier.core.errors import ConfigError
    from luthier.pipeline.template import settings_template
    from luthier.store.files import atomic_write_text

    config, schema = Path(DEFAULT_CONFIG), Path(SCHEMA_FILE)
    there = [str(path) for path in (config, schema) if path.exists()]
    if there and not given.values.get(FORCE.parameter):
        raise ConfigError("is already there; nothing was written", where=", ".join(there), fix="luthier init --force replaces it")
    atomic_write_text(schema, _schema_text())
    atomic_write_text(config, settings_template(given.arguments, schema=SCHEMA_FILE))
    lines = [
        f"wrote {config} and {schema}",
        "next: luthier check" if given.arguments else f"next: name your files in {config}, then: luthier check",
    ]
    return {"lines": lines, "json": {"config": str(config), "schema": str(schema)}}


def schema(given: Given) -> Outcome:
    """Print the JSON Schema of luthier.yaml."""
    del given
    from luthier.pipeline.settings import json_schema

    return {"lines": _schema_text().splitlines(), "json": json_schema()}


def _schema_text() -> str:
    from luthier.pipeline.settings import json_schema

    return json.dumps(json_schema(), indent=1) + "\n"


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    add_command(app, "init", init, (FORCE,), argument=FILES)
    add_command(app, "schema", schema)
