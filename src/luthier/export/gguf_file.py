"""Writing a model as GGUF: tensor names and layout as llama.cpp wants them, and everything else inside: tokenizer, template, stops.

Facts of the format (names, the order of q and k rows, the +1 of Gemma's norms, the rope factors of Llama 3) are those of llama.cpp's
converter; `gguf` writes the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quantize
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from luthier.core.errors import ModelError
from luthier.export.gguf_vocab import Vocabulary

BLOCK = 32  # values that share one scale in the quantised types below

# What `gguf` can write, and llama.cpp's number for a file of it. The K types (Q4_K_M, Q5_K_M, Q6_K) it can only read.
TYPES: Mapping[str, LlamaFileType] = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q5_1": LlamaFileType.MOSTLY_Q5_1,
    "Q5_0": LlamaFileType.MOSTLY_Q5_0,
    "Q4_1": LlamaFileType.MOSTLY_Q4_1,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How llama.cpp wants the models of one transformers `model_type`."""

    arch: str
    activation: str
    interleaves_heads: bool = False  # rows of q and k in the order of rotated pairs
    adds_one_to_norms: bool = False  # stored as weight - 1 by transformers


FAMILIES: Mapping[str, Family] = {
    "llama": Family(arch="llama", activation="silu", interleaves_heads=True),
    "mistral": Family(arch="llama", activation="silu", interleaves_heads=True),
    "qwen2": Family(arch="qwen2", activation="silu"),
    "qwen3": Family(arch="qwen3", activation="silu"),
    "gemma2": Family(arch="gemma2", activation="gelu_pytorch_tanh", adds_one_to_norms=True),
    "gemma3_text": Family(arch="gemma3", activation="gelu_pytorch_tanh", adds_one_to_norms=True),
}


def family_of(model_type: str, *, where: str) -> Family:
    """The family, or ModelError that names the ones there are."""
    if model_type not in FAMILIES:
        raise ModelError(
            f"a model of type {model_type!r} cannot be written as GGUF; those that can: {', '.join(FAMILIES)}",
            where=where,
            fix="--to merged (safetensors), which every model can be exported to",
        )
    return FAMILIES[model_type]


def refuse_unwritable(config: Any, *, where: str) -> None:
    """Raise ModelError for a config whose computation llama.cpp would do otherwise: better no file than a false one."""
    family = family_of(str(config.model_type), where=where)
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    kinds = {str(rope.get("rope_type", "default")) for rope in _ropes(config).values()}
    unknown = kinds - ({"default", "llama3"} if family.arch == "llama" else {"default"})
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    is_gemma = family.arch.startswith("gemma")
    problems = [
        *([f"the activation {activation}"] if activation != family.activation else []),
        *([f"rope scaling {', '.join(sorted(unknown))}"] if unknown else []),
        *([f"{', '.join(sorted(layers))} layers"] if layers and not is_gemma else []),
        *([f"{key}" for key in ("attention_bias", "mlp_bias") if getattr(config, key, False) and family.arch != "qwen2"]),
    ]
    if problems:
        raise ModelError(
            f"a {config.model_type} model with {' and '.join(problems)} cannot be written as GGUF",
            where=where,
            fix="--to merged (safetensors), which every model can be exported to",
        )


