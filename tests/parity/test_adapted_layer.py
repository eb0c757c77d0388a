"""A layer, and its halves, in one call each against the same operations one by one: bit-equal, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tests.fixtures.products import numbers
from torch import Tensor

from luthier.kernels import adapted_layer, compiled, reference
from luthier.kernels.decoder_layer import attention_input, attention_output, whole_layers
from luthier.kernels.layer_parts import Adapted, Norm, Parts, Seen, Turn
from luthier.kernels.tiled_attention import tiled_attention

needs_tiles = pytest.mark.skipif(not compiled.library().tiles, reason=f"no tiles here: {compiled.library().words}")
HIDDEN, WIDE, SIZE = 96, 160, 32  # three query heads, one of keys, one of values


def _layer(out: int, width: int, *, rank: int, seed: int, with_bias: bool) -> Adapted:
    a_RI, b_OR = (numbers(*shape, seed=seed + n).mul_(0.2).requires_grad_() for n, shape in ((0, (rank, width)), (1, (out, rank))))
    return Adapted(numbers(out, width, seed=seed + 2).mul_(0.2), numbers(out, seed=seed + 3) if with_bias else None, a_RI, b_OR, 1.5)


def _layers(*, ranks: Sequence[int], with_bias: bool) -> list[Adapted]:
    """q, k, v, o, gate, up, down."""
    shapes = [(HIDDEN, HIDDEN), (SIZE, HIDDEN), (SIZE, HIDDEN), (HIDDEN, HIDDEN), (WIDE, HIDDEN), (WIDE, HIDDEN), (HIDDEN, WIDE)]
    return [
        _layer(*shape, rank=rank, seed=10 * n, with_bias=with_bias)
        for n, (shape, rank) in enumerate(zip(shapes, (*ranks, *ranks, ranks[0]), strict=True))
    ]


def _norms_and_turn(tokens: int) -> tuple[Norm, Norm, Turn]:
    angle_TD = (torch.arange(tokens)[:, None] * torch.linspace(1.0, 0.1, SIZE // 2)).repeat(1, 2)
    norms = (Norm(numbers(HIDDEN, seed=90 + n).mul_(0.1).add_(1), 1e-5) for n in range(2))
    return (*norms, Turn(angle_TD.cos().bfloat16()[:, None], angle_TD.sin().bfloat16()[:, None]))


def _both_halves(layers: list[Adapted], tokens: int, *, is_first: bool = False) -> list[Tensor]:
    """Answers, and the gradients of the inputs and of every A and B."""
    q, k, v, o, gate, up, down = layers
    norm1, norm2, turn = _norms_and_turn(tokens)
    x_TE = numbers(tokens, HIDDEN, seed=100).requires_grad_(not is_first)
    attended_TO = numbers(tokens, HIDDEN, seed=101).requires_grad_()
    heads_TSD = attention_input(x_TE, norm1, q, k, v, turn)
    out_TE = attention_output(x_TE, attended_TO, norm2, o, gate, up, down)
    inputs = [*([] if is_first else [x_TE]), attended_TO, *(t for layer in layers for t in (layer.a_RI, layer.b_OR))]
    grads = torch.autograd.grad([heads_TSD, out_TE], inputs, [numbers(tokens, 5, SIZE, seed=102), numbers(tokens, HIDDEN, seed=103)])
    return [heads_TSD.detach(), out_TE.detach(), *grads]


def _seen(tokens: int, num_prefix: int) -> Seen:
    """A prefix, if any, and two leaves."""
    ends = [0, *([num_prefix] if num_prefix else []), (num_prefix + tokens) // 2, tokens]
    return Seen(list(pairwise(ends)), num_prefix, SIZE**-0.5)


def _in_halves(x_TE: Tensor, parts: Parts, turn: Turn, seen: Seen) -> Tensor:
    """Both terms of the gradient of x are rounded, and their sum."""
    heads_TSD = attention_input(x_TE, parts.norm1, *parts.layers[:3], turn)
    attended_THD = tiled_attention(
        heads_TSD, seen.segments, num_prefix=seen.num_prefix, num_query_heads=HIDDEN // SIZE, scaling=seen.scaling
    )
    return attention_output(x_TE, attended_THD.flatten(1), parts.norm2, *parts.layers[3:])


def _in_one_call(x_TE: Tensor, parts: Parts, turn: Turn, seen: Seen) -> Tensor:
    layer = adapted_layer.ready(parts)
    assert layer is not None and adapted_layer.suits_pass(x_TE, turn)
    return whole_layers(x_TE, [layer], turn, seen)


def _whole(compute: Callable[..., Tensor], layers: list[Adapted], seen: Seen, *, is_first: bool = False) -> list[Tensor]:
    """The answer, the gradients of every A and B, and that of the input."""
    tokens = seen.segments[-1][1]
    norm1, norm2, turn = _norms_and_turn(tokens)
    x_TE = numbers(tokens, HIDDEN, seed=100).requires_grad_(not is_first)
    out_TE = compute(x_TE, Parts(norm1, norm2, tuple(layers)), turn, seen)
    inputs = [*(t for layer in layers for t in (layer.a_RI, layer.b_OR)), *([] if is_first else [x_TE])]
    return [out_TE.detach(), *torch.autograd.grad(out_TE, inputs, numbers(tokens, HIDDEN, seed=103))]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The compiled calls that were made, by name."""
    found, made = compiled.library(), list[str]()

    def counting(name: str) -> compiled.Function:
        return lambda *given: (made.append(name), found.tiles[name](*given))[1]

    monkeypatch.setattr(adapted_layer, "library", lambda: replace(found, tiles={name: counting(name) for name in found.tiles}))
    return made


