"""The run folder: where each thing lies, and how a process takes hold of it.

manifest.json           what the results depend on, and which stages are done
config.yaml             the settings, as they are read back
lock, owner.json        who works on it
journal/                events, generations, embeddings, steps: append-only
check.json, rejects.jsonl, split.json, split/{train,dev,test}.jsonl
answer_schema.json      what JSON answers were held to while they were written
train/                  checkpoints, probes, the forecast
stacks.txt              where every thread was when a section took too long
adapter/ or model/      what was trained: an adapter in the standard PEFT format, or a whole model folder
latency.json, larger/   single-request times, those of larger models in a folder each
judge_labels.json       what a person said of pairs that a judge compared; kept by --fresh
chat/                   conversations with what was trained, a journal each; the user's, kept by --fresh
folds/                  the folds of a cross-fitted run: a folder each, laid out like this one
again/                  the recipe trained again, from another seed or on part of the rows: a folder each, laid out like this one
results.json            everything measured
exports.json            what was exported, and how the artefact answered beside the tested model
verdict.json, report.html, card.md, index.sqlite    functions of the above; deleting them loses nothing
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from luthier.core.errors import RunError
from luthier.store.files import TMP_PREFIX, atomic_write_json, atomic_write_text, disk_error, remove_leftovers
from luthier.store.journal import append, torn_tail
from luthier.store.manifest import Manifest, different, plain_values, read_manifest

LOCK_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of one run. Nothing here touches the disk."""

    root: Path

    @property
    def manifest(self) -> Path:
        """What the results depend on, and the finished stages."""
        return self.root / "manifest.json"

    @property
    def config(self) -> Path:
        """The settings of the run."""
        return self.root / "config.yaml"

    @property
    def lock(self) -> Path:
        """Held by the process that works on the run; empty."""
        return self.root / "lock"

    @property
    def owner(self) -> Path:
        """Which process that is. A file beside the lock, because taking a lock empties it."""
        return self.root / "owner.json"

    @property
    def journal_events(self) -> Path:
        """Opened, changed, taken over, repaired, stopped."""
        return self.root / "journal" / "events.jsonl"

    @property
    def journal_generations(self) -> Path:
        """The generation cache."""
        return self.root / "journal" / "generations.jsonl"

    @property
    def journal_embeddings(self) -> Path:
        """Vectors of texts, for retrieval."""
        return self.root / "journal" / "embeddings.jsonl"

    @property
    def journal_steps(self) -> Path:
        """One line for each training update."""
        return self.root / "journal" / "steps.jsonl"

    @property
    def check(self) -> Path:
        """What was found in the data."""
        return self.root / "check.json"

    @property
    def rejects(self) -> Path:
        """Rows that could not be used, one a line."""
        return self.root / "rejects.jsonl"

    @property
    def answer_schema(self) -> Path:
        """The JSON schema that answers were held to."""
        return self.root / "answer_schema.json"

    @property
    def split(self) -> Path:
        """Sizes, seed, test hash, clusters and notes of the split."""
        return self.root / "split.json"

    def split_file(self, name: str) -> Path:
        """The rows of `train`, `dev` or `test`."""
        return self.root / "split" / f"{name}.jsonl"

    @property
    def train(self) -> Path:
        """Checkpoints and probes."""
        return self.root / "train"

    @property
    def stacks(self) -> Path:
        """Where every thread was when the watchdog gave up; not there otherwise."""
        return self.root / "stacks.txt"

    @property
    def adapter(self) -> Path:
        """The finished adapter."""
        return self.root / "adapter"

    @property
    def model(self) -> Path:
        """The finished model, of a method that leaves no adapter."""
        return self.root / "model"

    def again(self, seed: int, num_rows: int) -> RunFolder:
        """Where the recipe is trained again from another seed, or on part of the rows."""
        return RunFolder(self.root / "again" / f"seed-{seed}-rows-{num_rows}")

    def fold(self, number: int) -> RunFolder:
        """Where a fold of a cross-fitted run is trained and measured."""
        return RunFolder(self.root / "folds" / str(number))

    @property
    def chat(self) -> Path:
        """Conversations; what a person said and marked is not the run's to delete."""
        return self.root / "chat"

    @property
    def latency(self) -> Path:
        """Single-request latencies, taken once."""
        return self.root / "latency.json"

    @property
    def results(self) -> Path:
        """The record: everything measured."""
        return self.root / "results.json"

    @property
    def judge_labels(self) -> Path:
        """What a person said of the judge's pairs: the user's work, as conversations are."""
        return self.root / "judge_labels.json"

    @property
    def exports(self) -> Path:
        """What was exported, with its parity."""
        return self.root / "exports.json"

    @property
    def verdict(self) -> Path:
        """The decision."""
        return self.root / "verdict.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.root / "report.html"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.root / "card.md"

    @property
    def index(self) -> Path:
        """SQLite over all of the above, for queries; can be rebuilt."""
        return self.root / "index.sqlite"


