"""The adapters' own products on tiles against torch's and against the formula of `reference.lora_linear`, on sizes that fill no tile."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.fixtures.products import check, numbers
from torch import Tensor

from luthier.kernels import compiled, narrow, reference
from luthier.kernels.lora_linear import lora_linear

needs_tiles = pytest.mark.skipif(not compiled.library().tiles, reason=f"no tiles here: {compiled.library().words}")
ERROR = 0.006  # of the largest number: one rounding to bf16
PLAIN = compiled.Library({}, {}, None, {}, "plain")


@needs_tiles
@pytest.mark.parametrize("tokens", [1, 15, 16, 63, 64, 65, 131])
@pytest.mark.parametrize(("width", "rank"), [(32, 16), (576, 48), (1536, 16), (192, 80)])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_into_rank(tokens: int, width: int, rank: int, is_transposed: bool) -> None:
    x = numbers(tokens, width + 64, seed=0)[:, 32 : 32 + width]  # columns of a wider matrix
    weight = numbers(rank, width, seed=1).T if is_transposed else numbers(width, rank, seed=1)
    wide = torch.full((tokens, rank + 32), 7.0).bfloat16()
    narrow.into_rank(x, weight, scale=1.5, out_TR=wide[:, 16 : 16 + rank])
    check(wide[:, 16 : 16 + rank], 1.5 * x.float() @ weight.float(), error=ERROR)
    assert (wide[:, :16] == 7).all() and (wide[:, 16 + rank :] == 7).all()  # nothing beside it is touched


@needs_tiles
@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 130])
@pytest.mark.parametrize(("width", "rank"), [(16, 16), (33, 16), (40, 48), (576, 32), (200, 96)])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_outer(tokens: int, width: int, rank: int, is_transposed: bool) -> None:
    u, g = numbers(tokens, rank + 16, seed=0)[:, 16:], numbers(tokens, width + 7, seed=1)[:, :width]
    want = u.float().T @ g.float()
    got = narrow.outer(u, g, transposed=is_transposed)
    assert got.is_contiguous()
    check(got, want.T if is_transposed else want, error=ERROR)
    if not is_transposed:
        by_token, by_column = torch.rand(tokens, 1, generator=torch.Generator().manual_seed(2)) + 0.5, numbers(width, seed=3)
        want = (u.float() * by_token).bfloat16().float().T @ g.float() * by_column.float()
        check(narrow.outer(u, g, token_scale_T1=by_token, scale_O=by_column), want, error=ERROR)


@needs_tiles
def test_another_way_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways through a whole adapted layer: within rounding of the formula in fp32."""
    x, weight, a, b = (numbers(*shape, seed=n) for n, shape in enumerate([(77, 96), (64, 96), (16, 96), (64, 16)]))
    g = numbers(77, 64, seed=9)

    def gradients(dtype: torch.dtype, function: object) -> list[Tensor]:
        inputs = [t.detach().to(dtype).requires_grad_() for t in (x, a, b)]
        out = function(inputs[0], weight.to(dtype), None, inputs[1], inputs[2], 2.0)  # pyright: ignore[reportCallIssue]
        return [out.detach(), *torch.autograd.grad(out, inputs, g.to(dtype))]

    wanted = gradients(torch.float32, reference.lora_linear)
    found, calls = compiled.library(), list[str]()

    def counting(name: str) -> compiled.Function:
        return lambda *given: (calls.append(name), found.tiles[name](*given))[1]

    monkeypatch.setattr(narrow, "library", lambda: replace(found, tiles={name: counting(name) for name in found.tiles}))
    on_tiles = gradients(torch.bfloat16, lora_linear)
    assert sorted(calls) == ["narrow", "narrow", "outer", "outer"]  # A x, g B; dA, dB
    monkeypatch.setattr(narrow, "library", lambda: PLAIN)
    plain = gradients(torch.bfloat16, lora_linear)
    for ours, theirs, want in zip(on_tiles, plain, wanted, strict=True):
        check(ours, want, error=0.02)
        check(theirs, want, error=0.02)
    assert len(calls) == 4


@needs_tiles
def test_threads_and_other_products_do_not_disturb() -> None:
    """torch's own products use the same tiles: what they compute before, between and after is what they compute alone."""
    x, weight = numbers(200, 576, seed=0), numbers(48, 576, seed=1)
    large = numbers(576, 576, seed=2)
    alone = x @ large
    results: list[Tensor] = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = torch.empty(200, 48, dtype=torch.bfloat16)
        narrow.into_rank(x, weight.T, scale=1.0, out_TR=out)
        assert torch.equal(x @ large, alone)
        results.append(torch.cat([out.flatten(), narrow.outer(out, x).flatten()]))
    torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@needs_tiles
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    x, weight = numbers(40, 64, seed=0), numbers(64, 16, seed=1)
    x[33, 5] = bad
    out = torch.empty(40, 16, dtype=torch.bfloat16)
    narrow.into_rank(x, weight, scale=1.0, out_TR=out)
    assert not torch.isfinite(out[33]).any() and torch.isfinite(out[:33]).all()
    assert not torch.isfinite(narrow.outer(numbers(40, 16, seed=2), x)[:, 5]).any()


@pytest.mark.parametrize(("width", "rank", "dtype"), [(40, 16, torch.bfloat16), (64, 8, torch.bfloat16), (64, 16, torch.float32)])
def test_other_sizes_and_formats_take_torchs_products(width: int, rank: int, dtype: torch.dtype) -> None:
    x, weight, out = numbers(9, width, seed=0).to(dtype), numbers(width, rank, seed=1).to(dtype), torch.empty(9, rank, dtype=dtype)
    narrow.into_rank(x, weight, scale=2.0, out_TR=out)
    assert torch.equal(out, (x @ weight) * 2.0)
    if rank % 16 or dtype == torch.float32:
        assert torch.equal(narrow.outer(out, x), out.T @ x)
