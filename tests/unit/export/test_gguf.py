"""GGUF files: written here, read back by transformers, family by family; and the tokenizer from nothing but the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from tests.fixtures.tiny_model import make_tiny_model, make_tiny_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from luthier.core.errors import ModelError
from luthier.export import gguf_file
from luthier.export.gguf_file import TYPES, About, write_gguf
from luthier.export.gguf_vocab import PRE_TOKENISERS, Vocabulary, build_pre_tokeniser, find_pre_tokeniser, open_vocabulary, read_vocabulary
from luthier.export.loaders import read_metadata, reload_gguf, vocabulary_of
from luthier.models.tokenizer import open_tokenizer
from luthier.tokens.template import ChatEncoder, open_chat

ABOUT = About(name="tiny\x1b[31m", base_model="base", licence="Apache-2.0", description="a test")
SHAPE: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama untied": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "llama 3 rope": LlamaConfig(**SHAPE, rope_parameters=LLAMA3),
    "mistral": MistralConfig(**SHAPE, head_dim=16, sliding_window=None),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=32),
    "gemma2": Gemma2Config(**SHAPE, head_dim=32, query_pre_attn_scalar=256),
    "gemma3": Gemma3TextConfig(**SHAPE, head_dim=32, query_pre_attn_scalar=256, sliding_window=16),
}


def _model(config: Any) -> PreTrainedModel:
    """Random weights everywhere: norms and biases too, so that one left out or in the wrong form shows."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator) + (1.0 if parameter.ndim == 1 else 0.0))
    return model


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ChatEncoder:
    return open_chat(open_tokenizer(make_tiny_model(tmp_path_factory.mktemp("tiny"))))


@torch.no_grad()
def _apart(model: PreTrainedModel, path: Path) -> float:
    ids = torch.arange(3, 103)[None]
    other: Any = reload_gguf(path).model
    return float((model(input_ids=ids).logits - other(input_ids=ids).logits).abs().max())


