"""A layer in two calls against the same operations one by one: bit-equal, and within rounding of the model's own states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.kernels import compiled, few_layer, reference, wide
from luthier.models.backbone import use_layout_attention
from luthier.models.decode_layout import EnterLayout, Shared, StepLayout
from luthier.models.fast_body import FastBody, open_fast_body

needs_tiles = pytest.mark.skipif(not compiled.library().tiles, reason=f"no tiles here: {compiled.library().words}")


def _body(*, with_bias: bool = False, hidden: int = 64, spread: float = 0.3) -> tuple[Any, tuple[str, ...]]:
    """A small model of random weights with two adapters whose B are not zero."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=50,
        attention_bias=with_bias, mlp_bias=with_bias, initializer_range=spread,
    )  # fmt: skip
    base = LlamaForCausalLM(config).bfloat16()
    use_layout_attention(base)
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=24, target_modules="all-linear"), "one")
    model.add_adapter("two", LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().sum() == 0:
                parameter.normal_(0, spread / 2)
    model = model.bfloat16().eval()
    model.disable_adapter_layers()  # `open_fast_body` compares with the base
    return model.get_base_model().model, ("one", "two")


def _states(fast: FastBody, tokens: int, voice: int) -> torch.Tensor:
    ids_BT = torch.randint(50, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    return fast.states(ids_BT, torch.arange(tokens)[None], EnterLayout(), [voice])


@needs_tiles
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 16, 17, 32])
@pytest.mark.parametrize("voice", [0, 1, 2])
@torch.no_grad()
def test_bit_equal_to_the_operations_one_by_one(with_bias: bool, tokens: int, voice: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = open_fast_body(*_body(with_bias=with_bias))
    assert fast is not None and all(set(layer.few) == {0, 1, 2} for layer in fast._layers)
    calls: list[int] = []
    whole = few_layer.layer_out
    monkeypatch.setattr(few_layer, "layer_out", lambda *given: (calls.append(1), whole(*given))[1])
    got = _states(fast, tokens, voice)
    assert len(calls) == 2
    fast._layers = [replace(layer, few={}) for layer in fast._layers]
    assert torch.equal(_states(fast, tokens, voice), got) and len(calls) == 2
    assert torch.isfinite(got).all() and (voice == 0 or not torch.equal(_states(fast, tokens, 0), got))


@needs_tiles
@torch.no_grad()
def test_more_tokens_and_several_voices_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = open_fast_body(*_body())
    assert fast is not None
    monkeypatch.setattr(few_layer, "layer_out", None)
    assert _states(fast, wide.FEW_TOKENS + 1, 1).shape == (1, wide.FEW_TOKENS + 1, 64)
    ids_BT = torch.ones(2, 3, dtype=torch.long)
    assert fast.states(ids_BT, torch.arange(3)[None], EnterLayout(), [0, 1]).shape == (2, 3, 64)


@needs_tiles
@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("voice", [0, 1])
@torch.no_grad()
def test_all_layers_in_one_call_are_bit_equal_to_one_by_one(rows: int, voice: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = open_fast_body(*_body(hidden=128))
    assert fast is not None and set(fast._at_once) == {0, 1, 2}
    stream = torch.Generator().manual_seed(rows)
    store = torch.randn(2, 2, rows + 1, 9, 2, 32, generator=stream).bfloat16()
    length_R = torch.randint(0, 9, (rows,), generator=stream)
    filled_to = int(length_R.max()) + 1
    ids_R1 = torch.randint(50, (rows, 1), generator=stream)
    calls: list[int] = []
    whole = few_layer.next_states
    monkeypatch.setattr(few_layer, "next_states", lambda *given: (calls.append(1), whole(*given))[1])

    def made(*, shared: tuple[Shared, ...] = ()) -> tuple[torch.Tensor, torch.Tensor]:
        layout = StepLayout(store.clone(), rows, filled_to, torch.arange(rows) * 9 + length_R, None, shared)
        return fast.states(ids_R1, length_R[:, None], layout, [voice] * rows), layout.store

    states, filled = made()
    assert len(calls) == 1 and not torch.equal(filled, store)
    made(shared=(Shared(torch.zeros(2, 2, 3, 2, 32, dtype=torch.bfloat16), None),))  # a prefix is joined layer by layer
    fast._at_once = {}
    want, want_filled = made()
    assert len(calls) == 1 and torch.equal(states, want) and torch.equal(filled, want_filled)


@needs_tiles
def test_widths_that_fill_no_tile_are_left_to_others() -> None:
    fast = open_fast_body(*_body(hidden=80))
    assert fast is not None and not any(layer.few for layer in fast._layers)


@needs_tiles
@torch.no_grad()
def test_one_layer_is_the_reference() -> None:
    """In fp32, from the formula, with the adapter in; the error is that of rounding to bf16 some ten times."""
    body, adapters = _body(spread=0.1)  # more would make attention choose one token, by rounding
    layer, attention = body.layers[0], body.layers[0].self_attn
    linears = {
        name[0]: getattr(attention if name[0] in "qkvo" else layer.mlp, name)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    names = {"q": "q", "k": "k", "v": "v", "o": "o", "g": "gate", "u": "up", "d": "down"}
    adapted = {
        names[key]: (m.base_layer.weight.float(), None, m.lora_A["one"].weight.float(), m.lora_B["one"].weight.float(), m.scaling["one"])
        for key, m in linears.items()
    }
    tokens = 7
    x_TE = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    eps = float(layer.input_layernorm.variance_epsilon)
    cos, sin = (table[0] for table in body.rotary_emb(x_TE.float(), torch.arange(tokens)[None]))
    norms = tuple((n.weight.float(), eps) for n in (layer.input_layernorm, layer.post_attention_layernorm))
    causal_RL = torch.arange(tokens)[None]  # one row of all tokens behind no prefix
    want = reference.decoder_layer(x_TE.float(), norms, adapted, cos, sin, num_prefix=0, leaf_grid_RL=causal_RL)
    fast = FastBody(body, adapters)
    few, layout = fast._layers[0].few[1], EnterLayout()
    heads_XSD = few_layer.layer_in(few, x_TE, cos.bfloat16()[:, None].contiguous(), sin.bfloat16()[:, None].contiguous(), values=2)
    q, k, v = (part.view(1, tokens, -1, 16).transpose(1, 2) for part in heads_XSD.split([4, 2, 2], dim=1))
    out = layout.attend(0, q, k, v, float(attention.scaling)).transpose(1, 2).reshape(tokens, -1)
    got = few_layer.layer_out(few, out, x_TE)
    assert (got.float() - want).abs().max() <= 0.02 * want.abs().max()
