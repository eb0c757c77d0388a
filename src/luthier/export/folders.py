"""Exports that are folders of standard files: a PEFT adapter that stands alone, and a merged model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel

from luthier.core.errors import ModelError
from luthier.models.catalogue import MANIFEST
from luthier.models.folder import read_headers, read_json, weight_files
from luthier.models.load import open_model
from luthier.models.lora import CONFIG, WEIGHTS, load_adapter, not_finite
from luthier.models.tokenizer import quiet_transformers
from luthier.models.trainable import TOKENIZER_FILES
from luthier.store.files import atomic_write_json
from luthier.tokens.template import ChatEncoder

_DTYPES: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def open_tested(model_path: Path, adapter: Path | None) -> PreTrainedModel:
    """The tested model in fp32, its adapter beside the weights as in the measurement."""
    model = open_model(model_path, dtype=torch.float32)
    if adapter is None:
        return model
    adapted = load_adapter(model, adapter)
    for parameter in adapted.parameters():
        parameter.data = parameter.data.float()
    return cast("PreTrainedModel", adapted)


def open_merged(model_path: Path, adapter: Path | None) -> PreTrainedModel:
    """One model of fp32 weights, the adapter added to them in fp32. Raises ModelError if a weight is not finite."""
    model: Any = open_tested(model_path, adapter)
    merged = model if adapter is None else model.merge_and_unload(safe_merge=True)
    if broken := not_finite(dict(merged.named_parameters())):
        raise ModelError(f"the merged model: {broken}", where=str(model_path), fix="train again with a lower learning rate")
    return cast("PreTrainedModel", merged)


def stored_dtypes(base: Path) -> dict[str, torch.dtype]:
    """In which dtype the base model stores each tensor; "" is the most frequent one."""
    found: dict[str, torch.dtype] = {}
    for file in weight_files(base):
        found |= {name: _DTYPES[header.dtype] for name, header in read_headers(file).items() if header.dtype in _DTYPES}
    kinds = list(found.values())
    return {**found, "": max(set(kinds), key=kinds.count) if kinds else torch.float32}


def write_merged(model: PreTrainedModel, out: Path, *, base: Path, encoder: ChatEncoder, dtype: torch.dtype | None = None) -> str:
    """Safetensors, config, tokenizer, template; weights in `dtype`, or in those of the base. Returns the dtype's name.

    The model is rounded in place.
    """
    dtypes = stored_dtypes(base) if dtype is None else {"": dtype}
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(name, dtypes[""]))
    text: Any = model.config
    text.dtype = dtypes[""]
    text.name_or_path = ""  # a folder of this machine
    model.generation_config = GenerationConfig()
    with quiet_transformers():
        model.save_pretrained(out, max_shard_size="4GB")
    write_words(out, base=base, encoder=encoder)
    return str(dtypes[""]).removeprefix("torch.")


def write_adapter(adapter: Path, out: Path, *, base: Path, base_name: str, encoder: ChatEncoder) -> None:
    """The adapter of the run with tokenizer and template beside it. The base model is named as others can find it."""
    shutil.copyfile(adapter / WEIGHTS, out / WEIGHTS)
    config = {**read_json(adapter / CONFIG), "base_model_name_or_path": base_name}
    atomic_write_json(out / CONFIG, config)
    shutil.copyfile(adapter / MANIFEST, out / MANIFEST)
    write_words(out, base=base, encoder=encoder)


def write_words(out: Path, *, base: Path, encoder: ChatEncoder) -> None:
    """Tokenizer and template as the base has them, and a generation config that stops where the model was trained to stop."""
    for name in TOKENIZER_FILES:
        if (base / name).is_file() and name != "generation_config.json":
            shutil.copyfile(base / name, out / name)
    config_path = out / "tokenizer_config.json"
    if config_path.is_file():
        config = read_json(config_path)
        config.pop("name_or_path", None)
        config_path.write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")
    with quiet_transformers():
        named = (base / "generation_config.json").is_file()
        given = GenerationConfig.from_pretrained(base, local_files_only=True) if named else GenerationConfig()
        kept = {
            key: value for key in ("bos_token_id", "do_sample", "temperature", "top_p", "top_k") if (value := getattr(given, key, None))
        }
        generation = GenerationConfig(**kept)  # the rest of it changes answers, and was not part of what was measured
        stops = sorted(encoder.eos_ids)
        generation.eos_token_id = stops[0] if len(stops) == 1 else stops
        pad = encoder.tokenizer.pad_token_id
        generation.pad_token_id = pad if isinstance(pad, int) else stops[0]
        generation.save_pretrained(out)
