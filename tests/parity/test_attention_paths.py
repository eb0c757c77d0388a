"""Each way attention is computed, by itself, against the one plain twin: training's long rows, generation's prompts and steps."""

from __future__ import annotations

import pytest
import torch

from luthier.kernels import reference
from luthier.kernels.segment_attention import BLOCK_QUERIES, segment_attention
from luthier.kernels.short_attention import plan_short_leaves, short_attention
from luthier.kernels.tree_attention import flash_leaf_attention, leaf_attention
from luthier.kernels.tree_layout import layout_tree


def _qkv(tokens: int, heads: int, kv_heads: int) -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(11)
    return [torch.randn(n, tokens, 8, generator=gen, requires_grad=True) for n in (heads, kv_heads, kv_heads)]


@pytest.mark.parametrize("num_prefix", [0, 5, BLOCK_QUERIES + 3])
@pytest.mark.parametrize("leaves", [[4], [1, 9, BLOCK_QUERIES + 40]])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_segment_attention_equals_reference(num_prefix: int, leaves: list[int], heads: int, kv_heads: int) -> None:
    inputs = _qkv(num_prefix + sum(leaves), heads, kv_heads)
    starts = [num_prefix + sum(leaves[:i]) for i in range(len(leaves))]
    segments = [*([(0, num_prefix)] if num_prefix else []), *((s, s + n) for s, n in zip(starts, leaves, strict=True))]
    grid = layout_tree(num_prefix, leaves).leaf_grid_RL
    x_TSD = torch.cat(inputs).transpose(0, 1)
    fast = segment_attention(x_TSD, segments, num_prefix=num_prefix, num_query_heads=heads, scaling=0.3).transpose(0, 1)
    slow = reference.tree_attention(*inputs, num_prefix=num_prefix, leaf_grid_RL=grid, scaling=0.3)
    torch.testing.assert_close(fast, slow, atol=2e-6, rtol=2e-5)
    weight = torch.randn(fast.shape, generator=torch.Generator().manual_seed(1))
    got, want = (torch.autograd.grad((out * weight).sum(), inputs) for out in (fast, slow))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-4)
    if num_prefix == 5:  # a leaf that does not see the last token of the prefix is told apart
        blind = reference.tree_attention(*inputs, num_prefix=4, leaf_grid_RL=grid, scaling=0.3)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(fast, blind, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("num_prefix", [0, 5, 40])  # none, one leaf more, a group of its own
def test_short_attention_equals_reference(num_prefix: int) -> None:
    heads, kv_heads = 6, 2
    tree = layout_tree(num_prefix, [4, 1, 7])
    inputs = _qkv(num_prefix + 12, heads, kv_heads)
    plan = plan_short_leaves(num_prefix, tree.leaf_grid_RL, tree.flat_slot_T, heads=heads, key_heads=kv_heads, dtype=torch.float32)
    assert len(plan.groups) == 1 + (num_prefix == 40)
    fast = short_attention(torch.cat(inputs).transpose(0, 1), plan, scaling=0.3).transpose(0, 1)
    slow = reference.tree_attention(*inputs, num_prefix=num_prefix, leaf_grid_RL=tree.leaf_grid_RL, scaling=0.3)
    torch.testing.assert_close(fast, slow, atol=2e-6, rtol=2e-5)
    got, want = (torch.autograd.grad((out * slow.detach()).sum(), inputs) for out in (fast, slow))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("attention", [leaf_attention, flash_leaf_attention])
@pytest.mark.parametrize("num_prefix", [0, 7])
def test_leaves_of_generation_equal_reference(attention: object, num_prefix: int) -> None:
    """Three rows of five tokens behind one prefix."""
    rows, length, heads, kv_heads = 3, 5, 6, 2
    q, k, v = (x.detach() for x in _qkv(num_prefix + rows * length, heads, kv_heads))
    grid = layout_tree(num_prefix, [length] * rows).leaf_grid_RL
    want = reference.tree_attention(q, k, v, num_prefix=num_prefix, leaf_grid_RL=grid, scaling=0.3)
    own = [x[:, num_prefix:].view(x.shape[0], rows, length, 8).transpose(0, 1) for x in (q, k, v)]
    prefix = [x[:, :num_prefix] if num_prefix else None for x in (k, v)]
    visible = torch.ones(length, length, dtype=torch.bool).tril()[None]
    got = attention(*own, *prefix, visible, 0.3)  # type: ignore[operator]
    want_RHLD = want[:, num_prefix:].view(heads, rows, length, 8).transpose(0, 1)
    torch.testing.assert_close(got, want_RHLD, atol=2e-6, rtol=2e-5)
    with pytest.raises(AssertionError):  # one token ahead is seen
        ahead = attention(*own, *prefix, torch.ones(length, length, dtype=torch.bool).tril(1)[None], 0.3)  # type: ignore[operator]
        torch.testing.assert_close(ahead, want_RHLD, atol=2e-6, rtol=2e-5)
