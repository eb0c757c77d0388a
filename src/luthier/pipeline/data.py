"""Stage: read, check and split the user's examples. No model, no torch; seconds, so it is simply done again on resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path

from luthier.core.errors import ConfigError, InputError
from luthier.core.types import Example, Finding, ReadResult, Reject, Split, TaskProfile
from luthier.data.conflicts import Conflicts, find_conflicts
from luthier.data.duplicates import Duplicates, find_duplicates
from luthier.data.findings import check_examples
from luthier.data.load import load_examples, number_examples
from luthier.data.mapping import ColumnMap
from luthier.data.profile import profile_task
from luthier.data.split import split_examples
from luthier.pipeline.settings import Settings
from luthier.store.files import atomic_write_json, atomic_write_text
from luthier.store.layout import RunFolder

TRAINABLE = {"instruct", "text"}  # the objectives of this version; others are read, checked and refused by name at training


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedData:
    """What was read and found."""

    read: ReadResult
    test: ReadResult | None
    dev: ReadResult | None
    findings: tuple[Finding, ...]
    conflicts: Conflicts
    duplicates: Duplicates  # of the main files alone

    @property
    def reads(self) -> tuple[ReadResult, ...]:
        """What was read, file group by file group."""
        return tuple(part for part in (self.read, self.test, self.dev) if part is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """Checked, split and profiled."""

    checked: CheckedData
    split: Split
    profile: TaskProfile


def _columns(settings: Settings) -> ColumnMap | None:
    data = settings.data
    named = (data.instruction, data.input, data.output, data.system, data.group)
    if not any(named):
        return None
    return ColumnMap(instruction=data.instruction, input=data.input, output=data.output, system=data.system, group=data.group, split=None)


def read_data(settings: Settings) -> CheckedData:
    """Read all files and look them over. Raises InputError if nothing usable is left."""
    data = settings.data
    if not data.paths:
        raise ConfigError("no data file was named", where="data.paths", fix="luthier run examples.jsonl")
    columns = _columns(settings)
    read = load_examples([Path(p) for p in data.paths], format=data.format, columns=columns)
    test = load_examples([Path(data.test)], format=data.format, columns=columns, given_split="test") if data.test else None
    dev = load_examples([Path(data.dev)], format=data.format, columns=columns, given_split="dev") if data.dev else None
    read, test, dev = _numbered(read, test, dev)
    if not read.examples:
        first = read.rejects[0] if read.rejects else None
        raise InputError(
            f"none of the {read.num_read} rows could be used" + (f"; the first: line {first.line}: {first.reason}" if first else ""),
            where=str(data.paths[0]),
            fix=first.fix if first else "give a file with at least a few dozen examples",
        )
    rejects = (*read.rejects, *(test.rejects if test else ()), *(dev.rejects if dev else ()))
    duplicates = find_duplicates(read.examples)
    findings = check_examples(
        read.examples,
        rejects=rejects,
        test=test.examples if test else None,
        dev=dev.examples if dev else None,
        duplicates=duplicates,
    )
    return CheckedData(read=read, test=test, dev=dev, findings=findings, conflicts=find_conflicts(read.examples), duplicates=duplicates)


def _numbered(read: ReadResult, test: ReadResult | None, dev: ReadResult | None) -> tuple[ReadResult, ReadResult | None, ReadResult | None]:
    """The same rows with ids that are unique across all files. Test rows keep the ids they have on their own."""
    parts = [part for part in (test, dev, read) if part is not None]
    ids = iter(number_examples(chain.from_iterable(part.examples for part in parts)))
    done = [replace(part, examples=tuple(islice(ids, len(part.examples)))) for part in parts]
    return done[-1], done[0] if test else None, done[-2] if dev else None


def prepare_data(settings: Settings) -> PreparedData:
    """Read, check, split, and find out what kind of task it is (from train alone)."""
    return split_data(settings, read_data(settings))


def split_data(settings: Settings, checked: CheckedData) -> PreparedData:
    """Split what was read. Raises InputError where that cannot be done."""
    data = settings.data
    split = split_examples(
        checked.read.examples,
        seed=settings.seed,
        dev_rows=data.dev_rows,
        test_rows=data.test_rows,
        train_rows=data.train_rows,
        test=checked.test.examples if checked.test else None,
        dev=checked.dev.examples if checked.dev else None,
        clusters=None if checked.test or checked.dev else checked.duplicates.clusters,  # with further files they are to be found anew
    )
    return PreparedData(checked=checked, split=split, profile=profile_task(split.train))


def refuse_other_objectives(examples: Sequence[Example]) -> None:
    """Preference and KTO rows are read and checked by this version, but not yet trained on."""
    other = next((e for e in examples if e.kind not in TRAINABLE), None)
    if other is not None:
        raise InputError(
            f"this is a {other.kind} row; this version trains on instruction, chat, completion and text rows",
            where=f"{other.path}:{other.line}",
            fix="convert the wanted answers to prompt/completion rows, or use `luthier check` alone",
        )


def all_rejects(checked: CheckedData) -> tuple[Reject, ...]:
    """Rejected rows of all files."""
    return (*checked.read.rejects, *(checked.test.rejects if checked.test else ()), *(checked.dev.rejects if checked.dev else ()))


def write_data_files(folder: RunFolder, prepared: PreparedData) -> None:
    """Rejects, findings and the split, for people and for later stages."""
    import json

    def lines(rows: Sequence[object]) -> str:
        return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)  # pyright: ignore[reportArgumentType]

    atomic_write_text(folder.rejects, lines(all_rejects(prepared.checked)))
    atomic_write_json(folder.check, {"findings": [asdict(f) for f in prepared.checked.findings]})
    for name in ("train", "dev", "test"):
        atomic_write_text(folder.split_file(name), lines(getattr(prepared.split, name)))
    split = prepared.split
    atomic_write_json(
        folder.split,
        {
            "seed": split.seed,
            "official_test": split.official_test,
            "test_sha256": split.test_sha256,
            "notes": list(split.notes),
            "rows": {"train": len(split.train), "dev": len(split.dev), "test": len(split.test)},
            "clusters": dict(split.clusters),
        },
    )
