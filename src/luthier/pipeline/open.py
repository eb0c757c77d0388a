"""Opening models for generation: the base, or what a run trained, read back from disk."""

from __future__ import annotations

from pathlib import Path

from luthier.core.errors import RunError
from luthier.core.hashing import digest, sha256_file
from luthier.generate.local import LocalModel
from luthier.kernels.device import rounds_otherwise
from luthier.models.backbone import use_layout_attention
from luthier.models.load import inspect_folder, open_model
from luthier.models.lora import load_adapter
from luthier.models.tokenizer import open_tokenizer
from luthier.store.layout import RunFolder
from luthier.tokens.template import open_chat
from luthier.train.precision import Precision


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
        model=model,
        encoder=open_chat(open_tokenizer(model_path)),
        fingerprint=digest([info.sha256, adapter_sha256, str(precision.dtype), *rounds_otherwise(precision.device)]),
        context=info.context,
    )


def open_tuned(folder: RunFolder, model_path: Path, precision: Precision) -> LocalModel:
    """What the run trained: its adapter on the base model, or its own model. Raises RunError if there is neither yet."""
    if (folder.adapter / "adapter_model.safetensors").is_file():
        return open_local(model_path, precision, adapter=folder.adapter)
    if (folder.model / "config.json").is_file():
        return open_local(folder.model, precision)
    raise RunError("nothing was trained here yet", where=str(folder.root), fix="finish it with the command that started it: luthier run …")
