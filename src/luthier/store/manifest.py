"""The manifest of a run: the facts its results depend on, and the stages that are done, each with the digests of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

from luthier.core.errors import RunError
from luthier.core.hashing import canonical_json, sha256_file

SCHEMA = 1
MAX_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One file that a stage wrote; `path` is relative to the run folder, with forward slashes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One finished stage: the digest of all it depended on, and what it wrote."""

    input_digest: str
    finished_at: str
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`identity` and `benign` are dotted keys with plain JSON values; `stages` are in the order they were first finished."""

    identity: Mapping[str, Any]
    benign: Mapping[str, Any]
    stages: Mapping[str, StageRecord] = field(default_factory=dict[str, StageRecord])

    def with_facts(self, identity: Mapping[str, Any], benign: Mapping[str, Any]) -> Manifest:
        """The same stages under these facts."""
        return replace(self, identity=identity, benign=benign)

    def with_stage(self, name: str, stage: StageRecord) -> Manifest:
        """With the stage done, and without those that came after it: they were made from what it wrote before."""
        names = list(self.stages)
        kept = names[: names.index(name)] if name in names else names
        return replace(self, stages={**{n: self.stages[n] for n in kept}, name: stage})

    def to_json(self) -> dict[str, object]:
        """As it is written."""
        stages = {
            name: {
                "input_digest": stage.input_digest,
                "finished_at": stage.finished_at,
                "outputs": [{"path": o.path, "size": o.size, "sha256": o.sha256} for o in stage.outputs],
            }
            for name, stage in self.stages.items()
        }
        return {"schema": SCHEMA, "identity": dict(self.identity), "benign": dict(self.benign), "stages": stages}


def read_manifest(path: Path) -> Manifest:
    """Read a manifest. Raises RunError if it is damaged or of another schema."""
    try:
        data: object = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise TypeError(f"found a {type(data).__name__}, expected an object")
        found = cast("dict[str, Any]", data)
        if found["schema"] == SCHEMA:
            return Manifest(
                identity=dict(found["identity"]),
                benign=dict(found["benign"]),
                stages={str(name): _stage(stage) for name, stage in dict(found["stages"]).items()},
            )
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"the manifest is damaged: {type(error).__name__}: {error}",
            where=str(path),
            fix="start over with --fresh, or use --run-dir NEW",
        ) from error
    raise RunError(
        f"this run was written by another version (manifest schema {found['schema']!r}, expected {SCHEMA})",
        where=str(path),
        fix="use --run-dir NEW",
    )


def _stage(data: Mapping[str, Any]) -> StageRecord:
    outputs = tuple(Output(path=str(o["path"]), size=int(o["size"]), sha256=str(o["sha256"])) for o in data["outputs"])
    return StageRecord(input_digest=str(data["input_digest"]), finished_at=str(data["finished_at"]), outputs=outputs)


def plain_values(values: Mapping[str, object]) -> dict[str, Any]:
    """Values as they come back from JSON: tuples as lists, paths as text."""
    return {key: json.loads(canonical_json(value)) for key, value in values.items()}


def different(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each key whose value is not the same: `train.lora_r: was 16, now 8`."""
    lines: list[str] = []
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = _as_text(before, key), _as_text(now, key)
        if old != new:
            first = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
            lines.append(f"{key}: was {_around(old, first)}, now {_around(new, first)}")
    return lines


def _as_text(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False, sort_keys=True) if key in values else "not there"


def _around(text: str, at: int) -> str:
    """A long text cut to where it differs."""
    if len(text) <= MAX_SHOWN_CHARS:
        return text
    start = max(0, min(at - MAX_SHOWN_CHARS // 2, len(text) - MAX_SHOWN_CHARS))
    end = start + MAX_SHOWN_CHARS
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")


def describe_outputs(root: Path, outputs: Sequence[Path]) -> tuple[Output, ...]:
    """Size and sha256 of files under `root`. Raises ValueError for one that lies elsewhere, OSError for one that is not there."""
    return tuple(
        Output(path=path.relative_to(root).as_posix(), size=path.stat().st_size, sha256=sha256_file(path)) for path in sorted(outputs)
    )


def outputs_hold(root: Path, outputs: Sequence[Output]) -> bool:
    """Whether every file is there, unchanged. The manifest is not trusted to point outside `root`."""
    for output in outputs:
        relative = PurePosixPath(output.path)
        if relative.is_absolute() or ".." in relative.parts:
            return False
        path = root / relative
        try:
            if path.stat().st_size != output.size or sha256_file(path) != output.sha256:
                return False
        except OSError:
            return False
    return True
