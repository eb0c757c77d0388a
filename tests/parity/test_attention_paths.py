"""Each way attention is computed, by itself, against the one plain twin: training's long rows, generation's prompts and steps."""

from __future__ import annotations

import pytest
import torch

from luthier.kernels import reference
from luthier.kernels.lse_attention import attention_lse, join_parts
from luthier.kernels.segment_attention import BLOCK_QUERIES, segment_attention
from luthier.kernels.short_attention import plan_short_leaves, short_attention
from luthier.kernels.tree_layout import layout_tree
from luthier.models.decode_layout import EnterLayout, Shared, StepLayout


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_sum_exp_attention_equals_reference(dtype: torch.dtype) -> None:
    gen = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(3, 2, n, 16, generator=gen).to(dtype) for n in (4, 9, 9))
    bias = torch.zeros(3, 1, 1, 9, dtype=dtype).masked_fill(torch.rand(3, 1, 1, 9, generator=gen) < 0.4, float("-inf"))
    loose = {"atol": 2e-2, "rtol": 2e-2} if dtype == torch.bfloat16 else {"atol": 2e-6, "rtol": 2e-5}
    for options in ({"bias": bias}, {"is_causal": True}, {}):
        got, want = (f(q, k, v, scaling=0.3, **options) for f in (attention_lse, reference.attention_lse))
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs, **loose)
    parts = [attention_lse(q, k[:, :, part], v[:, :, part], scaling=0.3) for part in (slice(0, 3), slice(3, 9))]
    whole = reference.attention_lse(q, k, v, scaling=0.3)[0]
    torch.testing.assert_close(join_parts(*parts[0], *parts[1]), whole, **loose)
    with pytest.raises(AssertionError):  # parts weighted alike are told apart
        torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, whole, **loose)


@pytest.mark.parametrize("num_prefix", [0, 7])
def test_rows_of_generation_equal_reference(num_prefix: int) -> None:
    """Three rows of five tokens behind one prefix: four enter together, the fifth is a step."""
    rows, length, heads, kv_heads = 3, 5, 6, 2
    q, k, v = (x.detach() for x in _qkv(num_prefix + rows * length, heads, kv_heads))
    grid = layout_tree(num_prefix, [length] * rows).leaf_grid_RL
    want = reference.tree_attention(q, k, v, num_prefix=num_prefix, leaf_grid_RL=grid, scaling=0.3)
    want_RHLD = want[:, num_prefix:].view(heads, rows, length, 8).transpose(0, 1)
    q, k, v, prefix_k, prefix_v = (
        *(x[:, num_prefix:].view(x.shape[0], rows, length, 8).transpose(0, 1) for x in (q, k, v)),
        *(x[:, :num_prefix].transpose(0, 1) for x in (k, v)),
    )
    prefix = torch.stack([prefix_k, prefix_v])[None] if num_prefix else None  # [1, 2, P, K, D]
    enter = EnterLayout(prefix)
    got = enter.attend(0, q[:, :, :4], k[:, :, :4], v[:, :, :4], 0.3)
    torch.testing.assert_close(got, want_RHLD[:, :, :4], atol=2e-6, rtol=2e-5)
    store = torch.full((1, 2, rows, 8, kv_heads, 8), 7.0)  # what stands behind a row's end must not be seen
    store[:, :, :, :4] = enter.stacked()
    bias = torch.zeros(rows, 1, 1, 6)
    bias[..., 5] = float("-inf")
    shared = () if prefix is None else (Shared(prefix, torch.tensor([0, 2])), Shared(prefix, torch.tensor([1])))
    step = StepLayout(store=store, num_rows=rows, filled=6, slot_R=torch.arange(rows) * 8 + 4, bias_R11C=bias, shared=shared)
    got = step.attend(0, q[:, :, 4:], k[:, :, 4:], v[:, :, 4:], 0.3)
    torch.testing.assert_close(got, want_RHLD[:, :, 4:], atol=2e-6, rtol=2e-5)
    step.bias_R11C = None
    with pytest.raises(AssertionError):  # one column too many is seen
        torch.testing.assert_close(step.attend(0, q[:, :, 4:], k[:, :, 4:], v[:, :, 4:], 0.3), want_RHLD[:, :, 4:], atol=2e-6, rtol=2e-5)