def _ropes(config: Any) -> dict[str, dict[str, Any]]:
    """Rope settings by kind of layer; "" where all layers have the same."""
    found: dict[str, Any] = dict(getattr(config, "rope_parameters", None) or {})
    if found and all(isinstance(value, dict) for value in found.values()):
        return cast("dict[str, dict[str, Any]]", found)
    return {"": found}


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the file says of itself to people. Untrusted text, stored as it is: GGUF strings hold anything."""

    name: str
    base_model: str
    licence: str
    description: str


def write_gguf(model: PreTrainedModel, vocabulary: Vocabulary, path: Path, *, storage: str, about: About) -> tuple[str, ...]:
    """Write fp32 weights as `storage`; returns notes on tensors stored otherwise. Raises ModelError, OSError."""
    config: Any = model.config.get_text_config()
    refuse_unwritable(config, where=str(path.name))
    family = family_of(str(config.model_type), where=str(path.name))
    writer = GGUFWriter(path=None, arch=family.arch)
    _add_general(writer, about, TYPES[storage])
    _add_shape(writer, config, family)
    _add_tokenizer(writer, vocabulary)
    notes = _add_tensors(writer, model, config, family, storage)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file(progress=False)
    finally:
        writer.close()
    return notes


def _add_general(writer: GGUFWriter, about: About, kind: LlamaFileType) -> None:
    writer.add_type("model")
    writer.add_name(about.name)
    writer.add_description(about.description)
    if about.licence:
        writer.add_license(about.licence)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, about.base_model)
    writer.add_file_type(int(kind))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def head_dim(config: Any) -> int:
    """Width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _add_shape(writer: GGUFWriter, config: Any, family: Family) -> None:
    window = getattr(config, "sliding_window", None)
    is_gemma = family.arch.startswith("gemma")
    context = int(config.max_position_embeddings)
    if window and config.model_type == "mistral":  # llama.cpp knows no window for it: within it, both compute the same
        context = min(context, int(window))
    ropes = _ropes(config)
    rope = ropes.get("full_attention") or next(iter(ropes.values()))
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    if is_gemma and window:
        writer.add_sliding_window(int(window))
    if family.arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _add_tokenizer(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "llama":
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    else:
        writer.add_token_merges(vocabulary.merges)
    for add, value in (
        (writer.add_bos_token_id, vocabulary.bos_id),
        (writer.add_eos_token_id, vocabulary.eos_id),
        (writer.add_eot_token_id, vocabulary.eot_id),
        (writer.add_unk_token_id, vocabulary.unk_id),
        (writer.add_pad_token_id, vocabulary.pad_id),
    ):
        if value is not None:
            add(value)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(value=False)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def interleave_heads(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of q or k from halves (transformers: i, i + d/2) to pairs (llama.cpp: 2i, 2i + 1), head by head."""
    half = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _for_llama_cpp(name: str, weight: Tensor, config: Any, family: Family) -> Tensor:
    if family.interleaves_heads and ".attn_q." in name:
        return interleave_heads(weight, config.num_attention_heads)
    if family.interleaves_heads and ".attn_k." in name:
        return interleave_heads(weight, config.num_key_value_heads)
    return weight + 1 if family.adds_one_to_norms and name.endswith("norm.weight") else weight


def _add_tensors(writer: GGUFWriter, model: PreTrainedModel, config: Any, family: Family, storage: str) -> tuple[str, ...]:
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.arch)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    is_tied = bool(config.tie_word_embeddings)
    otherwise: list[str] = []
    for name, parameter in model.named_parameters():
        if name == "lm_head.weight" and is_tied:
            continue
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise ModelError(f"has a tensor {name!r} that has no name in GGUF", where=family.arch, fix="--to merged (safetensors)")
        weight = _for_llama_cpp(written, parameter.detach().float(), config, family)
        kind = _stored_as(written, weight, storage, is_tied=is_tied)
        if weight.ndim > 1 and kind != storage:
            otherwise.append(f"{written} as {kind}")
        _add_tensor(writer, written, weight, kind)
    factors = rope_factors(config)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    return (f"stored otherwise than {storage}: {', '.join(otherwise)}",) if otherwise else ()


def _stored_as(name: str, weight: Tensor, storage: str, *, is_tied: bool) -> str:
    """Norms and biases stay fp32; below 8 bits the matrix that makes logits keeps 8; rows that do not divide into blocks stay F16."""
    if weight.ndim < 2 or storage == "F32":
        return "F32"
    if storage in ("F16", "BF16"):
        return storage
    if weight.shape[-1] % BLOCK:
        return "F16"
    makes_logits = name == ("token_embd.weight" if is_tied else "output.weight")
    return "Q8_0" if makes_logits else storage


def _add_tensor(writer: GGUFWriter, name: str, weight: Tensor, kind: str) -> None:
    values = weight.contiguous().numpy()
    if kind == "F32":
        writer.add_tensor(name, values)
        return
    if kind == "F16":
        if float(weight.abs().max()) > torch.finfo(torch.float16).max:
            raise ModelError(f"{name} holds values too large for F16", where="--type", fix="--type BF16")
        writer.add_tensor(name, values.astype(np.float16))
        return
    quantised = GGMLQuantizationType[kind]
    writer.add_tensor(name, quantize(values, quantised), raw_dtype=quantised)


def rope_factors(config: Any) -> NDArray[np.float32] | None:
    """What llama.cpp divides each rope frequency by, for Llama 3's scaling (transformers' `_compute_llama3_parameters`); else None."""
    rope = next(iter(_ropes(config).values()))
    if rope.get("rope_type") != "llama3":
        return None
    width = head_dim(config)
    factor, low, high = float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = float(rope["original_max_position_embeddings"])
    out: list[float] = []
    for i in range(0, width, 2):
        wavelength = 2 * math.pi * float(rope["rope_theta"]) ** (i / width)
        if wavelength < original / high:
            out.append(1.0)
        elif wavelength > original / low:
            out.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, dtype=np.float32)
