"""`luthier export`: a run's tuned model as files for others, moved into place only when they answer like the model that was measured.

Everything is written to a temporary folder beside the target and read back from there. Whatever ends the export early leaves the
target as it was; what a killed process left is removed by the next export to the same place.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.core.console import Progress
from luthier.core.errors import LuthierError, RunError
from luthier.core.exports import ExportKind, ExportRecord
from luthier.core.hashing import sha256_file
from luthier.core.stop import stop_on_signals
from luthier.pipeline.artefact import Artefact, check_request, needed_bytes, reload_artefact, write_artefact
from luthier.pipeline.decide import decision_rule, verdict_of
from luthier.pipeline.export_card import export_readme, hub_card
from luthier.pipeline.parity import measure_parity
from luthier.pipeline.record import read_exports, read_record, with_export
from luthier.pipeline.report import write_report
from luthier.pipeline.settings import load_settings
from luthier.pipeline.tested import Tested, open_tested_run
from luthier.store.files import TMP_PREFIX, atomic_write_json, atomic_write_text, disk_error, replace_folder, require_free
from luthier.store.layout import RunFolder, hold_run

MANIFEST = "luthier-export.json"  # in each exported folder: what it is, and how it was checked


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What is to be exported. `storage` "" takes the default of the kind; `max_items` None compares every locked item."""

    run: Path
    kind: ExportKind
    out: Path
    storage: str = ""
    max_items: int | None = None


def export(request: ExportRequest, progress: Progress) -> dict[str, object]:
    """Write, read back, compare, and only then hand over. Returns lines for people and one JSON object; refused by the gate, `is_refused`.

    Raises LuthierError for a run that is not finished, weights that are not those measured, a kind or type that cannot be written,
    a target that holds something else, or a disk without room.
    """
    folder = RunFolder(request.run)
    if not folder.config.is_file():
        raise RunError("there is no such run", where=str(request.run), fix="give the folder of a finished run: luthier run …")
    with stop_on_signals() as should_stop, hold_run(folder):

        def step(name: str, done: float, total: float, detail: str) -> None:
            if should_stop():
                raise KeyboardInterrupt
            progress(name, done, total, detail)

        started = time.perf_counter()
        storage = check_request(request.kind, request.storage)
        _refuse_target(request)
        tested = open_tested_run(folder, max_items=request.max_items)
        request.out.parent.mkdir(parents=True, exist_ok=True)
        require_free(request.out.parent, needed_bytes(tested, storage), fix="free some space, or --out on another disk", what="the export")
        with _beside(request.out) as tmp:
            step("export", 0, 1, f"writing {request.kind}, {storage}")
            artefact = _write(tested, request, storage, tmp)
            reloaded = reload_artefact(artefact, tested)
            parity = measure_parity(tested, artefact, reloaded, step)
            record = ExportRecord(
                kind=request.kind,
                storage=artefact.storage,
                created=tested.now,
                luthier_version=tested.version,
                loader=reloaded.loader,
                files={},
                seconds=time.perf_counter() - started,
                parity=parity,
                notes=artefact.notes,
            )
            if not parity.failures:
                record = _hand_over(tested, artefact, record, request.out, tmp)
        atomic_write_text(folder.exports, with_export(read_exports(folder.exports), record))
        _report_again(folder)
        return _outcome(record, request)


def _refuse_target(request: ExportRequest) -> None:
    """Nothing but an earlier export of the same kind is ever replaced."""
    out = request.out
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    fix = "name a folder that does not exist yet with --out, or remove this one yourself"
    if not out.is_dir():
        raise RunError("is a file, expected a folder", where=str(out), fix=fix)
    known = _manifest_of(out)
    if known.get("kind") != request.kind:
        found = f"an export of kind {known['kind']}" if known.get("kind") else "something that is no export"
        raise RunError(f"the folder holds {found}; only an earlier export of kind {request.kind} is replaced", where=str(out), fix=fix)
    listed = known.get("files")
    names = set(listed) if isinstance(listed, dict) else set[str]()
    foreign = sorted(path.name for path in out.iterdir() if path.name not in names and path.name != MANIFEST)
    if foreign:
        raise RunError(f"the folder holds {', '.join(foreign[:3])}, which the earlier export did not write", where=str(out), fix=fix)


