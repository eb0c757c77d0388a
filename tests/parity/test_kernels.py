"""Every fast path against its slow twin, on odd shapes, with a tolerance that is shown to be able to fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures.tiny_model import make_tiny_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from luthier.core.types import TokenRow
from luthier.kernels import chunked_ce, reference, tree_attention
from luthier.kernels.decoder_layer import attention_input, attention_output
from luthier.kernels.layer_parts import Adapted, Norm, Turn
from luthier.kernels.lora_linear import lora_linear
from luthier.kernels.rms_norm import rms_norm
from luthier.kernels.swiglu import swiglu
from luthier.kernels.tree_layout import layout_tree
from luthier.models.backbone import TreeLayout, body_and_head, use_layout_attention, wanted_states
from luthier.models.load import open_model
from luthier.models.lora import LoraSettings, add_lora
from luthier.models.surgery import use_fast_kernels
from luthier.tokens.tree import tree_batch


def _qkv(tokens: int, heads: int, kv_heads: int, size: int) -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(7)
    return [torch.randn(n, tokens, size, generator=gen, requires_grad=True) for n in (heads, kv_heads, kv_heads)]


@pytest.mark.parametrize("num_prefix", [0, 1, 13, tree_attention.MATMUL_MAX_LEAF + 7])
@pytest.mark.parametrize("leaves", [[3], [1, 5, 2], [7, 7, 7, 1], [200, 3]])  # 200: above the matmul limit
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (9, 3)])
@pytest.mark.parametrize("repeated_keys", [tree_attention.MAX_REPEATED_KEYS, -1])  # -1: the way of long prefixes for all
def test_tree_attention_equals_reference(
    monkeypatch: pytest.MonkeyPatch, num_prefix: int, leaves: list[int], heads: int, kv_heads: int, repeated_keys: int
) -> None:
    monkeypatch.setattr(tree_attention, "MAX_REPEATED_KEYS", repeated_keys)
    tree = layout_tree(num_prefix, leaves)
    inputs = _qkv(num_prefix + sum(leaves), heads, kv_heads, 8)
    plan = tree_attention.TreePlan()
    x_TSD = torch.cat(inputs).transpose(0, 1)
    for _ in range(2):  # the second layer takes the first one's plan
        fast_THD = tree_attention.tree_attention(x_TSD, tree, plan, num_query_heads=heads, scaling=0.3)
    fast = fast_THD.transpose(0, 1)
    slow = reference.tree_attention(*inputs, num_prefix=num_prefix, leaf_grid_RL=tree.leaf_grid_RL, scaling=0.3)
    torch.testing.assert_close(fast, slow, atol=2e-6, rtol=2e-5)
    weight = torch.randn(fast.shape, generator=torch.Generator().manual_seed(1))
    for got, want in zip(
        torch.autograd.grad((fast * weight).sum(), inputs), torch.autograd.grad((slow * weight).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-4)


def test_tolerance_can_fail() -> None:
    tree = layout_tree(5, [4, 6])
    inputs = _qkv(15, 4, 2, 8)
    slow = reference.tree_attention(*inputs, num_prefix=5, leaf_grid_RL=tree.leaf_grid_RL, scaling=0.3)
    leaky = reference.tree_attention(*inputs, num_prefix=9, leaf_grid_RL=tree.leaf_grid_RL, scaling=0.3)  # the first leaf leaks
    with pytest.raises(AssertionError):
        torch.testing.assert_close(leaky, slow, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("tokens", [1, 255, 256, 600])
@pytest.mark.parametrize("train_head", [False, True])
def test_chunked_cross_entropy_equals_full_logits(tokens: int, train_head: bool) -> None:
    gen = torch.Generator().manual_seed(3)
    h = torch.randn(tokens, 19, generator=gen, requires_grad=True)
    weight = torch.randn(131, 19, generator=gen, requires_grad=train_head)
    target = torch.randint(0, 131, (tokens,), generator=gen)
    inputs = [h, weight] if train_head else [h]
    fast, slow = chunked_ce.chunked_cross_entropy(h, weight, target), reference.cross_entropy(h, weight, target)
    torch.testing.assert_close(fast, slow, atol=1e-3, rtol=1e-6)
    for got, want in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_one_chunk_holds_no_fp32_gradient_of_the_head() -> None:
    """[vocab, hidden] in fp32 would be the largest tensor of a training of all weights; several chunks do add up in it."""
    weight = torch.randn(131, 19, generator=torch.Generator().manual_seed(3)).bfloat16().requires_grad_()
    for tokens, dtype in ((256, torch.bfloat16), (257, torch.float32)):
        loss = chunked_ce.chunked_cross_entropy(torch.ones(tokens, 19, dtype=torch.bfloat16), weight, torch.zeros(tokens, dtype=torch.long))
        assert loss.grad_fn is not None and loss.grad_fn.saved_tensors[1].dtype == dtype  # type: ignore[attr-defined]
        loss.backward()
        assert weight.grad is not None and weight.grad.dtype == torch.bfloat16


def test_a_large_vocabulary_is_computed_in_smaller_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many logits at once, whatever the vocabulary; and in chunks of 7 the loss and its gradients are the same."""
    sizes = {vocab: chunked_ce.chunk_tokens(vocab) for vocab in (512, 49_152, 128_256, 151_936, 262_144, 2**26)}
    assert sizes == {512: 256, 49_152: 256, 128_256: 256, 151_936: 220, 262_144: 128, 2**26: 1}
    monkeypatch.setattr(chunked_ce, "CHUNK_LOGITS", 7 * 131)
    assert chunked_ce.chunk_tokens(131) == 7
    test_chunked_cross_entropy_equals_full_logits(600, train_head=True)


