"""Model folders that cannot or must not be opened; each is a typed error before any weight is computed with."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.fixtures.tiny_model import make_tiny_model, make_tiny_tokenizer

from luthier.core.errors import ModelError
from luthier.models.folder import read_headers
from luthier.models.load import inspect_folder, open_model
from luthier.models.tokenizer import open_tokenizer


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("original") / "tiny")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_what_is_found(folder: Path) -> None:
    info = inspect_folder(folder)
    assert (info.name, info.architecture, info.model_type, info.dtype) == ("tiny", "LlamaForCausalLM", "llama", "float32")
    assert (info.num_params, info.context, info.vocab_size, info.has_chat_template) == (311936, 512, 512, True)
    model = open_model(folder, dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == info.num_params
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_digest_names_the_weights(original: Path, folder: Path, tmp_path: Path) -> None:
    same, other = make_tiny_model(tmp_path / "same"), make_tiny_model(tmp_path / "other", seed=1)
    assert inspect_folder(original).sha256 == inspect_folder(folder).sha256 == inspect_folder(same).sha256
    assert inspect_folder(other).sha256 != inspect_folder(same).sha256


def test_no_folder_no_config_no_weights_no_tokenizer(folder: Path) -> None:
    with pytest.raises(ModelError, match="is not a folder"):
        inspect_folder(folder / "nowhere")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        inspect_folder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        inspect_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json: is not there"):
        inspect_folder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickle_only(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    for opens in (inspect_folder, lambda path: open_model(path, dtype=torch.float32)):
        with pytest.raises(ModelError, match=f"only in pickled form.*{name}"):
            opens(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code(folder: Path, name: str) -> None:
    edit(folder / name, auto_map={"AutoModelForCausalLM": "modeling_x.X", "AutoTokenizer": ["tok.T", None]})
    (folder / "modeling_x.py").write_text("raise SystemExit('this must never run')", encoding="utf-8")
    for opens in (inspect_folder, open_tokenizer, lambda path: open_model(path, dtype=torch.float32)):
        with pytest.raises(ModelError, match=rf"{name}.*modeling_x\.py"):
            opens(folder)


def test_other_shapes(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=100)
    with pytest.raises(ModelError, match="do not have the shape"):
        inspect_folder(folder)


def test_more_words_than_vectors(folder: Path) -> None:
    make_tiny_tokenizer(540).save(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"ids up to 5\d\d, the embedding only 512 rows"):
        inspect_folder(folder)


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 10**9}, {"model_type": "unheard_of"}, {"hidden_size": "x"}, {"vocab_size": -5}])
def test_nonsense_configs(folder: Path, changes: dict[str, Any]) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(ModelError):
        inspect_folder(folder)


@pytest.mark.parametrize("text", ["[1]", "{", '{"a":' * 100_000, "\x00"])
def test_configs_that_are_not_objects(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match="config"):
        inspect_folder(folder)


def test_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "none"}}', encoding="utf-8")
    with pytest.raises(ModelError, match="tokenizer cannot be read"):
        open_tokenizer(folder)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "missing.safetensors", "pytorch_model.bin"])
def test_index_may_only_name_files_of_the_folder(folder: Path, name: str) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}), encoding="utf-8")
    with pytest.raises(ModelError, match="not a weight file of this folder"):
        inspect_folder(folder)


def rewrite(folder: Path, change: Any) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_left_over_and_broken_weights(original: Path, folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    for change, reason in (
        (lambda state: state.pop(name), "1 missing tensors"),
        (lambda state: state.update(extra=torch.zeros(2)), "1 unexpected tensors"),
        (lambda state: state[name].view(-1)[7:8].fill_(float("nan")), "not numbers"),
        (lambda state: state[name].view(-1)[7:8].fill_(float("inf")), "not numbers"),
    ):
        shutil.copy(original / "model.safetensors", folder / "model.safetensors")
        rewrite(folder, change)
        with pytest.raises(ModelError, match=reason):
            open_model(folder, dtype=torch.float32)


def write_header(path: Path, header: object, num_bytes: int) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(num_bytes))
    return path


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "num_bytes"),
    [
        ({"a": F32}, 7),
        ({"a": F32}, 9),
        ({"a": F32, "b": F32}, 16),  # overlap
        ({"a": {**F32, "data_offsets": [8, 16]}}, 16),  # gap
        ({"a": {**F32, "shape": [3]}}, 8),
        ({"a": {**F32, "shape": [-2]}}, 8),
        ({"a": {**F32, "shape": [2**62, 2**62]}}, 8),
        ({"a": {**F32, "shape": [True, 2]}}, 8),
        ({"a": {**F32, "dtype": "OBJECT"}}, 8),
        ({"a": {**F32, "data_offsets": [0]}}, 8),
        ({"a": 1}, 8),
        ([], 0),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: object, num_bytes: int) -> None:
    assert read_headers(write_header(tmp_path / "good", {"a": F32}, 8))["a"].shape == (2,)
    with pytest.raises(ModelError, match="the weight file"):
        read_headers(write_header(tmp_path / "bad", header, num_bytes))


def test_fuzzed_headers_are_sound_or_typed_errors(original: Path, tmp_path: Path) -> None:
    data = (original / "model.safetensors").read_bytes()
    rng, path, refused = random.Random("0/headers"), tmp_path / "model.safetensors", 0
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(150):
        mutated = bytearray(data[: header + rng.randrange(64)] if rng.random() < 0.3 else data)
        for _ in range(rng.randrange(1, 4)):
            mutated[rng.randrange(header)] = rng.randrange(256)
        path.write_bytes(mutated[: rng.randrange(len(mutated))] if rng.random() < 0.2 else mutated)
        try:
            read_headers(path)
        except ModelError:
            refused += 1
    assert refused > 75
