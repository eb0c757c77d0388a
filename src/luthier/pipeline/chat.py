"""`luthier chat`: open what is to be talked to, a finished run or a model."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from luthier.core.errors import ConfigError, RunError
from luthier.kernels.device import choose_device
from luthier.models.catalogue import resolve
from luthier.models.lora import CONFIG
from luthier.pipeline.open import base_of, open_local, open_tuned, shared_text
from luthier.pipeline.prepare import precision_of
from luthier.pipeline.settings import Settings, load_settings
from luthier.serve.chat import Conversation, Voice, open_conversation
from luthier.store.layout import RunFolder
from luthier.train.precision import choose_precision


def open_chat_with(run_or_model: str, *, compare: bool, system: str | None, base: str | None = None) -> Conversation:
    """A conversation with the tuned model of a run or an adapter folder (with `compare`, the base model too), or with a plain model.

    For a run, the instruction all its rows shared is put before each turn, as in training. `base` names the base model of an adapter.
    """
    folder = RunFolder(Path(run_or_model))
    if (folder.root / CONFIG).is_file():
        return _with_adapter(folder.root, base, compare=compare, system=system)
    if base is not None:
        raise ConfigError(f"{run_or_model} is no adapter, --model names the base model of one", where="--model", fix="leave --model out")
    if folder.config.is_file():
        return _with_run(folder, compare=compare, system=system)
    if folder.root.parent != Path() and folder.root.parent.is_dir() and not folder.root.is_dir():
        near = get_close_matches(folder.root.name, [p.name for p in folder.root.parent.iterdir() if p.is_dir()], n=1, cutoff=0.3)
        fix = (
            f"luthier chat {folder.root.parent / near[0]}"
            if near
            else "give the folder of a finished run, or a name of: luthier models list"
        )
        raise RunError("there is no such run", where=run_or_model, fix=fix)
    if compare:
        raise RunError("is a model, and a model has no base model to compare with", where=run_or_model, fix="leave --compare out")
    path = resolve(run_or_model)
    local = open_local(path, choose_precision("auto", device=choose_device("auto")))
    return open_conversation([Voice(name=Path(run_or_model).name, local=local)], system=system or "", instruction="")


def _with_adapter(adapter: Path, base: str | None, *, compare: bool, system: str | None) -> Conversation:
    """An adapter in PEFT's format, saved here or elsewhere, on the base model that is given or that it names itself."""
    path = base_of(adapter, command="chat") if base is None else resolve(base)
    precision = choose_precision("auto", device=choose_device("auto"))
    voices = [Voice(name="tuned", local=open_local(path, precision, adapter=adapter))]
    if compare:
        voices.append(Voice(name="base", local=open_local(path, precision)))
    return open_conversation(voices, system=system or "", instruction="")


def _with_run(folder: RunFolder, *, compare: bool, system: str | None) -> Conversation:
    settings: Settings = load_settings(folder.config, {})
    path, precision = resolve(settings.model.name), precision_of(settings, folder)
    voices = [Voice(name="tuned", local=open_tuned(folder, path, precision))]
    if compare:
        voices.append(Voice(name="base", local=open_local(path, precision)))
    return open_conversation(
        voices, system=system if system is not None else shared_text(folder, "system"), instruction=shared_text(folder, "instruction")
    )