def test_tree_batch_labels_and_positions() -> None:
    rows = [
        TokenRow(example_id="a", input_ids=(1, 2, 3, 4, 9), is_label=(False, False, False, True, True)),
        TokenRow(example_id="b", input_ids=(1, 2, 3, 4, 8, 9), is_label=(False, False, False, True, True, True)),
    ]
    batch = tree_batch(rows)
    assert batch.tree.num_prefix == 3  # ends before the first label, though token 4 is shared too
    assert batch.input_ids_T.tolist() == [1, 2, 3, 4, 9, 4, 8, 9]
    assert batch.position_ids_T.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert batch.source_N.tolist() == [2, 3, 2, 5, 6]  # both rows' first label is read off the last prefix token
    assert batch.target_N.tolist() == [4, 9, 4, 8, 9]
    assert batch.num_row_tokens == 11


@pytest.mark.parametrize("has_bias", [False, True])
def test_lora_linear_equals_its_plain_twin(has_bias: bool) -> None:
    gen = torch.Generator().manual_seed(3)
    x = torch.randn(2, 7, 12, generator=gen)
    weight, a, b = (torch.randn(*shape, generator=gen) for shape in ((9, 12), (4, 12), (9, 4)))
    bias = torch.randn(9, generator=gen) if has_bias else None
    fast, plain = (lambda x, a, b, f=f: f(x, weight, bias, a, b, 1.7) for f in (lora_linear, reference.lora_linear))
    _same(fast, plain, x, a, b)


def test_a_small_adapter_does_not_round_away_in_bf16() -> None:
    """What the adapter changes, along what it should change: 1 if nothing is lost, near 0 if it is added to what was rounded before."""
    gen = torch.Generator().manual_seed(9)
    x, weight, a, b = (torch.randn(*shape, generator=gen).bfloat16() for shape in ((64, 96), (80, 96), (4, 96), (80, 4)))
    b *= 2e-4
    wanted = ((x.float() @ a.float().T) @ b.float().T).flatten()

    def kept(with_adapter: torch.Tensor, without: torch.Tensor) -> float:
        return float((with_adapter.float() - without.float()).flatten() @ wanted / (wanted @ wanted))

    base = x @ weight.T
    assert kept(base + (x @ a.T) @ b.T, base) < 0.3  # the order that loses
    assert kept(lora_linear(x, weight, None, a, b, 1.0), base) == pytest.approx(1.0, abs=0.25)
    x32, norm = torch.randn(64, 96, generator=gen).bfloat16(), Norm(torch.ones(96, dtype=torch.bfloat16), 1e-6)
    layers = [Adapted(weight, None, a, b * factor, 1.0) for factor in (1, 0)]
    still = Turn(torch.ones(64, 1, 8, dtype=torch.bfloat16), torch.zeros(64, 1, 8, dtype=torch.bfloat16))
    changed, unchanged = (attention_input(x32, norm, layer, layer, layer, still)[:, :10].flatten(1) for layer in layers)
    h_TE = rms_norm(x32, norm.weight_E, norm.eps)
    wanted = ((h_TE.float() @ a.float().T) @ b.float().T).flatten()
    assert kept(changed, unchanged) == pytest.approx(1.0, abs=0.25)