class RunSettings(Protocol):
    """What a run folder needs to know of the settings."""

    @property
    def fresh(self) -> bool:
        """Whether to start over: everything that is there goes."""
        ...

    def identity(self) -> Mapping[str, object]:
        """What the results depend on, by dotted key; the contents of files by their digest."""
        ...

    def benign(self) -> Mapping[str, object]:
        """What may change from call to call without changing a result (threads, how often to save), by dotted key."""
        ...

    def to_yaml(self) -> str:
        """The settings as a file that reads back to the same settings."""
        ...


@contextmanager
def open_run(root: Path, settings: RunSettings) -> Generator[RunFolder]:
    """Take hold of a run folder for the block, new or existing; only one process at a time can.

    On entry: leftovers of a killed process are removed and its lock taken over, changed benign settings are written to the
    event journal. Raises RunError, within a second, if another process holds the folder (naming its PID), if it holds
    something other than a run, or if `settings` would change results that are already there (with the difference).
    """
    folder = RunFolder(root)
    _refuse_foreign(folder)
    with _locked(folder) as killed_pid:
        for path in (root, root / "split", root / "journal", root / "train"):
            remove_leftovers(path)
        if settings.fresh:
            clear(folder)
        is_new = not folder.manifest.exists()
        if not is_new and _has_work(folder):
            hold_to(folder, settings.identity(), benign=settings.benign())
        else:
            manifest = Manifest(identity=plain_values(settings.identity()), benign=plain_values(settings.benign()))
            atomic_write_json(folder.manifest, manifest.to_json())
        atomic_write_text(folder.config, settings.to_yaml())
        _tell(folder, is_new=is_new, killed_pid=killed_pid)
        yield folder


def _has_work(folder: RunFolder) -> bool:
    """Whether anything was computed there. A call that was refused before that binds nobody to its settings."""
    has_answers = folder.journal_generations.exists() and folder.journal_generations.stat().st_size > 0
    has_weights = folder.train.is_dir() and any(folder.train.iterdir())
    return bool(read_manifest(folder.manifest).stages) or has_answers or has_weights


def known_fact(folder: RunFolder, key: str) -> object:
    """A fact that an earlier call of this run found and the results depend on; None if there is none yet."""
    return read_manifest(folder.manifest).identity.get(key) if folder.manifest.is_file() else None


def hold_to(folder: RunFolder, identity: Mapping[str, object], *, benign: Mapping[str, object] | None = None) -> None:
    """Check facts that the results depend on against those of the first call; facts not seen before are added.

    `open_run` does so with the settings; a stage that learns another fact (the digest of a model's weights) calls it again.
    Raises RunError with the difference.
    """
    manifest = read_manifest(folder.manifest)
    facts = plain_values(identity)
    shared = {key: value for key, value in manifest.identity.items() if key in facts}
    differences = different(shared, {key: facts[key] for key in shared})
    if differences:
        raise RunError(
            "the results there were made with other settings:" + "".join(f"\n  {line}" for line in differences),
            where=str(folder.root),
            fix="keep them and start another run: --run-dir NEW; or replace them: --fresh",
        )
    now_benign = {**manifest.benign, **plain_values(benign or {})}
    changes = different(manifest.benign, now_benign)
    if changes:
        append(folder.journal_events, {"event": "changed", "changes": changes})
    updated = manifest.with_facts({**manifest.identity, **facts}, now_benign)
    if updated != manifest:
        atomic_write_json(folder.manifest, updated.to_json())


