"""Linear layers whose numbers torch cannot multiply on this processor: the same answers and gradients as in fp32, and never torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from luthier.kernels import narrow, reference, wide
from luthier.kernels.own_linear import linear, use_own_linears
from luthier.kernels.tree_attention import TreePlan, tree_attention
from luthier.kernels.tree_layout import layout_tree

BF16_NOISE = 2**-7


@pytest.fixture
def without_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor without AVX-512."""
    monkeypatch.setattr(wide, "multiplies", lambda x: x.dtype != torch.bfloat16)


def _bf16(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0])).bfloat16()


@pytest.mark.parametrize("shape", [(3, 7, 64, 96), (2, 40, 72, 50), (1, 1, 64, 96)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.usefixtures("without_products")
def test_answers_and_gradients_are_those_of_fp32(shape: tuple[int, int, int, int], has_bias: bool) -> None:
    B, T, I, O = shape  # noqa: E741 - widths
    given = [_bf16(B, T, I), _bf16(O, I), _bf16(O) if has_bias else None]
    found, want = ([None if t is None else t.clone().requires_grad_() for t in given] for _ in range(2))
    g = _bf16(B, T, O)
    y, y_want = linear(*found), reference.linear(*want)  # pyright: ignore[reportArgumentType]
    y.backward(g)
    y_want.backward(g)
    for one, other in [(y, y_want), *((a.grad, b.grad) for a, b in zip(found, want, strict=True) if a is not None and b is not None)]:
        assert one is not None and other is not None and one.dtype == torch.bfloat16
        error, scale = (one.detach().float() - other.detach().float()).abs().max(), other.detach().float().abs().max()
        assert float(error) <= BF16_NOISE * float(scale)


@pytest.mark.usefixtures("without_products")
def test_long_sums_are_rounded_once() -> None:
    """More numbers than one block of the sum holds: rounded after each block, ones would stop being added at 256."""
    K = 2 * wide.MAX_K + 100
    ones = torch.ones(1, K, dtype=torch.bfloat16)
    assert float(wide.plain([(ones, ones.T)])) == float(torch.tensor(float(K)).bfloat16())


@pytest.mark.usefixtures("without_products")
def test_a_model_gets_them_where_torch_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8, bias=False))
    assert use_own_linears(model) == 0  # fp32
    x, want = torch.randn(5, 64), None
    want = model(x)
    model = model.bfloat16()
    assert use_own_linears(model) == 2

    def forbidden(*_: object, **__: object) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(nn.functional, "linear", forbidden)
    monkeypatch.setattr(torch, "mm", forbidden)
    assert float((model(x.bfloat16()).float() - want).detach().abs().max()) < 0.05


@pytest.mark.usefixtures("without_products")
@pytest.mark.parametrize("rank", [8, 16])
def test_narrow_products_of_any_rank(rank: int) -> None:
    x, w = _bf16(20, 72), _bf16(72, rank)
    out = x.new_empty(20, rank)
    narrow.into_rank(x, w, scale=0.5, out_TR=out)
    want = 0.5 * (x.float() @ w.float())
    assert float((out.float() - want).abs().max()) <= BF16_NOISE * float(want.abs().max())
    outer, want = narrow.outer(out, x), out.float().T @ x.float()
    assert float((outer.float() - want).abs().max()) <= BF16_NOISE * float(want.abs().max())


@pytest.mark.usefixtures("without_products")
@pytest.mark.parametrize("leaf", [3, 200])
def test_attention_without_tiles_is_made_in_fp32(leaf: int) -> None:
    """Short leaves at once, and long ones one by one; heads of 16 fill no tile."""
    tree = layout_tree(2, [leaf, 1, 2])
    x_TSD = _bf16(leaf + 5, 4, 16)
    found, want = x_TSD.clone().requires_grad_(), x_TSD.float().requires_grad_()
    out, out_want = (tree_attention(x, tree, TreePlan(), num_query_heads=2, scaling=0.25) for x in (found, want))
    g = _bf16(*out.shape)
    out.backward(g)
    out_want.backward(g.float())
    assert found.grad is not None and want.grad is not None
    assert torch.equal(out, out_want.bfloat16()) and torch.equal(found.grad, want.grad.bfloat16())
