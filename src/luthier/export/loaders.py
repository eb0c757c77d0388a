"""An exported artefact, read back from its files by other code than wrote it: transformers, and peft for adapters.

Weights are opened in fp32, whatever they are stored in: rounding of the computation must not hide or imitate a fault of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from gguf import GGUFReader
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from luthier.core.errors import ModelError
from luthier.export.gguf_vocab import Vocabulary, open_vocabulary
from luthier.models.tokenizer import quiet_transformers


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """What a user of the artefact would get. `stop_ids`: where the artefact itself says an answer ends."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]
    loader: str


def _stop_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """As transformers and vLLM find them: the folder's generation config, and the tokenizer's EOS."""
    ids: set[int] = {tokenizer.eos_token_id} if isinstance(tokenizer.eos_token_id, int) else set()
    if (folder / "generation_config.json").is_file():
        named = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
        ids |= set(named) if isinstance(named, list) else {named} if isinstance(named, int) else set()
    return frozenset(ids)


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(folder, local_files_only=True))


def _model(folder: Path, **more: Any) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **more).eval()


def reload_model(folder: Path) -> Reloaded:
    """A folder of safetensors."""
    with quiet_transformers():
        tokenizer = _tokenizer(folder)
        model = _model(folder, use_safetensors=True)
    name = f"transformers {transformers.__version__}, fp32"
    return Reloaded(model=model, tokenizer=tokenizer, stop_ids=_stop_ids(folder, tokenizer), loader=name)


def reload_adapter(folder: Path, base: Path) -> Reloaded:
    """A PEFT adapter on its base model; tokenizer and template are the adapter folder's own."""
    import peft

    with quiet_transformers():
        tokenizer = _tokenizer(folder)
        model = PeftModel.from_pretrained(cast("Any", _model(base, use_safetensors=True)), folder).float().eval()
    name = f"peft {peft.__version__} on transformers {transformers.__version__}, fp32"
    return Reloaded(model=model, tokenizer=tokenizer, stop_ids=_stop_ids(folder, tokenizer), loader=name)


def read_metadata(path: Path) -> dict[str, Any]:
    """All key-value pairs of a GGUF file. Raises ModelError."""
    try:
        return {key: field.contents() for key, field in GGUFReader(str(path)).fields.items()}
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ModelError(f"is not a GGUF file that can be read: {error}", where=path.name, fix="export again") from error


def vocabulary_of(metadata: Mapping[str, Any], *, where: str) -> Vocabulary:
    """The tokenizer as the file holds it. Raises ModelError where something is missing."""

    def get(key: str) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}")

    try:
        return Vocabulary(
            model=metadata["tokenizer.ggml.model"],
            pre=metadata["tokenizer.ggml.pre"],
            tokens=tuple(metadata["tokenizer.ggml.tokens"]),
            types=tuple(metadata["tokenizer.ggml.token_type"]),
            merges=tuple(get("merges") or ()),
            scores=tuple(get("scores") or ()),
            bos_id=get("bos_token_id"),
            eos_id=get("eos_token_id"),
            eot_id=get("eot_token_id"),
            unk_id=get("unknown_token_id"),
            pad_id=get("padding_token_id"),
            add_bos=bool(get("add_bos_token")),
            add_space_prefix=bool(get("add_space_prefix")),
            chat_template=metadata.get("tokenizer.chat_template"),
        )
    except KeyError as error:
        raise ModelError(f"has no {error.args[0]}", where=where, fix="export again") from error


def reload_gguf(path: Path) -> Reloaded:
    """A GGUF file: weights and config through transformers' reader, the tokenizer from the file's metadata as llama.cpp builds it.

    transformers' own conversion of the tokenizer loses the pre-tokeniser of several families, so it would not be a fair witness.
    """
    metadata = read_metadata(path)
    vocabulary = vocabulary_of(metadata, where=path.name)
    file: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    with quiet_transformers():
        config = AutoConfig.from_pretrained(path.parent, **file)
        arch = str(metadata["general.architecture"])
        if arch == "qwen3":  # transformers' reader leaves the width of a head at its default
            config.head_dim = int(metadata["qwen3.attention.key_length"])
        dequantise = getattr(transformers, "GgufConfig", None)  # before 5.23 there was no other way than to dequantise
        extra = {"quantization_config": dequantise(dequantize=True)} if dequantise is not None else {}
        with redirect_stderr(StringIO()):  # a progress bar that is not one of those transformers can be told to leave out
            model = _model(path.parent, gguf_file=path.name, config=config, **extra)
    _scale_rope(model, path)
    stops = frozenset(index for index in (vocabulary.eos_id, vocabulary.eot_id) if index is not None)
    name = f"transformers {transformers.__version__} reading GGUF, dequantised to fp32"
    return Reloaded(model=model, tokenizer=open_vocabulary(vocabulary), stop_ids=stops, loader=name)


def _scale_rope(model: nn.Module, path: Path) -> None:
    """Llama 3's rope factors, which transformers' reader leaves out, from the file."""
    found = next((tensor for tensor in GGUFReader(str(path)).tensors if tensor.name == "rope_freqs.weight"), None)
    if found is not None:
        rotary: Any = cast("Any", model).model.rotary_emb
        rotary.inv_freq = rotary.inv_freq / torch.from_numpy(found.data.copy())
