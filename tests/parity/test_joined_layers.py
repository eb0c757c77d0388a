"""All layers but the last in one function, in a real model: bit-equal to layer by layer, whatever became of the weights meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.kernels import compiled
from luthier.kernels.tree_layout import layout_tree
from luthier.models import surgery
from luthier.models.backbone import TreeLayout, body_and_head, use_layout_attention, wanted_states
from luthier.models.lora import LoraSettings, add_lora

pytestmark = pytest.mark.skipif(not compiled.library().tiles, reason=f"no tiles here: {compiled.library().words}")
LAYERS, TOKENS = 4, 80
Compute = Callable[[], list[Tensor]]


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=192, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2
    )
    adapted = add_lora(LlamaForCausalLM(config).bfloat16(), LoraSettings(r=16, alpha=16, dropout=0.0), seed=1)
    for name, param in adapted.named_parameters():
        if param.requires_grad:
            param.data = (0.1 * torch.randn_like(param) if "lora_B" in name else param.data).bfloat16()
    use_layout_attention(adapted.get_base_model())  # type: ignore[arg-type]
    assert surgery.use_fast_kernels(adapted)["decoder_layer"] == LAYERS
    return adapted.train()


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers each call was for."""
    found: list[int] = []
    own = surgery.whole_layers
    monkeypatch.setattr(surgery, "whole_layers", lambda x_TE, layers, *rest: (found.append(len(layers)), own(x_TE, layers, *rest))[1])
    return found


def _computed(model: Any) -> list[Tensor]:
    """The states that are read, and the gradient of every adapter."""
    body, _ = body_and_head(model)
    layout = TreeLayout(layout_tree(30, [20, 30]), wanted_N=torch.tensor([40, 49, 79]))
    states = wanted_states(body, torch.arange(TOKENS) % 64, torch.arange(TOKENS), layout)
    trained = [param for param in model.parameters() if param.requires_grad]
    return [states.detach(), *torch.autograd.grad(states.float().square().sum(), trained)]


def _alike(got: list[Tensor], want: list[Tensor]) -> bool:
    assert len(got) == len(want) == 1 + 14 * LAYERS and all(tensor.abs().max() > 0 for tensor in got)
    return all(torch.equal(ours, theirs) for ours, theirs in zip(got, want, strict=True))


def _apart(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    with monkeypatch.context() as changed:
        changed.setattr(surgery.Joined, "ready", lambda self: None)
        return _computed(model)


def test_bit_equal_to_layer_by_layer(model: Any, joined: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    got = _computed(model)
    assert joined == [LAYERS - 1]
    want = _apart(model, monkeypatch)
    assert joined == [LAYERS - 1, *[1] * (LAYERS - 1)] and _alike(got, want)


@pytest.mark.parametrize("moved", ["in place", "to another place", "a frozen weight"])
def test_weights_are_those_of_the_pass(model: Any, joined: list[int], monkeypatch: pytest.MonkeyPatch, moved: str) -> None:
    before = _computed(model)
    layer = model.get_base_model().model.layers[1]
    with torch.no_grad():
        if moved == "in place":
            layer.mlp.up_proj.lora_A["default"].weight.mul_(2)
        elif moved == "to another place":
            param = layer.mlp.up_proj.lora_A["default"].weight
            param.data = 2 * param.data
        else:
            layer.self_attn.q_proj.base_layer.weight = torch.nn.Parameter(2 * layer.self_attn.q_proj.base_layer.weight, requires_grad=False)
    got = _computed(model)
    assert joined == [LAYERS - 1] * 2 and not torch.equal(got[0], before[0])
    assert _alike(got, _apart(model, monkeypatch))


def test_what_does_not_suit_goes_layer_by_layer(model: Any, joined: list[int]) -> None:
    with torch.no_grad():
        param = model.get_base_model().model.layers[1].mlp.up_proj.lora_A["default"].weight
        param.data = param.data.T.contiguous().T
    _computed(model)
    assert joined == [1, 1]  # the second in halves


def test_activations_that_are_not_kept(model: Any, joined: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    want = _computed(model)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable  # before transformers 5.23
    enable({"use_reentrant": False})
    model.enable_input_require_grads()
    joined.clear()
    got = _computed(model)
    assert set(joined) == {1} and len(joined) >= LAYERS - 1 and _alike(got, want)