def test_rms_norm_equals_its_plain_twin() -> None:
    gen = torch.Generator().manual_seed(4)
    x, weight = 3 * torch.randn(2, 7, 12, generator=gen), torch.randn(12, generator=gen)
    _same(lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: reference.rms_norm(x, w, 1e-5), x, weight)


def test_swiglu_equals_its_plain_twin() -> None:
    gen = torch.Generator().manual_seed(5)
    _same(swiglu, reference.swiglu, torch.randn(3, 5, 8, generator=gen), torch.randn(3, 5, 8, generator=gen))


@pytest.mark.parametrize(("num_prefix", "leaves"), [(0, [5, 1, 3]), (2, [4, 4]), (11, [1, 2])])
@pytest.mark.parametrize("has_bias", [False, True])
def test_decoder_layer_equals_its_plain_twin(num_prefix: int, leaves: list[int], has_bias: bool) -> None:
    gen = torch.Generator().manual_seed(6)
    E, D, width, r = 12, 4, 10, 3
    H, K, T = 4, 2, num_prefix + sum(leaves)
    tree = layout_tree(num_prefix, leaves)
    sizes = {"q": (H * D, E), "k": (K * D, E), "v": (K * D, E), "o": (E, H * D), "gate": (width, E), "up": (width, E), "down": (E, width)}
    weights = {name: 0.2 * torch.randn(*shape, generator=gen) for name, shape in sizes.items()}
    biases = {name: torch.randn(shape[0], generator=gen) if has_bias else None for name, shape in sizes.items()}
    norms = ((torch.randn(E, generator=gen), 1e-5), (torch.randn(E, generator=gen), 1e-5))
    angle_TX = torch.arange(T)[:, None] * torch.tensor([1.0, 0.3])
    cos_TD, sin_TD = (torch.cat([f(angle_TX)] * 2, dim=1) for f in (torch.cos, torch.sin))
    adapters = [0.2 * torch.randn(*shape, generator=gen) for out, size in sizes.values() for shape in ((r, size), (out, r))]

    def linears(trained: tuple[torch.Tensor, ...]) -> dict[str, Any]:
        return {name: (weights[name], biases[name], trained[2 * i], trained[2 * i + 1], 1.7) for i, name in enumerate(sizes)}

    def fast(x: torch.Tensor, *trained: torch.Tensor) -> torch.Tensor:
        layers = {name: Adapted(*parts) for name, parts in linears(trained).items()}
        first, second = (Norm(*norm) for norm in norms)
        q, k, v, *others = layers.values()
        heads = attention_input(x, first, q, k, v, Turn(cos_TD[:, None], sin_TD[:, None]))
        out = tree_attention.tree_attention(heads, tree, tree_attention.TreePlan(), num_query_heads=H, scaling=D**-0.5)
        return attention_output(x, out.flatten(1), second, *others)

    def plain(x: torch.Tensor, *trained: torch.Tensor) -> torch.Tensor:
        places = {"num_prefix": num_prefix, "leaf_grid_RL": tree.leaf_grid_RL}
        return reference.decoder_layer(x, norms, linears(trained), cos_TD, sin_TD, **places)

    _same(fast, plain, torch.randn(T, E, generator=gen), *adapters)