@needs_tiles
@pytest.mark.parametrize("tokens", [33, 64, 131])
@pytest.mark.parametrize("ranks", [(16, 16, 16), (32, 16, 48)])
@pytest.mark.parametrize(("with_bias", "is_first"), [(False, False), (True, True)])
def test_bit_equal_to_the_operations_one_by_one(
    tokens: int, ranks: tuple[int, ...], with_bias: bool, is_first: bool, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = _layers(ranks=ranks, with_bias=with_bias)
    got = _both_halves(layers, tokens, is_first=is_first)
    assert sorted(calls) == ["adapted_in", "adapted_in_backward", "adapted_out", "adapted_out_backward"]
    monkeypatch.setattr(adapted_layer, "suits", lambda *_: False)
    want = _both_halves(layers, tokens, is_first=is_first)
    assert len(calls) == 4
    assert len(got) == len(want) == 18 - is_first
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs) and ours.abs().max() > 0


@needs_tiles
@pytest.mark.parametrize(("tokens", "num_prefix"), [(33, 0), (64, 20), (131, 70)])
@pytest.mark.parametrize("ranks", [(16, 16, 16), (32, 16, 48)])
@pytest.mark.parametrize(("with_bias", "is_first"), [(False, False), (True, True)])
def test_a_whole_layer_is_bit_equal_to_its_parts(
    tokens: int, num_prefix: int, ranks: tuple[int, ...], with_bias: bool, is_first: bool, calls: list[str]
) -> None:
    layers, seen = _layers(ranks=ranks, with_bias=with_bias), _seen(tokens, num_prefix)
    got = _whole(_in_one_call, layers, seen, is_first=is_first)
    assert calls == ["adapted_layer", "adapted_layer_backward"]
    want = _whole(_in_halves, layers, seen, is_first=is_first)
    assert len(calls) == 6 and len(got) == len(want) == 16 - is_first
    for ours, theirs in zip(got[:15], want[:15], strict=True):
        assert torch.equal(ours, theirs) and ours.abs().max() > 0
    for ours, theirs in zip(got[15:], want[15:], strict=True):  # three roundings there, one here
        assert (ours.float() - theirs.float()).abs().max() <= 2**-7 * theirs.float().abs().max()
        assert (ours.float() - theirs.float()).abs().mean() <= 2**-9 * theirs.float().abs().mean()


@needs_tiles
def test_a_whole_layer_hides_what_it_should() -> None:
    """Another division into leaves is another answer: the ranges reach the attention inside."""
    layers = _layers(ranks=(16, 16, 16), with_bias=False)
    one, other = (_whole(_in_one_call, layers, _seen(64, num_prefix))[0] for num_prefix in (20, 0))
    assert torch.equal(one[:20], other[:20]) and not torch.equal(one[42:], other[42:])


