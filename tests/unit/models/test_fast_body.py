"""The fast body of generation: the model's own states, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures.tiny_model import make_tiny_model

from luthier.models.backbone import hidden_states, use_layout_attention
from luthier.models.decode_layout import EnterLayout
from luthier.models.fast_body import open_fast_body
from luthier.models.load import open_model
from luthier.models.lora import LoraSettings, add_lora
from luthier.models.voices import Voices


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=3)


def _open(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    model = open_model(folder, dtype=dtype)
    use_layout_attention(model)
    return model


IDS = torch.tensor([[5, 9, 200, 31], [7, 7, 8, 301]])
POSITIONS = torch.arange(4).expand(2, 4)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-5), (torch.bfloat16, 6e-2)])
def test_states_equal_the_models_own(folder: Path, dtype: torch.dtype, atol: float) -> None:
    with torch.no_grad():
        want = hidden_states(_open(folder, dtype).model, IDS, POSITIONS, EnterLayout())
        voices = Voices(_open(folder, dtype))
        got = voices.states(IDS, POSITIONS, EnterLayout(), ["", ""])
        assert voices._fast is not None
        torch.testing.assert_close(got, want, atol=atol, rtol=0)
        with pytest.raises(AssertionError):  # one position off is told apart
            torch.testing.assert_close(voices.states(IDS, POSITIONS * 2, EnterLayout(), ["", ""]), want, atol=atol, rtol=0)


def test_weights_are_taken_over_not_doubled(folder: Path) -> None:
    model = _open(folder)
    before = model.model.layers[0].mlp.gate_proj.weight.numel()
    Voices(model)
    assert before and not model.model.layers[0].mlp.gate_proj.weight.numel()


def test_biases_are_added(folder: Path) -> None:
    def with_bias() -> Any:
        model = _open(folder)
        for layer in model.model.layers:  # as Qwen2: on queries, keys and values only
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                linear.bias = torch.nn.Parameter(torch.linspace(-0.5, 0.5, linear.out_features), requires_grad=False)
        return model

    with torch.no_grad():
        want = hidden_states(with_bias().model, IDS, POSITIONS, EnterLayout())
        voices = Voices(with_bias())
        assert voices._fast is not None
        torch.testing.assert_close(voices.states(IDS, POSITIONS, EnterLayout(), ["", ""]), want, atol=2e-5, rtol=0)


def test_another_kind_of_model_keeps_its_own_way(folder: Path) -> None:
    other = _open(folder)
    for layer in other.model.layers:
        layer.mlp.act_fn = torch.nn.GELU()
    assert open_fast_body(other.model, ()) is None
    assert other.model.layers[0].mlp.gate_proj.weight.numel()
    dora = add_lora(open_model(folder, dtype=torch.float32), LoraSettings(r=4, alpha=8, dropout=0.0, use_dora=True), 0)
    use_layout_attention(dora.get_base_model())
    voices = Voices(dora, {"tuned": "default"})
    assert voices._fast is None and not voices.mixes
    with torch.no_grad():
        tuned, base = (voices.states(IDS, POSITIONS, EnterLayout(), [v, v]) for v in ("tuned", "base"))
        assert torch.allclose(tuned, base, atol=1e-5)  # B is zero at the start
        for name, parameter in dora.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
        assert not torch.allclose(voices.states(IDS, POSITIONS, EnterLayout(), ["tuned"] * 2), tuned, atol=1e-2)
        assert torch.allclose(voices.states(IDS, POSITIONS, EnterLayout(), ["base"] * 2), base)
