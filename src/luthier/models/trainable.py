"""What of a model is trained: adapters, its last layers, or everything; and how the result is handed over.

lora, dora   low-rank adapters on every linear layer; handed over as a PEFT adapter
freeze       the last layers and the final norm; handed over as a whole model folder
full         every weight; handed over as a whole model folder
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from luthier.core.errors import ModelError
from luthier.models.backbone import body_and_head
from luthier.models.catalogue import MANIFEST
from luthier.models.load import ModelInfo
from luthier.models.lora import LoraSettings, PissaStart, add_lora, not_finite, save_adapter, start_from_pissa
from luthier.models.tokenizer import quiet_transformers
from luthier.store.files import atomic_write_json, disk_error, replace_folder

MethodName = Literal["lora", "dora", "freeze", "full"]
# What makes a folder of weights a model one can talk to; copied from the base as it is.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What is trained. `lora` for the adapter methods, `last_layers` for freeze."""

    name: MethodName
    lora: LoraSettings | None = None
    last_layers: int = 0

    @property
    def makes_adapter(self) -> bool:
        """Whether the result is an adapter beside the base model, not a model of its own."""
        return self.lora is not None

    @property
    def words(self) -> str:
        """The method in words."""
        if self.lora is not None:
            kind = "DoRA" if self.lora.use_dora else "rsLoRA" if self.lora.use_rslora else "LoRA"
            start = ", PiSSA start" if self.lora.init == "pissa" else ""
            return f"{kind} r={self.lora.r}, alpha={self.lora.alpha:g}{start}, all linear layers"
        return f"the last {self.last_layers} layers" if self.name == "freeze" else "all weights"


@dataclass(frozen=True, slots=True)
class Trainable:
    """A model of which the right weights get gradients. `pissa` is what an adapter started from, where that was not nothing."""

    model: nn.Module
    method: Method
    pissa: PissaStart | None = None

    @property
    def causal(self) -> PreTrainedModel:
        """The model without the wrapper of its adapters."""
        given: Any = self.model
        return given.get_base_model() if hasattr(given, "get_base_model") else given


def make_trainable(model: PreTrainedModel, method: Method, *, seed: int) -> Trainable:
    """Choose what gets gradients (in place). Raises ModelError if the model has no such layers."""
    if method.lora is not None:
        adapted = add_lora(model, method.lora, seed=seed)
        return Trainable(adapted, method, start_from_pissa(adapted, method.lora, seed) if method.lora.init == "pissa" else None)
    if method.name == "full":
        model.requires_grad_(requires_grad=True)
        return Trainable(model, method)
    body: Any = body_and_head(model)[0]
    layers = list(getattr(body, "layers", ()))
    if method.last_layers > len(layers):
        raise ModelError(
            f"has {len(layers)} layers, {method.last_layers} were to be trained", where="train.last_layers", fix="--set train.last_layers=2"
        )
    for part in (*layers[-method.last_layers :], *(m for m in [getattr(body, "norm", None)] if m is not None)):
        part.requires_grad_(requires_grad=True)
    return Trainable(model, method)


def save_trained(trained: Trainable, path: Path, *, base: Path, base_info: ModelInfo) -> Path:
    """Write adapter or model to the folder `path`, whole or not at all; returns the file or folder that names it.

    Raises ModelError if a weight is not finite, RunError when the disk is full; then nothing is written.
    """
    if trained.method.makes_adapter:
        save_adapter(trained.model, path, base_info=base_info, pissa=trained.pissa)  # pyright: ignore[reportArgumentType]
        return path / "adapter_model.safetensors"
    if broken := not_finite(dict(trained.model.named_parameters())):
        raise ModelError(broken, where=str(path), fix="train again with a lower learning rate")
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(prefix=f".tmp-{path.name}-", dir=path.parent))
    try:
        tmp.chmod(0o755)
        with quiet_transformers():
            trained.causal.save_pretrained(tmp, max_shard_size="4GB")
        for name in TOKENIZER_FILES:
            if (base / name).is_file():
                shutil.copyfile(base / name, tmp / name)
        about = {"name": base_info.name, "sha256": base_info.sha256, "architecture": base_info.architecture}
        atomic_write_json(tmp / MANIFEST, {"format": 1, "base": about, "method": trained.method.words})
        replace_folder(tmp, path)
    except OSError as error:
        raise disk_error(path, sum(p.numel() * p.element_size() for p in trained.model.parameters()), error) from error
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return path