@needs_tiles
@pytest.mark.parametrize("is_first", [False, True])
def test_several_layers_in_one_function_are_bit_equal_to_one_behind_another(is_first: bool, calls: list[str]) -> None:
    seen, stack = _seen(131, 70), [_layers(ranks=ranks, with_bias=ranks[0] == 32) for ranks in ((16, 16, 16), (32, 16, 48), (16, 32, 16))]
    norm1, norm2, turn = _norms_and_turn(131)
    norms = [(norm1, norm2), (replace(norm2, eps=1e-3), norm1), (norm2, replace(norm2, eps=1e-2))]
    every = [Parts(*pair, tuple(layers)) for pair, layers in zip(norms, stack, strict=True)]
    trained = [t for layers in stack for layer in layers for t in (layer.a_RI, layer.b_OR)]

    def found(compute: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x_TE = numbers(131, HIDDEN, seed=100).requires_grad_(not is_first)
        out_TE = compute(x_TE)
        return [out_TE.detach(), *torch.autograd.grad(out_TE, [*trained, *([] if is_first else [x_TE])], numbers(131, HIDDEN, seed=103))]

    def one_by_one(x_TE: Tensor) -> Tensor:
        for parts in every:
            x_TE = _in_one_call(x_TE, parts, turn, seen)
        return x_TE

    whole = [layer for parts in every if (layer := adapted_layer.ready(parts)) is not None]
    got = found(lambda x_TE: whole_layers(x_TE, whole, turn, seen))
    assert calls == ["adapted_layer"] * 3 + ["adapted_layer_backward"] * 3
    want = found(one_by_one)
    assert len(got) == len(want) == 44 - is_first
    assert all(torch.equal(ours, theirs) and ours.abs().max() > 0 for ours, theirs in zip(got, want, strict=True))
    with torch.no_grad():
        assert torch.equal(whole_layers(numbers(131, HIDDEN, seed=100), whole, turn, seen), want[0])


@needs_tiles
def test_the_result_does_not_depend_on_threads() -> None:
    layers = _layers(ranks=(16, 32, 16), with_bias=False)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append([*_both_halves(layers, 200), *_whole(_in_one_call, layers, _seen(200, 40))])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@needs_tiles
def test_the_second_half_against_the_formula() -> None:
    layers = _layers(ranks=(16, 16, 16), with_bias=True)
    _, norm, _ = _norms_and_turn(70)
    x_TE, attended_TO = numbers(70, HIDDEN, seed=1), numbers(70, HIDDEN, seed=2)
    assert adapted_layer.suits(norm, [layers[3:4], layers[4:6], layers[6:]], x_TE, attended_TO)
    got = attention_output(x_TE, attended_TO, norm, *layers[3:]).float()
    o, gate, up, down = (
        (
            layer.weight_OI.float(),
            None if layer.bias_O is None else layer.bias_O.float(),
            layer.a_RI.float(),
            layer.b_OR.float(),
            layer.scale,
        )
        for layer in layers[3:]
    )
    x1_TE = x_TE.float() + reference.lora_linear(attended_TO.float(), *o)
    h_TE = reference.rms_norm(x1_TE, norm.weight_E.float(), norm.eps)
    s_TF = reference.swiglu(reference.lora_linear(h_TE, *gate), reference.lora_linear(h_TE, *up))
    want = x1_TE + reference.lora_linear(s_TF, *down)
    assert (got - want).abs().max() <= 0.02 * want.abs().max()
    with pytest.raises(AssertionError):  # the adapter of the last layer left out is seen
        assert (
            got - (want - reference.lora_linear(s_TF, torch.zeros_like(down[0]), None, *down[2:]))
        ).abs().max() <= 0.02 * want.abs().max()


def test_what_does_not_suit_is_left_to_others() -> None:
    layers = _layers(ranks=(16, 16, 16), with_bias=False)
    norm, _, _ = _norms_and_turn(40)
    x_TE = numbers(40, HIDDEN, seed=1)
    groups = [layers[:3]]
    assert adapted_layer.suits(norm, groups, x_TE) == bool(compiled.library().tiles)
    odd = _layers(ranks=(8, 16, 16), with_bias=False)[:3]
    long = replace(layers[0], weight_OI=torch.zeros(4608, HIDDEN, dtype=torch.bfloat16))
    assert not adapted_layer.suits(norm, groups, x_TE[:32])
    assert not adapted_layer.suits(norm, groups, x_TE.float())
    assert not adapted_layer.suits(norm, groups, x_TE.T)
    assert not adapted_layer.suits(norm, [odd], x_TE)
    assert not adapted_layer.suits(norm, [[long]], x_TE)
