"""Which stages of a run are done. A stage is done when it was finished from the same inputs and its files are unchanged."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from luthier.store.files import atomic_write_json
from luthier.store.layout import RunFolder
from luthier.store.manifest import StageRecord, describe_outputs, outputs_hold, read_manifest


def stage_is_done(folder: RunFolder, name: str, input_digest: str) -> bool:
    """Whether `name` can be skipped: same inputs, and every file it wrote has the size and sha256 it was left with."""
    stage = read_manifest(folder.manifest).stages.get(name)
    return stage is not None and stage.input_digest == input_digest and outputs_hold(folder.root, stage.outputs)


def stage_holds(folder: RunFolder, name: str) -> bool:
    """Whether `name` was finished, from whatever inputs, and the files it wrote are unchanged."""
    stage = read_manifest(folder.manifest).stages.get(name)
    return stage is not None and outputs_hold(folder.root, stage.outputs)


def finish_stage(folder: RunFolder, name: str, input_digest: str, outputs: Sequence[Path]) -> None:
    """Record `name` as done with the files it wrote (fsynced by whoever wrote them). Stages finished after it earlier are to be redone.

    Raises ValueError for a file outside the run folder.
    """
    now = datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds")
    stage = StageRecord(input_digest=input_digest, finished_at=now, outputs=describe_outputs(folder.root, outputs))
    atomic_write_json(folder.manifest, read_manifest(folder.manifest).with_stage(name, stage).to_json())
