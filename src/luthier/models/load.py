"""Open a model folder: look first, then weights. Local files only, safetensors only, no code of the model's.

Names and hub ids become folders in `catalogue.resolve` and `pull.pull`; nothing here touches the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from luthier.core.errors import ModelError
from luthier.kernels.device import CPU
from luthier.kernels.own_linear import use_own_linears
from luthier.models.backbone import longest_window, refuse_uncomputed
from luthier.models.catalogue import read_manifest
from luthier.models.folder import UNCHANGED, TensorHeader, read_headers, read_json, refuse_remote_code, weight_files, weights_sha256
from luthier.models.tokenizer import open_tokenizer, quiet_transformers


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a model folder holds, found without loading its weights. `sha256` names the weights."""

    name: str
    path: Path
    architecture: str
    model_type: str
    num_params: int
    context: int  # tokens it can see: its context, or its attention window where that is shorter
    dtype: str  # of the stored weights: "bfloat16", "float32", ...
    vocab_size: int  # rows of the embedding
    has_chat_template: bool
    sha256: str


def inspect_folder(path: Path) -> ModelInfo:
    """Look at a model folder without loading weights. Raises ModelError for whatever would fail, or lie, later:

    no folder or config, remote code, pickle only, damaged or missing weight files, an architecture transformers does not know,
    weights of other shapes than the config says, no tokenizer, a vocabulary larger than the embedding.
    """
    if not path.is_dir():
        raise ModelError("is not a folder", where=str(path), fix="give a folder, or a name of: luthier models")
    refuse_remote_code(path)
    config = read_json(path / "config.json")
    files = weight_files(path)
    headers: dict[str, TensorHeader] = {}
    for file in files:
        headers |= read_headers(file)
    skeleton = _skeleton(path, config, headers)
    _refuse_other_shapes(path, skeleton, headers)
    refuse_uncomputed(skeleton, where=str(path))
    vocab_size = int(cast("torch.Tensor", skeleton.get_input_embeddings().weight).shape[0])
    tokenizer = open_tokenizer(path)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        raise ModelError(
            f"the tokenizer has ids up to {largest}, the embedding only {vocab_size} rows: some words would have no vector",
            where=str(path),
            fix="use the tokenizer that belongs to these weights",
        )
    text = skeleton.config.get_text_config()
    context = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or tokenizer.model_max_length
    window = longest_window(skeleton)
    stored = {header.dtype for header in headers.values()}
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    return ModelInfo(
        name=str(read_manifest(path).get("name") or path.resolve().name),
        path=path,
        architecture=type(skeleton).__name__,
        model_type=str(text.model_type),
        num_params=sum(parameter.numel() for parameter in skeleton.parameters()),
        context=min(int(context), window) if window else int(context),
        dtype=", ".join(sorted(names.get(dtype, dtype) for dtype in stored)),
        vocab_size=vocab_size,
        has_chat_template=bool(tokenizer.chat_template),
        sha256=weights_sha256(path, files),
    )


def _skeleton(path: Path, config: dict[str, Any], headers: dict[str, TensorHeader]) -> PreTrainedModel:
    """The model as the config describes it, without memory for weights."""
    for key in ("num_hidden_layers", "n_layer", "num_layers"):
        layers = config.get(key)
        if isinstance(layers, int) and layers > len(headers):
            raise ModelError(
                f"{key} is {layers:,} but there are only {len(headers)} tensors", where=str(path / "config.json"), fix=UNCHANGED
            )
    try:
        with torch.device("meta"), quiet_transformers():
            return cast(
                "PreTrainedModel",
                AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path, local_files_only=True), dtype=torch.float32),
            )
    except Exception as error:  # config.json is untrusted and transformers answers nonsense in it with any error there is
        raise ModelError(
            f"is not a causal language model that transformers knows: {type(error).__name__}: {error}"[:600],
            where=str(path / "config.json"),
            fix="choose another model, or a newer transformers: pip install -U transformers",
        ) from error


def _refuse_other_shapes(path: Path, skeleton: PreTrainedModel, headers: dict[str, TensorHeader]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    prefix = f"{skeleton.base_model_prefix}."
    same = {name: f"{prefix}{name}" if f"{prefix}{name}" in expected else name for name in headers}
    wrong = [
        f"{n} {headers[n].shape}, expected {expected[m]}" for n, m in same.items() if m in expected and headers[n].shape != expected[m]
    ]
    if wrong:
        raise ModelError(
            f"{len(wrong)} of {len(headers)} tensors do not have the shape config.json says: {'; '.join(wrong[:3])}",
            where=str(path),
            fix=UNCHANGED,
        )


def open_model(path: Path, *, dtype: torch.dtype, device: torch.device = CPU) -> PreTrainedModel:
    """The model in eval mode, without gradients, read and checked on the host and then moved once.

    Raises ModelError if any weight is missing, left over, misshapen or not finite.
    """
    refuse_remote_code(path)
    for file in weight_files(path):
        read_headers(file)
    try:
        with quiet_transformers():
            model, report = cast(
                "tuple[PreTrainedModel, dict[str, Any]]",
                AutoModelForCausalLM.from_pretrained(
                    path, dtype=dtype, local_files_only=True, use_safetensors=True, attn_implementation="sdpa", output_loading_info=True
                ),
            )
    except Exception as error:  # as above: the folder is untrusted, and every failure to load it is the folder's
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        raise ModelError(f"cannot be loaded: {type(error).__name__}: {error}"[:600], where=str(path), fix=UNCHANGED) from error
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        names = sorted(str(name) for name in report.get(kind, ()))
        if names:
            what = kind.split("_", maxsplit=1)[0]
            raise ModelError(f"{len(names)} {what} tensors: {', '.join(names[:3])}", where=str(path), fix=UNCHANGED)
    broken = [name for name, parameter in model.named_parameters() if not bool(torch.isfinite(parameter).all())]
    if broken:
        raise ModelError(f"{len(broken)} tensors hold values that are not numbers: {', '.join(broken[:3])}", where=str(path), fix=UNCHANGED)
    model.requires_grad_(requires_grad=False)
    model.eval()
    if device.type == "cpu":
        use_own_linears(model)
    return model if device.type == "cpu" else model.to(device)  # pyright: ignore[reportArgumentType]
