"""The settings file that `luthier init` writes: every setting with its default, commented out, and what it means."""

from __future__ import annotations

import json
from collections.abc import Sequence

from luthier.pipeline.settings import Settings, all_keys

HEAD = "Settings of Luthier. Take the # away from what you want to change; flags on the command line go first."


def settings_template(paths: Sequence[str], *, schema: str) -> str:
    """YAML text. `paths` are the data files to name; `schema` is the schema file beside it, by which editors complete and check."""
    lines = [f"# yaml-language-server: $schema={schema}", f"# {HEAD}"]
    group = ""
    for key, info in all_keys().items():
        name, _, last = key.rpartition(".")
        if name != group or not name:
            group = name
            lines += ["", f"{name}:  # {Settings.model_fields[name].description}"] if name else [""]
        indent = "  " if name else ""
        default = list(info.default) if isinstance(info.default, tuple) else info.default
        lines.append(f"{indent}# {info.description}")
        if key == "data.paths":
            lines.append(f"{indent}{last}: {json.dumps(list(paths), ensure_ascii=False)}")
        else:
            lines.append(f"{indent}# {last}: {json.dumps(default)}")
    return "\n".join(lines) + "\n"
