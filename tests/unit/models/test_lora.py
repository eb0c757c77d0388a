from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.fixtures.tiny_model import make_tiny_model

from luthier.core.errors import ModelError
from luthier.models.load import ModelInfo, inspect_folder, open_model
from luthier.models.lora import CONFIG, WEIGHTS, LoraSettings, add_lora, load_adapter, save_adapter

SETTINGS = LoraSettings(r=4, alpha=8, dropout=0.0)
IDS = torch.tensor([[1, 40, 41, 42, 43]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def info(base: Path) -> ModelInfo:
    return inspect_folder(base)


def trained(base: Path, settings: LoraSettings = SETTINGS) -> PeftModel:
    """An adapter that does something."""
    model = add_lora(open_model(base, dtype=torch.float32), settings, seed=3)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def adapter(base: Path, info: ModelInfo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "a"
    save_adapter(trained(base), path, base_info=info)
    return path


def state(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


def test_a_fresh_adapter_changes_nothing_and_alone_is_trained(base: Path) -> None:
    plain = open_model(base, dtype=torch.float32)(IDS).logits
    model = add_lora(open_model(base, dtype=torch.float32), SETTINGS, seed=0)
    assert torch.equal(model(IDS).logits, plain)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 7 * 2  # A and B of seven layers, twice; the output layer has none
    assert all("lora_" in name for name in trainable)


def test_the_start_is_a_function_of_the_seed_alone(base: Path) -> None:
    def start(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        model = add_lora(open_model(base, dtype=torch.float32), SETTINGS, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return state(model)

    first, again, other = start(0, 1), start(0, 2), start(1, 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)
    a = first["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"]
    assert a.abs().max() <= 1 / 128**0.5 and a.std() > 0.04  # uniform in +-1/sqrt(in)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_of_adapters(base: Path, dtype: torch.dtype) -> None:
    model = add_lora(open_model(base, dtype=torch.bfloat16), SETTINGS, seed=0, dtype=dtype)
    assert {tensor.dtype for tensor in state(model).values()} == {dtype}


def test_chosen_targets_and_none(base: Path) -> None:
    model = add_lora(open_model(base, dtype=torch.float32), LoraSettings(r=2, alpha=4, dropout=0, targets=("q_proj",)), seed=0)
    assert all("q_proj" in name for name in state(model)) and len(state(model)) == 4
    with pytest.raises(ModelError, match="cannot be put on this model"):
        add_lora(open_model(base, dtype=torch.float32), LoraSettings(r=2, alpha=4, dropout=0, targets=("nothing",)), seed=0)


def test_round_trip_here_and_with_peft(base: Path, adapter: Path) -> None:
    expected = trained(base)(IDS).logits
    assert not torch.allclose(expected, open_model(base, dtype=torch.float32)(IDS).logits, atol=1e-3)  # the adapter does something
    ours = load_adapter(open_model(base, dtype=torch.float32), adapter)
    assert torch.equal(ours(IDS).logits, expected)
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())
    theirs = PeftModel.from_pretrained(open_model(base, dtype=torch.float32), str(adapter))
    assert torch.equal(theirs.eval()(IDS).logits, expected)


def test_the_same_adapter_gives_the_same_bytes_and_replaces_an_old_one(base: Path, info: ModelInfo, adapter: Path, tmp_path: Path) -> None:
    path = tmp_path / "b"
    path.mkdir()
    (path / "old").write_text("x", encoding="utf-8")
    save_adapter(trained(base), path, base_info=info)
    assert sorted(p.name for p in path.iterdir()) == [CONFIG, WEIGHTS, "luthier.json"]
    assert all((path / p.name).read_bytes() == p.read_bytes() for p in adapter.iterdir())
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    assert str(base) not in (path / CONFIG).read_text(encoding="utf-8")  # no folder of this machine


def test_non_finite_adapters_are_not_written(base: Path, info: ModelInfo, tmp_path: Path) -> None:
    model = trained(base)
    next(p for name, p in model.named_parameters() if "lora_B" in name).data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not numbers"):
        save_adapter(model, tmp_path / "c", base_info=info)
    assert list(tmp_path.iterdir()) == []


def test_rank_by_layer_and_rslora(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Files other programs write: another rank for one layer."""
    path = Path(shutil.copytree(adapter, tmp_path / "a"))
    weights = load_file(path / WEIGHTS)
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_{}.weight"
    weights[key.format("A")], weights[key.format("B")] = weights[key.format("A")][:2].clone(), weights[key.format("B")][:, :2].clone()
    save_file(weights, path / WEIGHTS)
    edit(path, rank_pattern={"model.layers.1.mlp.up_proj": 2}, use_rslora=True)
    ours = load_adapter(open_model(base, dtype=torch.float32), path)
    theirs = PeftModel.from_pretrained(open_model(base, dtype=torch.float32), str(path)).eval()
    assert torch.equal(ours(IDS).logits, theirs(IDS).logits)


def edit(path: Path, **changes: Any) -> None:
    config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    (path / CONFIG).write_text(json.dumps({**config, **changes}), encoding="utf-8")


def test_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    for given in (None, inspect_folder(other)):
        with pytest.raises(ModelError, match="was trained on tiny"):
            load_adapter(open_model(other, dtype=torch.float32), adapter, base_info=given)


def test_another_shape_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(adapter, tmp_path / "a"))
    (path / "luthier.json").unlink()
    weights = load_file(path / WEIGHTS)
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    save_file({**weights, key: torch.zeros(4, 99)}, path / WEIGHTS)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj: the adapter has the shapes"):
        load_adapter(open_model(base, dtype=torch.float32), path)
    save_file({**weights, key.replace("layers.1", "layers.7"): torch.zeros(4, 128)}, path / WEIGHTS)
    with pytest.raises(ModelError, match="no linear layer"):
        load_adapter(open_model(base, dtype=torch.float32), path)
    weights.pop(key)
    save_file(weights, path / WEIGHTS)
    with pytest.raises(ModelError, match="needs"):
        load_adapter(open_model(base, dtype=torch.float32), path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "IA3"}, "expected 'LORA'"),
        ({"use_dora": True}, "do not fit"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"megatron_config": {"x": 1}, "megatron_core": "antigravity"}, "megatron_config"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"alpha_pattern": {"(a+)+$": 8}}, "module names"),
    ],
)
def test_settings_not_computed_are_refused(base: Path, adapter: Path, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = Path(shutil.copytree(adapter, tmp_path / "a"))
    edit(path, **changes)
    with pytest.raises(ModelError, match=reason):
        load_adapter(open_model(base, dtype=torch.float32), path)


def test_pickled_and_missing_adapters_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(adapter, tmp_path / "a"))
    (path / WEIGHTS).rename(path / "adapter_model.bin")
    with pytest.raises(ModelError, match="only in pickled form"):
        load_adapter(open_model(base, dtype=torch.float32), path)
    with pytest.raises(ModelError, match=f"has no {WEIGHTS}"):
        load_adapter(open_model(base, dtype=torch.float32), tmp_path)
