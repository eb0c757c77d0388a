"""Products with a layer's large matrices on tiles against torch's and against the formula in fp32, on sizes that fill no tile."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.fixtures.products import check, numbers
from torch import Tensor

from luthier.kernels import compiled, wide

needs_tiles = pytest.mark.skipif(not compiled.library().tiles, reason=f"no tiles here: {compiled.library().words}")
ERROR = 0.004  # of the largest number: one rounding to bf16
PLAIN = replace(compiled.library(), tiles={})


def _sum(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([x.float() @ w.float() for x, w in parts]).sum(0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of the compiled function for each product that one made."""
    found, made = compiled.library(), list[str]()

    def counting(name: str) -> compiled.Function:
        return lambda *given: (made.append(name), found.tiles[name](*given))[1]

    monkeypatch.setattr(wide, "library", lambda: replace(found, tiles={name: counting(name) for name in found.tiles}))
    return made


@needs_tiles
@pytest.mark.parametrize("tokens", [16, 31, 32, 33, 131])
@pytest.mark.parametrize(("width", "out"), [(32, 32), (48, 50), (33, 7), (576, 192), (1000, 65), (2048, 40)])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_one_part(tokens: int, width: int, out: int, is_transposed: bool, calls: list[str]) -> None:
    x = numbers(tokens, width + 64, seed=0)[:, 32 : 32 + width]  # columns of a wider matrix
    weight = numbers(out, width, seed=1).T if is_transposed else numbers(width, out, seed=1)
    whole = torch.full((tokens, out + 20), 7.0).bfloat16()
    got = wide.product([(x, weight)], out_TO=whole[:, 10 : 10 + out])
    assert calls and got.data_ptr() == whole[:, 10:].data_ptr()
    check(got, x.float() @ weight.float(), error=ERROR)
    assert (whole[:, :10] == 7).all() and (whole[:, 10 + out :] == 7).all()  # nothing beside it is touched


@needs_tiles
@pytest.mark.parametrize("tokens", [16, 70])
@pytest.mark.parametrize("rank", [4, 16, 48])
@pytest.mark.parametrize(("width", "out"), [(576, 96), (1024, 33)])  # rows a multiple of 2 KiB apart are laid out anew
@pytest.mark.parametrize("with_all", [False, True])
def test_a_layer_and_its_adapter(tokens: int, rank: int, width: int, out: int, with_all: bool, calls: list[str]) -> None:
    u = numbers(tokens, rank + 7, seed=0)[:, 7:]
    parts = [(u, numbers(out, rank, seed=1).T), (numbers(tokens, width, seed=2), numbers(out, width, seed=3).T)]
    parts += [(numbers(tokens, width, seed=4), numbers(width, out, seed=5))] if with_all else []
    bias, residual = (numbers(out, seed=6), numbers(tokens, out + 3, seed=7)[:, :out]) if with_all else (None, None)
    want = _sum(parts)
    if bias is not None and residual is not None:
        want = want + bias.float() + residual.float()
    check(wide.product(parts, bias_O=bias, residual_TO=residual), want, error=ERROR)
    assert calls


@needs_tiles
@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 32])
@pytest.mark.parametrize(("width", "out"), [(32, 16), (64, 32), (96, 50), (576, 7), (8192, 33)])
@pytest.mark.parametrize("with_all", [False, True])
def test_a_few_tokens(tokens: int, width: int, out: int, with_all: bool, calls: list[str]) -> None:
    """An answer does not depend on how many are computed at once: bit-equal alone, among others, and among so many that `wide` is used."""
    x, weight = numbers(tokens, width + 5, seed=0)[:, 5:], numbers(out, width, seed=1)
    parts = [(numbers(tokens, 32, seed=2), numbers(out, 32, seed=3).T)] if with_all else []
    parts.append((x, weight.T))
    bias, residual = (numbers(out, seed=6), numbers(tokens, out + 3, seed=7)[:, :out]) if with_all else (None, None)
    want = _sum(parts)
    if bias is not None and residual is not None:
        want = want + bias.float() + residual.float()
    whole = torch.full((tokens, out + 20), 7.0).bfloat16()
    got = wide.product(parts, bias_O=bias, residual_TO=residual, out_TO=whole[:, 10 : 10 + out])
    check(got, want, error=ERROR)
    assert (whole[:, :10] == 7).all() and (whole[:, 10 + out :] == 7).all()
    alone = [(part[-1:], w) for part, w in parts]
    assert torch.equal(wide.product(alone, bias_O=bias, residual_TO=None if residual is None else residual[-1:]), got[-1:])
    assert set(calls) == {"few"}
    if not with_all:
        many = torch.cat([x, numbers(40, width, seed=8)])
        assert torch.equal(wide.product([(many, weight.T)])[:tokens], got) and calls[-1] == "wide"


