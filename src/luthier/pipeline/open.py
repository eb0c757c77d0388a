"""Opening models for generation: the base, or what a run trained, read back from disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from luthier.core.errors import ModelError, RunError
from luthier.core.hashing import digest, sha256_file
from luthier.generate.engine import MAX_ACTIVE, Engine
from luthier.generate.local import LocalModel
from luthier.generate.vllm_engine import VllmEngine
from luthier.kernels.device import rounds_otherwise
from luthier.models.backbone import use_layout_attention
from luthier.models.catalogue import resolve
from luthier.models.load import inspect_folder, open_model
from luthier.models.lora import base_name, load_adapter
from luthier.models.tokenizer import open_tokenizer
from luthier.models.voices import Voices
from luthier.store.layout import RunFolder
from luthier.tokens.template import open_chat
from luthier.train.precision import Precision

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def open_local(model_path: Path, precision: Precision, *, adapter: Path | None = None) -> LocalModel:
    """A model ready to generate. The adapter is loaded from its files, so that what is measured is what is handed over."""
    info = inspect_folder(model_path)
    model = open_model(model_path, dtype=precision.dtype, device=precision.device)
    if adapter is not None:
        model = load_adapter(model, adapter)
        for name, param in model.named_parameters():
            if "lora_" in name:
                param.data = param.data.to(precision.dtype)
    base = model.get_base_model() if adapter is not None else model  # pyright: ignore[reportCallIssue]
    use_layout_attention(base)  # pyright: ignore[reportArgumentType]
    model.eval()
    adapter_sha256 = sha256_file(adapter / "adapter_model.safetensors") if adapter is not None else ""
    return LocalModel(
        voices=Voices(model, {"tuned": "default"} if adapter is not None else None),
        encoder=open_chat(open_tokenizer(model_path)),
        fingerprint=digest([info.sha256, adapter_sha256, str(precision.dtype), *rounds_otherwise(precision.device)]),
        context=info.context,
    )


def open_engine(
    model_path: Path, precision: Precision, *, base_name: str, adapters: Mapping[str, Path], max_active: int = MAX_ACTIVE
) -> Engine:
    """An engine over one base model: its own voice is called `base_name`, each adapter's by its key in `adapters`.

    Raises ModelError for an adapter of another base.
    """
    info = inspect_folder(model_path)
    model = open_model(model_path, dtype=precision.dtype, device=precision.device)
    use_layout_attention(model)
    names = {voice: f"voice{number}" for number, voice in enumerate(adapters)}  # peft's names may not hold dots
    adapted: PreTrainedModel | PeftModel = model
    for voice, path in adapters.items():
        adapted = load_adapter(adapted, path, base_info=info, name=names[voice])
    for name, param in adapted.named_parameters():
        if "lora_" in name:
            param.data = param.data.to(precision.dtype)
    return Engine(
        Voices(adapted.eval(), names),
        open_chat(open_tokenizer(model_path)),
        context=info.context,
        base_name=base_name,
        max_active=max_active,
    )


class OpenEngine(Protocol):
    """`open_engine`, or what opens another engine over the same weights."""

    def __call__(
        self, model_path: Path, precision: Precision, *, base_name: str, adapters: Mapping[str, Path], max_active: int = MAX_ACTIVE
    ) -> Engine | VllmEngine:
        """An engine; see `open_engine`."""
        ...


def programs(engine: Engine | VllmEngine) -> list[str]:
    """What else than Luthier computes, for the names of what answers: the same weights may answer otherwise there."""
    return [engine.program] if isinstance(engine, VllmEngine) else []


def open_tuned(folder: RunFolder, model_path: Path, precision: Precision) -> LocalModel:
    """What the run trained: its adapter on the base model, or its own model. Raises RunError if there is neither yet."""
    trained = tuned_folder(folder)
    return open_local(model_path, precision, adapter=trained) if trained == folder.adapter else open_local(trained, precision)


def tuned_folder(folder: RunFolder) -> Path:
    """Where the run's trained weights are: its adapter, or its own model. Raises RunError if there is neither yet."""
    if (folder.adapter / "adapter_model.safetensors").is_file():
        return folder.adapter
    if (folder.model / "config.json").is_file():
        return folder.model
    raise RunError("nothing was trained here yet", where=str(folder.root), fix="finish it with the command that started it: luthier run …")


def base_of(adapter: Path, *, command: str) -> Path:
    """The base model an adapter folder names. `command` is the luthier command of the remedy. Raises ModelError."""
    name, fix = base_name(adapter), f"name its base model: luthier {command} {adapter} --model FOLDER"
    if not name:
        raise ModelError("the adapter does not say which base model it belongs to", where=str(adapter), fix=fix)
    try:
        return resolve(name)
    except ModelError as error:
        raise ModelError(f"the adapter's base model {name!r} is not on this machine", where=str(adapter), fix=fix) from error


def shared_text(folder: RunFolder, name: str) -> str:
    """The `system` text or `instruction` that all training rows of a run have in common, or nothing."""
    found: set[str] = set()
    with folder.split_file("train").open(encoding="utf-8") as rows:
        for row in rows:
            found.add(str(json.loads(row)[name]))
            if len(found) > 1:
                return ""
    return found.pop() if found else ""