def _manifest_of(out: Path) -> dict[str, object]:
    from luthier.models.folder import read_json

    try:
        return dict(read_json(out / MANIFEST))
    except LuthierError:
        return {}


@contextmanager
def _beside(out: Path) -> Generator[Path]:
    """A temporary folder beside the target, removed at the end; those that killed exports left go first. Raises RunError on a full disk."""
    prefix = f"{TMP_PREFIX}export-{out.name}-"
    for stale in out.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    tmp = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
    tmp.chmod(0o755)
    try:
        yield tmp
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _write(tested: Tested, request: ExportRequest, storage: str, tmp: Path) -> Artefact:
    from safetensors import SafetensorError

    try:
        return write_artefact(tested, request.kind, storage, tmp)
    except (OSError, SafetensorError) as error:  # safetensors hides a full disk in an error of its own
        cause = error if isinstance(error, OSError) else OSError(str(error))
        raise disk_error(request.out, needed_bytes(tested, storage), cause) from error


def _hand_over(tested: Tested, artefact: Artefact, record: ExportRecord, out: Path, tmp: Path) -> ExportRecord:
    """Add README and manifest, and put the folder in its place."""
    from dataclasses import replace

    try:
        text = hub_card(tested, record) if record.kind == "hub-folder" else export_readme(tested, record, artefact.name)
        (tmp / "README.md").write_text(text, encoding="utf-8")
        files = {path.name: path.stat().st_size for path in sorted(tmp.iterdir())}
        record = replace(record, files=files, sha256={name: sha256_file(tmp / name) for name in files})
        about = {
            "format": 1,
            **{key: value for key, value in asdict(record).items() if key not in ("files", "parity", "sha256", "earlier_sha256")},
            "parity": _parity_json(record),
            "files": {name: {"size": size, "sha256": record.sha256[name]} for name, size in files.items()},
        }
        parity: dict[str, Any] = about["parity"]  # pyright: ignore[reportAssignmentType]
        for reading in (parity, parity["llama_cpp"]):  # texts of users' rows stay in the run folder
            if reading is not None:
                del reading["different"]
        atomic_write_json(tmp / MANIFEST, about)
        if out.exists() and not any(out.iterdir()):
            out.rmdir()
        replace_folder(tmp, out)
    except OSError as error:
        raise disk_error(out, sum(path.stat().st_size for path in tmp.glob("*")), error) from error
    return record


def _report_again(folder: RunFolder) -> None:
    """The report with the new row, from the record."""
    record, settings = read_record(folder.results), load_settings(folder.config, {})
    write_report(folder, record, verdict_of(settings, record), decision_rule(settings, record), settings)


def _parity_json(record: ExportRecord) -> dict[str, object]:
    parity = record.parity
    return {
        **asdict(parity),
        "exact_agreement": parity.exact_agreement,
        "num_different": parity.n - parity.num_exact - parity.num_ties,
        "passed": not parity.failures,
    }


def _outcome(record: ExportRecord, request: ExportRequest) -> dict[str, object]:
    from luthier.pipeline.export_words import lines_of

    parity = record.parity
    found: dict[str, object] = {
        "kind": record.kind,
        "type": record.storage,
        "out": None if parity.failures else str(request.out),
        "files": dict(record.files),
        "bytes": sum(record.files.values()),
        "seconds": record.seconds,
        "loader": record.loader,
        "notes": list(record.notes),
        "parity": _parity_json(record),
    }
    if parity.failures:
        fix = "export as another --type or --to; if none passes, report it: the files were not handed over"
        found["error"] = {"where": str(request.out), "message": "; ".join(parity.failures), "fix": fix}
        found["exit_code"] = 2
    return {"lines": lines_of(record, request.out), "json": found, "is_refused": bool(parity.failures)}