def test_the_last_layer_makes_only_what_is_read(tmp_path: Path) -> None:
    rows = [TokenRow(example_id=str(n), input_ids=(1, 2, 3, 4, 5 + n), is_label=(False, False, False, True, True)) for n in range(3)]
    path = make_tiny_model(tmp_path / "m")
    losses: list[torch.Tensor] = []
    for is_fast in (False, True):
        model = add_lora(open_model(path, dtype=torch.float32), LoraSettings(r=4, alpha=8, dropout=0.0), seed=0)
        use_layout_attention(model.get_base_model())
        if is_fast:
            assert use_fast_kernels(model)["decoder_layer"] == 2
        batch = tree_batch(rows)
        layout = TreeLayout(batch.tree, wanted_N=batch.source_N)
        states_NE = wanted_states(body_and_head(model)[0], batch.input_ids_T, batch.position_ids_T, layout)
        assert states_NE.shape[0] == batch.source_N.numel() and layout.plan.narrowed == is_fast
        losses.append(states_NE)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changed", [{"dropout": 0.1}, {"use_dora": True}])
def test_layers_of_other_adapters_keep_their_own_way(tmp_path: Path, changed: dict[str, Any]) -> None:
    settings = LoraSettings(**{"r": 4, "alpha": 8, "dropout": 0.0, **changed})
    model = add_lora(open_model(make_tiny_model(tmp_path / "m"), dtype=torch.float32), settings, seed=0)
    use_layout_attention(model.get_base_model())
    assert use_fast_kernels(model)["decoder_layer"] == 0


def _same(fast: Any, plain: Any, *tensors: torch.Tensor) -> None:
    """Values and every gradient, in fp32; and the check itself sees an error of one part in a thousand."""
    results: list[list[torch.Tensor]] = []
    for function in (fast, plain):
        inputs = [tensor.clone().requires_grad_() for tensor in tensors]
        out = function(*inputs)
        out.square().sum().backward()
        results.append([out.detach(), *(i.grad for i in inputs if i.grad is not None)])
    assert len(results[0]) == len(results[1]) == 1 + len(tensors)
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(got * 1.001, want, atol=1e-4, rtol=1e-4)


def test_fast_kernels_are_used_where_they_answer_alike_and_nowhere_else(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path / "m")
    for options, want in (
        (LoraSettings(r=4, alpha=8, dropout=0.0), {"lora_linear": 14, "rms_norm": 5, "swiglu": 2, "decoder_layer": 0}),
        (LoraSettings(r=4, alpha=8, dropout=0.1), {"lora_linear": 0, "rms_norm": 5, "swiglu": 2, "decoder_layer": 0}),
        (LoraSettings(r=4, alpha=8, dropout=0.0, use_dora=True), {"lora_linear": 0, "rms_norm": 5, "swiglu": 2, "decoder_layer": 0}),
    ):
        model = add_lora(open_model(path, dtype=torch.float32), options, seed=0).eval()
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data = 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        ids = torch.tensor([[1, 40, 41, 42]])
        before = model(ids).logits
        assert use_fast_kernels(model) == want
        torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=1e-4)
    model = open_model(path, dtype=torch.float32)
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.GELU()
        layer.input_layernorm.forward = lambda x: x * 2
    assert use_fast_kernels(model) == {"lora_linear": 0, "rms_norm": 3, "swiglu": 0, "decoder_layer": 0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_that_add_one_to_their_weights_are_told_apart_beside_a_large_weight(dtype: torch.dtype) -> None:
    """Gemma's norms scale by 1 + w. Held to the largest number alone, w passed for 1 + w where one weight is large."""
    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        sliding_window=16,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).to(dtype).eval()
    gen = torch.Generator().manual_seed(0)
    norms = [module for module in model.modules() if type(module).__name__ == "Gemma3RMSNorm"]
    for norm in norms:
        norm.weight.data = (2 * torch.rand(norm.weight.shape, generator=gen)).to(dtype)  # pyright: ignore[reportArgumentType]
        norm.weight.data[0] = 400.0  # pyright: ignore[reportIndexIssue]
    xs = [torch.randn(5, norm.weight.shape[0], generator=gen).to(dtype) for norm in norms]  # pyright: ignore[reportIndexIssue]
    with torch.no_grad():
        before = [norm(x) for norm, x in zip(norms, xs, strict=True)]
        assert use_fast_kernels(model)["rms_norm"] == len(norms) == 13
        after = [norm(x) for norm, x in zip(norms, xs, strict=True)]
    for ours, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4 if dtype == torch.float32 else 0.02)
