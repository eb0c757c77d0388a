"""Writing one kind of artefact to a folder, and opening it again from there."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from luthier.core.errors import ConfigError
from luthier.core.exports import ExportKind
from luthier.export.folders import open_merged, write_adapter, write_merged
from luthier.export.gguf_file import TYPES, About, refuse_unwritable, write_gguf
from luthier.export.gguf_vocab import read_vocabulary
from luthier.export.loaders import Reloaded, reload_adapter, reload_gguf, reload_model
from luthier.export.modelfile import find_turns, go_template, render_modelfile
from luthier.pipeline.tested import Tested

DEFAULT_TYPE = {"adapter": "adapter", "merged": "merged", "gguf": "F16", "ollama": "Q8_0", "hub-folder": "adapter"}
KINDS: tuple[ExportKind, ...] = ("adapter", "merged", "gguf", "ollama", "hub-folder")
BITS = {"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q5_1": 6, "Q5_0": 5.5, "Q4_1": 5, "Q4_0": 4.5}
FLOATS = ("float32", "float16", "bfloat16")
ROOM = 1.3  # logits, norms and the tokenizer are stored wider
K_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ")  # what `gguf` reads and cannot write


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """What was written to `folder`. `gguf` names the file of a GGUF or Ollama export."""

    kind: ExportKind
    storage: str
    folder: Path
    name: str
    gguf: Path | None = None
    adds_bos: bool = False
    notes: tuple[str, ...] = ()

    @property
    def is_adapter(self) -> bool:
        """Whether it needs its base model."""
        return self.storage == "adapter"


def check_kind(name: str) -> ExportKind:
    """`name` as a kind of export. Raises ConfigError with the nearest."""
    for kind in KINDS:
        if kind == name:
            return kind
    near = get_close_matches(name, KINDS, n=1, cutoff=0.3) or ["merged"]
    raise ConfigError(f"found {name!r}, expected one of {', '.join(KINDS)}", where="--to", fix=f"--to {near[0]}")


def check_request(kind: ExportKind, storage: str) -> str:
    """How the weights are to be stored. Raises ConfigError for what this kind does not have."""
    if not storage:
        return DEFAULT_TYPE[kind]
    allowed = {"gguf": tuple(TYPES), "ollama": tuple(TYPES), "merged": FLOATS, "hub-folder": ("adapter", "merged", *FLOATS)}.get(kind, ())
    if not allowed:
        raise ConfigError(f"{kind} has no types to choose from, found {storage!r}", where="--type", fix="leave --type out")
    for name in allowed:
        if name.lower() == storage.lower():
            return name
    if kind in ("gguf", "ollama") and storage.upper().startswith(K_TYPES):
        raise ConfigError(
            f"the gguf package can read {storage} but not write it; it writes {', '.join(allowed)}",
            where="--type",
            fix=f"--type F16, then llama.cpp's own tool: llama-quantize FILE-f16.gguf FILE.gguf {storage.upper()}",
        )
    near = get_close_matches(storage.upper(), allowed, n=1, cutoff=0.3) or [DEFAULT_TYPE[kind]]
    raise ConfigError(f"found {storage!r}, expected one of {', '.join(allowed)}", where="--type", fix=f"--type {near[0]}")


def needed_bytes(tested: Tested, storage: str) -> int:
    """Space the artefact will take, cautiously."""
    if storage == "adapter":
        folder = tested.adapter or tested.path
        return int(ROOM * sum(path.stat().st_size for path in folder.iterdir())) + 2**26
    bits = {**BITS, "float32": 32, "float16": 16}.get(storage, 32 if "float32" in tested.info.dtype else 16)
    return int(ROOM * tested.info.num_params * bits / 8) + 2**26


def write_artefact(tested: Tested, kind: ExportKind, storage: str, out: Path) -> Artefact:
    """Write the files of one kind. Raises ConfigError for an adapter of a run that has none, ModelError, OSError."""
    if storage == "adapter":
        if tested.adapter is None:
            fix = "--to merged" if kind == "adapter" else "--type merged"
            raise ConfigError(f"this run trained {tested.settings.train.method}: a whole model, no adapter", where="--to", fix=fix)
        write_adapter(tested.adapter, out, base=tested.base, base_name=tested.base_name, encoder=tested.encoder)
        return Artefact(kind=kind, storage="adapter", folder=out, name=tested.name)
    if storage == "merged" or storage in FLOATS:
        import torch

        dtype = None if storage == "merged" else getattr(torch, storage)
        model = open_merged(tested.path, tested.adapter)
        stored = write_merged(model, out, base=tested.base, encoder=tested.encoder, dtype=dtype)
        return Artefact(kind=kind, storage=stored, folder=out, name=tested.name)
    return _write_gguf(tested, kind, storage, out)


def _write_gguf(tested: Tested, kind: ExportKind, storage: str, out: Path) -> Artefact:
    from transformers import AutoConfig

    where = tested.base_name
    config = AutoConfig.from_pretrained(tested.path, local_files_only=True).get_text_config()
    refuse_unwritable(config, where=where)
    vocabulary = read_vocabulary(tested.encoder, num_rows=int(config.vocab_size), where=where)
    turns = find_turns(tested.encoder, strip_bos=vocabulary.add_bos) if kind == "ollama" else None
    name = f"{tested.name}-{storage.lower()}"
    about = About(
        name=name,
        base_model=tested.base_name,
        licence=tested.licence,
        description=f"{tested.record.title}: tuned with Luthier {tested.version}",
    )
    path = out / f"{name}.gguf"
    notes = write_gguf(open_merged(tested.path, tested.adapter), vocabulary, path, storage=storage, about=about)
    if turns is not None:
        stops = [tested.encoder.tokenizer.convert_ids_to_tokens(index) for index in sorted(tested.encoder.eos_ids)]
        plain_stop = [tested.bench.stop] if tested.bench.stop and not tested.encoder.is_chat else []
        text = render_modelfile(
            gguf_file=path.name,
            template=go_template(turns),
            system=tested.system,
            stops=[*(str(stop) for stop in stops), *plain_stop],
            context=tested.info.context,
        )
        (out / "Modelfile").write_text(text, encoding="utf-8")
    return Artefact(kind=kind, storage=storage, folder=out, name=name, gguf=path, adds_bos=vocabulary.add_bos, notes=notes)


def reload_artefact(artefact: Artefact, tested: Tested) -> Reloaded:
    """Open what was written, from its files alone (and the base model, for an adapter)."""
    if artefact.gguf is not None:
        return reload_gguf(artefact.gguf)
    return reload_adapter(artefact.folder, tested.base) if artefact.is_adapter else reload_model(artefact.folder)