def clear(folder: RunFolder) -> None:
    """Delete all that a run wrote. Files that no run writes stay. Only for the holder of the lock.

    The manifest goes last, so that a folder cleared halfway is still known as a run.
    """
    folders = (
        folder.journal_events.parent, folder.split_file("train").parent, folder.train, folder.adapter, folder.model, folder.root / "larger",
        folder.root / "again", folder.root / "folds",
    )  # fmt: skip
    files = (folder.config, folder.check, folder.rejects, folder.split, folder.latency, folder.results, folder.verdict, folder.report)
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)
    for path in (*files, folder.answer_schema, folder.stacks, folder.exports, folder.card, folder.index, folder.manifest):
        path.unlink(missing_ok=True)
    still_there = [path.name for path in (*folders, folder.manifest) if path.exists()]
    if still_there:
        raise RunError(f"cannot delete {', '.join(still_there)}", where=str(folder.root), fix="check the permissions, or use --run-dir NEW")


def _refuse_foreign(folder: RunFolder) -> None:
    """A folder is a run, or empty but for what opening one writes first."""
    if folder.root.is_file():
        raise RunError("this is a file, expected a folder", where=str(folder.root), fix="--run-dir NEW")
    if not folder.root.is_dir() or folder.manifest.exists():
        return
    ours = {folder.lock.name, folder.owner.name}
    foreign = sorted(p.name for p in folder.root.iterdir() if p.name not in ours and not p.name.startswith(TMP_PREFIX))
    if foreign:
        shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise RunError(
            f"the folder holds {shown} and is not a run (no manifest.json); nothing in it was touched",
            where=str(folder.root),
            fix="--run-dir NEW, with a folder that does not exist yet",
        )


@contextmanager
def hold_run(folder: RunFolder) -> Generator[None]:
    """Keep other processes from a run that is there, for a stage that changes none of its settings. Raises RunError as `open_run` does."""
    with _locked(folder):
        yield


@contextmanager
def _locked(folder: RunFolder) -> Generator[int | None]:
    """Hold the lock for the block. Yields the PID of an earlier holder that was killed, or None.

    The operating system frees the lock of a dead process, so no PID is ever tested for being alive (numbers are reused).
    """
    lock = FileLock(folder.lock, timeout=LOCK_TIMEOUT_S)
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        pid = _owner_pid(folder)
        who = "another process" if pid is None else f"process {pid}"
        raise RunError(
            f"{who} is working on this run",
            where=str(folder.root),
            fix="wait for it" + ("" if pid is None else f", stop it (kill {pid})") + ", or use --run-dir NEW",
        ) from error
    except OSError as error:
        raise disk_error(folder.lock, 0, error) from error
    try:
        killed_pid = _owner_pid(folder)
        atomic_write_json(folder.owner, {"pid": os.getpid()})
        yield killed_pid
    finally:
        folder.owner.unlink(missing_ok=True)
        lock.release()


def _owner_pid(folder: RunFolder) -> int | None:
    try:
        return int(json.loads(folder.owner.read_text(encoding="utf-8"))["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tell(folder: RunFolder, *, is_new: bool, killed_pid: int | None) -> None:
    """Write down how this call found the folder."""
    journals = (folder.journal_events, folder.journal_generations, folder.journal_embeddings, folder.journal_steps)
    torn = [path.name for path in journals if torn_tail(path)]
    append(
        folder.journal_events,
        {"event": "created" if is_new else "resumed", "pid": os.getpid(), "taken_over_from_pid": killed_pid, "torn_journals": torn},
    )
