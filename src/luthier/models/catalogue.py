"""Which models there are by name, and where a name leads on this machine. Imports no torch."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from luthier.core.errors import ModelError
from luthier.core.folders import cache_root

MANIFEST = "luthier.json"  # in each pulled model folder: where it came from, sizes and digests of its files
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """One known model. `sources` are "pypi:<package>" and "hub:<organisation>/<name>", the one to prefer first.

    `members` are the files inside the wheels of `packages`, in order, that together make `gguf_file`.
    """

    name: str
    num_params: int | None
    licence: str
    context: int | None
    description: str
    is_chat: bool
    sources: tuple[str, ...]
    packages: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    gguf_file: str = ""
    gguf_bytes: int = 0
    gguf_sha256: str = ""
    licence_notice: str = ""  # to be shown before use

    @property
    def hub_id(self) -> str | None:
        """The id on the hub, if it is there."""
        return next((source.removeprefix("hub:") for source in self.sources if source.startswith("hub:")), None)


@lru_cache(maxsize=1)
def list_models() -> tuple[CatalogueEntry, ...]:
    """The catalogue, smallest first as written."""
    text = files("luthier.models").joinpath("catalogue.yaml").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = yaml.safe_load(text)["models"]
    for row in rows:
        row.update({key: tuple(row.get(key, ())) for key in ("sources", "packages", "members")})
    return tuple(CatalogueEntry(**row) for row in rows)


def find_entry(name: str) -> CatalogueEntry:
    """The entry of a short name, or of any hub id ("organisation/name"). Raises ModelError with the nearest names."""
    for entry in list_models():
        if name.lower() in (entry.name, *(source.split(":", 1)[1].lower() for source in entry.sources)):
            return entry
    if _HUB_ID.fullmatch(name) and ".." not in name:
        return CatalogueEntry(
            name=name, num_params=None, licence="see the hub", context=None, description="", is_chat=True, sources=(f"hub:{name}",)
        )
    known = [entry.name for entry in list_models()]
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    raise ModelError(
        f"there is no model or folder {name!r}{f'; did you mean {near[0]}?' if near else ''} Known: {', '.join(known)}",
        where="model",
        fix=f"--model {near[0] if near else known[0]}, or the path of a folder with config.json, safetensors and tokenizer.json",
    )


def cached_folder(entry: CatalogueEntry, cache: Path | None = None) -> Path:
    """Where a pulled model lies or would lie: `<cache>/models/<name>`."""
    return (cache_root() if cache is None else cache) / "models" / entry.name.replace("/", "--")


def is_complete(folder: Path) -> bool:
    """Whether every file of the manifest is there with its size. Contents are not read: that is `inspect_folder`'s work."""
    manifest = read_manifest(folder)
    try:
        return bool(manifest["files"]) and all((folder / name).stat().st_size == about["size"] for name, about in manifest["files"].items())
    except (KeyError, TypeError, AttributeError, OSError):
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a pulled model; empty where there is none or it cannot be read."""
    try:
        found: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def resolve(name_or_path: str | Path, *, cache: Path | None = None) -> Path:
    """The folder a name or path leads to. Never touches the network.

    A folder wins over a name. Raises ModelError for an unknown name (with the nearest one) and for a known one that was not
    pulled yet (with the command that does).
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    entry = find_entry(str(name_or_path))
    folder = cached_folder(entry, cache)
    if is_complete(folder):
        return folder
    state = "was pulled only in part" if folder.exists() else "is not on this machine yet"
    raise ModelError(f"the model {entry.name} {state}", where=str(folder), fix=f"luthier models pull {entry.name}")