def _write(model: PreTrainedModel, encoder: ChatEncoder, path: Path, storage: str) -> tuple[str, ...]:
    return write_gguf(model, read_vocabulary(encoder, num_rows=512, where="tiny"), path, storage=storage, about=ABOUT)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_reads_back_as_the_same_model(name: str, encoder: ChatEncoder, tmp_path: Path) -> None:
    model = _model(FAMILIES[name])
    _write(model, encoder, tmp_path / "m.gguf", "F32")
    assert _apart(model, tmp_path / "m.gguf") < 2e-4


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_file_without_the_familys_own_layout_is_another_model(
    name: str, encoder: ChatEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round trip can fail: rows of q and k left as they are, norms without their one."""
    monkeypatch.setattr(gguf_file, "_for_llama_cpp", lambda name, weight, config, family: weight)
    model = _model(FAMILIES[name])
    _write(model, encoder, tmp_path / "m.gguf", "F32")
    assert _apart(model, tmp_path / "m.gguf") > 0.1


@pytest.mark.parametrize(("storage", "limit"), [("F16", 0.01), ("BF16", 0.1), ("Q8_0", 0.2), ("Q5_1", 1.5), ("Q4_0", 3.0)])
def test_types_are_stored_as_named_and_lose_little(storage: str, limit: float, encoder: ChatEncoder, tmp_path: Path) -> None:
    model = _model(FAMILIES["llama"])
    assert not [note for note in _write(model, encoder, tmp_path / "m.gguf", storage) if "F16" in note]
    assert 0 < _apart(model, tmp_path / "m.gguf") < limit
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(str(tmp_path / "m.gguf")).tensors}
    assert kinds["blk.0.ffn_down.weight"] == storage and kinds["blk.0.attn_norm.weight"] == "F32"
    metadata = read_metadata(tmp_path / "m.gguf")
    assert metadata["general.file_type"] == TYPES[storage] and metadata["general.name"] == ABOUT.name


def test_values_too_large_for_f16_are_refused(encoder: ChatEncoder, tmp_path: Path) -> None:
    model = _model(FAMILIES["llama"])
    next(model.parameters()).data[0, 0] = 1e5
    with pytest.raises(ModelError, match="too large for F16"):
        _write(model, encoder, tmp_path / "m.gguf", "F16")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (PhiConfig(**SHAPE), "'phi' cannot be written as GGUF; those that can: llama, mistral"),
        (LlamaConfig(**SHAPE, hidden_act="gelu"), "the activation gelu"),
        (LlamaConfig(**SHAPE, attention_bias=True), "attention_bias"),
        (LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}), "rope scaling linear"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused_by_name(config: Any, words: str, encoder: ChatEncoder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words):
        _write(_model(config), encoder, tmp_path / "m.gguf", "F16")


TEXTS = ("A card (£12.50) x:   12 and 1234567.", " lead", "I'VE  two\n\n\nlines\t", "naïve 你好 🚀", "", "<|im_end|> user")


def _own(pre: str) -> Tokenizer:
    backend = make_tiny_tokenizer()
    backend.pre_tokenizer = build_pre_tokeniser(pre)
    return backend


@pytest.mark.parametrize("pre", PRE_TOKENISERS)
def test_pre_tokenisers_are_told_apart_by_what_they_do(pre: str) -> None:
    assert find_pre_tokeniser(PreTrainedTokenizerFast(tokenizer_object=_own(pre)), where="x") == pre


def test_smollms_digits_and_gpt2s_own_form_are_known() -> None:
    digits = _own("gpt-2")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    assert find_pre_tokeniser(PreTrainedTokenizerFast(tokenizer_object=digits), where="x") == "smollm"
    digits.pre_tokenizer = byte_level
    assert find_pre_tokeniser(PreTrainedTokenizerFast(tokenizer_object=digits), where="x") == "gpt-2"


def test_an_unknown_pre_tokeniser_is_refused() -> None:
    backend = _own("gpt-2")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("e"), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(ModelError, match="no pre-tokeniser"):
        find_pre_tokeniser(PreTrainedTokenizerFast(tokenizer_object=backend), where="x")


def test_byte_level_vocabulary_survives_the_file(encoder: ChatEncoder, tmp_path: Path) -> None:
    model = _model(LlamaConfig(**{**SHAPE, "vocab_size": 520}))
    vocabulary = read_vocabulary(encoder, num_rows=520, where="tiny")
    write_gguf(model, vocabulary, tmp_path / "m.gguf", storage="F16", about=ABOUT)
    read = vocabulary_of(read_metadata(tmp_path / "m.gguf"), where="m")
    assert read == vocabulary and read.tokens[-1].startswith("[PAD")
    _same_tokens(encoder, read)


@pytest.mark.parametrize("prefix", [False, True])
def test_sentence_piece_vocabulary_is_rebuilt_from_scores(prefix: bool) -> None:
    steps = [normalizers.Prepend("▁")] if prefix else []
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", *bytes_], show_progress=False)
    backend.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 3, "a card that has not come yet, 12 and 13"], trainer)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *([decoders.Strip(" ", 1, 0)] if prefix else [])]
    )
    # Byte tokens are ordinary ones in a real vocabulary, not added.
    plain = json.loads(backend.to_str())
    plain["added_tokens"] = [token for token in plain["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(plain)), bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    encoder = open_chat(tokenizer)
    vocabulary = read_vocabulary(encoder, num_rows=len(tokenizer), where="pieces")
    assert vocabulary.model == "llama" and vocabulary.add_space_prefix == prefix
    _same_tokens(encoder, vocabulary)


def _same_tokens(encoder: ChatEncoder, vocabulary: Vocabulary) -> None:
    rebuilt = open_vocabulary(vocabulary)
    for text in TEXTS:
        ours, theirs = encoder.tokenizer(text)["input_ids"], rebuilt(text)["input_ids"]
        assert ours == theirs, text
        assert encoder.tokenizer.decode(ours) == rebuilt.decode(theirs)