@needs_tiles
def test_a_small_part_is_not_rounded_away(calls: list[str]) -> None:
    """A hundred equal small additions to a sum of 256: in bf16 each of them is less than half a step, together they are 50."""
    x, weight = torch.full((32, 128), 2.0).bfloat16(), torch.ones(128, 32).bfloat16()
    small = (torch.full((32, 100), 0.5).bfloat16(), torch.ones(100, 32).bfloat16())
    assert (wide.product([small, (x, weight)]) == 306).all()
    assert calls


@needs_tiles
@pytest.mark.parametrize("tokens", [17, 64, 128])
@pytest.mark.parametrize(("width", "out"), [(4700, 70), (9001, 33), (20000, 576)])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_sums_longer_than_a_panel(tokens: int, width: int, out: int, is_transposed: bool, calls: list[str]) -> None:
    """Some of k at a time: every place of it counts once, and no sum is rounded on the way."""
    x, u = numbers(tokens, width, seed=0), numbers(tokens, 48, seed=1)
    weight = numbers(out, width, seed=2).T if is_transposed else numbers(width, out, seed=2)
    parts = [(u, numbers(48, out, seed=3)), (x, weight)]
    bias, residual = numbers(out, seed=4), numbers(tokens, out, seed=5)
    whole = torch.full((tokens, out + 20), 7.0).bfloat16()
    got = wide.product(parts, bias_O=bias, residual_TO=residual, out_TO=whole[:, 10 : 10 + out])
    assert calls == ["wide"]
    check(got, _sum(parts) + bias.float() + residual.float(), error=ERROR)
    assert (whole[:, :10] == 7).all() and (whole[:, 10 + out :] == 7).all()


@needs_tiles
@pytest.mark.parametrize("width", [1536, 9000])
def test_the_result_does_not_depend_on_the_number_of_threads(width: int, calls: list[str]) -> None:
    x, weight, residual = numbers(128, width, seed=0), numbers(200, width, seed=1).T, numbers(128, 200, seed=2)
    before, results = torch.get_num_threads(), list[Tensor]()
    try:
        for threads in (1, 2, 3, 8, 64):
            torch.set_num_threads(threads)
            results.append(wide.product([(x, weight)], residual_TO=residual))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results) and len(calls) == 5


@needs_tiles
def test_not_a_number_stays_one(calls: list[str]) -> None:
    x, weight = numbers(40, 64, seed=0), numbers(64, 64, seed=1)
    x[3, 5], x[7, 0] = float("nan"), float("inf")
    got = wide.product([(x, weight)])
    assert got[3].isnan().all() and not got[7].isfinite().any() and got[[0, 1, 2, 4, 5, 6]].isfinite().all()
    assert calls


@needs_tiles
@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (numbers(15, 64, seed=0), numbers(64, 64, seed=1)),  # few tokens, and not the transpose of rows
        (numbers(15, 40, seed=0), numbers(64, 40, seed=1).T),
        (numbers(32, 64, seed=0).float(), numbers(64, 64, seed=1).float()),
        (numbers(64, 32, seed=0).T, numbers(64, 64, seed=1)),  # rows not in one piece
        (numbers(32, 64, seed=0), numbers(64, 128, seed=1)[:, ::2]),
        (numbers(wide.LONG_TOKENS + 1, wide.MAX_K + 1, seed=0), numbers(wide.MAX_K + 1, 64, seed=1)),
    ],
)  # fmt: skip
def test_what_does_not_suit_goes_the_plain_way(x: Tensor, weight: Tensor, calls: list[str]) -> None:
    assert torch.equal(wide.product([(x, weight)]), x @ weight)
    assert not calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_plain(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "library", lambda: PLAIN)
    u, b, x, weight = (numbers(*shape, seed=n).to(dtype) for n, shape in enumerate([(40, 16), (16, 30), (40, 64), (64, 30)]))
    bias, residual, whole = numbers(30, seed=8).to(dtype), numbers(40, 30, seed=9).to(dtype), torch.zeros(40, 35, dtype=dtype)
    got = wide.product([(u, b), (x, weight)], bias_O=bias, residual_TO=residual, out_TO=whole[:, :30])
    want = _sum([(u, b), (x, weight)]) + bias.float() + residual.float()
    assert (got.float() - want).abs().max() <= (0.012 if dtype == torch.bfloat16 else 1e-5) * want.abs().max()  # it rounds four times
