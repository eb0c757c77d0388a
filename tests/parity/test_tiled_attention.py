"""Attention of a tree on tiles: against the formula in fp32, every gradient, trees of many shapes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from tests.fixtures.products import check, numbers
from torch import Tensor

from luthier.kernels import compiled, reference, tree_attention
from luthier.kernels.tiled_attention import leaf_attention, suits, tiled_attention
from luthier.kernels.tree_layout import layout_tree

needs_tiles = pytest.mark.skipif(not compiled.library().tiles, reason=f"no tiles here: {compiled.library().words}")
ERROR = 0.008  # of the largest number: weights and answers are rounded to bf16, one after the other
SCALING = 0.2


@dataclass(frozen=True)
class Heads:
    queries: int
    keys: int
    size: int


def _tiled(x_TSD: Tensor, g_THD: Tensor, num_prefix: int, leaves: list[int]) -> tuple[Tensor, Tensor]:
    """Answers, and gradients of queries, keys and values."""
    x_TSD = x_TSD.clone().requires_grad_()
    segments = tree_attention.segments_of(num_prefix, layout_tree(num_prefix, leaves).leaf_grid_RL)
    out_THD = tiled_attention(x_TSD, segments, num_prefix=num_prefix, num_query_heads=g_THD.shape[1], scaling=SCALING)
    return out_THD.detach(), torch.autograd.grad(out_THD, x_TSD, g_THD)[0]


def _formula(x_TSD: Tensor, g_THD: Tensor, num_prefix: int, leaves: list[int]) -> tuple[Tensor, Tensor]:
    x_TSD = x_TSD.float().requires_grad_()
    H, K = g_THD.shape[1], (x_TSD.shape[1] - g_THD.shape[1]) // 2
    grid = layout_tree(num_prefix, leaves).leaf_grid_RL
    parts = (part.transpose(0, 1) for part in x_TSD.split([H, K, K], dim=1))
    out_THD = reference.tree_attention(*parts, num_prefix=num_prefix, leaf_grid_RL=grid, scaling=SCALING).transpose(0, 1)
    return out_THD.detach(), torch.autograd.grad(out_THD, x_TSD, g_THD.float())[0]


def _made(tokens: int, heads: Heads) -> tuple[Tensor, Tensor]:
    return numbers(tokens, heads.queries + 2 * heads.keys, heads.size, seed=0), numbers(tokens, heads.queries, heads.size, seed=1)


@needs_tiles
@pytest.mark.parametrize("num_prefix", [0, 1, 33, 300])  # one that fills no block, one of two tasks
@pytest.mark.parametrize("leaves", [[1], [31, 33, 1, 16], [256, 290]])
@pytest.mark.parametrize("heads", [Heads(9, 3, 64), Heads(4, 4, 32), Heads(4, 1, 96)])
def test_against_the_formula(num_prefix: int, leaves: list[int], heads: Heads) -> None:
    x_TSD, g_THD = _made(num_prefix + sum(leaves), heads)
    (got, got_dx), (want, want_dx) = (way(x_TSD, g_THD, num_prefix, leaves) for way in (_tiled, _formula))
    check(got, want, error=ERROR)
    H, K = heads.queries, heads.keys
    for of, wanted in zip(got_dx.split([H, K, K], dim=1), want_dx.split([H, K, K], dim=1), strict=True):
        if wanted.abs().max() == 0:  # one token alone: its query and key change nothing
            assert of.abs().max() < 1e-2
        else:
            check(of, wanted, error=ERROR)
    if num_prefix == 33:  # a leaf that does not see the last token of the prefix is told apart
        blind = _formula(x_TSD, g_THD, 32, [1 + leaves[0], *leaves[1:]])[0] if len(leaves) > 1 else None
        assert blind is None or (got - blind).abs().max() > ERROR * want.abs().max()


@needs_tiles
@pytest.mark.parametrize("num_prefix", [0, 1, 33, 300])
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 600), (3, 40)])
@pytest.mark.parametrize("heads", [Heads(9, 3, 64), Heads(4, 4, 32), Heads(4, 1, 96)])
def test_prompts_behind_a_kept_prefix_are_leaves_of_the_tree(num_prefix: int, rows: int, length: int, heads: Heads) -> None:
    """Bit-equal to the whole tree, and alone as among others."""
    x_TSD, g_THD = _made(num_prefix + rows * length, heads)
    want = _tiled(x_TSD, g_THD, num_prefix, [length] * rows)[0][num_prefix:]
    keys, values = x_TSD[:num_prefix, heads.queries :].split(heads.keys, dim=1)
    prefix = torch.stack([keys, values]) if num_prefix else None
    found = [
        leaf_attention(own, prefix, rows=n, num_query_heads=heads.queries, scaling=SCALING)
        for own, n in ((x_TSD[num_prefix:], rows), (x_TSD[num_prefix : num_prefix + length], 1))
    ]
    assert torch.equal(found[0], want) and torch.equal(found[1], want[:length]) and want.abs().max() > 0


@needs_tiles
def test_the_result_does_not_depend_on_threads() -> None:
    x_TSD, g_THD = _made(40 + 300 + 7 + 90, Heads(6, 2, 64))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(_tiled(x_TSD, g_THD, 40, [300, 7, 90]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@needs_tiles
def test_no_leaf_sees_another_nor_any_token_a_later_one() -> None:
    leaves, heads = [40, 70], Heads(3, 3, 32)
    x_TSD, g_THD = _made(10 + sum(leaves), heads)
    out, dx = _tiled(x_TSD, g_THD, 10, leaves)
    changed = x_TSD.clone()
    changed[10 + 20 : 10 + 40] = numbers(20, 9, 32, seed=5)  # the end of the first leaf
    other, other_dx = _tiled(changed, g_THD, 10, leaves)
    assert torch.equal(out[:30], other[:30]) and torch.equal(out[50:], other[50:]) and not torch.equal(out[30:50], other[30:50])
    assert torch.equal(dx[50:], other_dx[50:]) and not torch.equal(dx[:10], other_dx[:10])  # what the prefix gets depends on all leaves


@needs_tiles
def test_large_scores_do_not_overflow_and_what_is_no_number_stays_seen() -> None:
    x_TSD, g_THD = _made(50, Heads(2, 1, 32))
    out, dx = _tiled(x_TSD * 1e4, g_THD, 0, [50])
    assert out.isfinite().all() and dx.isfinite().all()
    x_TSD[20, 0, 3] = float("nan")  # a query
    out, dx = _tiled(x_TSD, g_THD, 0, [50])
    assert out[20, 0].isnan().all() and out[:20].isfinite().all() and out[21:].isfinite().all() and out[20, 1].isfinite().all()
    assert dx[:21, 2:].isnan().any()


def test_what_does_not_suit_is_left_to_others() -> None:
    x_TSD, _ = _made(4, Heads(2, 1, 32))
    assert suits(x_TSD) == bool(compiled.library().tiles)
    assert not suits(x_TSD.float()) and not suits(x_TSD[..., :24])
