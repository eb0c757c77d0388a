"""The tree as a block mask, pair by pair, and FlexAttention with it against the plain twin.

What a GPU runs is torch's compiled kernel. Here torch's own plain computation of the same call stands in for it: it looks at the mask of
single pairs and not at the lists of blocks, so these are checked by themselves. torch refuses a backward pass of FlexAttention on a CPU,
because the compiled kernel has none there; the plain computation has one, and it is used here. tests/gpu repeats it with the kernel.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex

from luthier.kernels import flex_attention as flex
from luthier.kernels import reference
from luthier.kernels.tree_layout import TokenTree, layout_tree

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's compiler looks, and it warns

TREES = [(0, [3]), (0, [100, 1, 60, 200]), (5, [4, 7]), (130, [128, 3, 126]), (256, [128]), (1, [1] * 140), (300, [30, 200, 5])]


@cache
def plain_flex() -> Any:
    return torch.compile(torch_flex.flex_attention, backend="eager", fullgraph=True, dynamic=False)


@pytest.fixture
def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_flex, "_validate_device", lambda q, k, v: None)
    monkeypatch.setattr(flex, "_compiled", plain_flex)


def _mask(num_prefix: int, leaves: list[int]) -> tuple[TokenTree, flex.HostPlan, Any]:
    tree = layout_tree(num_prefix, leaves)
    plan = flex.plan_blocks(num_prefix, tree.leaf_grid_RL, num_prefix + sum(leaves))
    return tree, plan, flex.block_mask(flex.joined(plan), plan.part_counts_B.shape[0])


@pytest.mark.parametrize(("num_prefix", "leaves"), TREES)
def test_the_mask_is_the_twin_s_pair_by_pair(num_prefix: int, leaves: list[int]) -> None:
    """Single pairs by the function, and blocks by the lists: left out where nothing is seen, full where all is."""
    tree, plan, mask = _mask(num_prefix, leaves)
    n, T = num_prefix + sum(leaves), plan.seen_2T.shape[1]
    assert n <= T and T % flex.BLOCK == 0 and (T == flex.BLOCK or 2 * n > T)
    want_TT = torch.eye(T, dtype=torch.bool)  # filling tokens see themselves alone
    want_TT[:n, :n] = reference.visible(n, num_prefix, tree.leaf_grid_RL)
    at = torch.arange(T)
    none = torch.tensor(0)
    assert torch.equal(mask.mask_mod(none, none, at[:, None], at[None, :]), want_TT)
    B = T // flex.BLOCK
    blocks = want_TT.view(B, flex.BLOCK, B, flex.BLOCK).transpose(1, 2)
    part, full = (_dense(counts, lists) for counts, lists in _lists(mask))
    assert not (part & full).any()
    assert not (blocks.any((2, 3)) & ~(part | full)).any(), "a block that is seen is left out"
    assert not (full & ~blocks.all((2, 3))).any(), "a block is taken as seen wholly that is not"
    assert (part & ~blocks.any((2, 3))).sum() == 0, "a block is computed of which nothing is seen"
    for counts, lists in ((mask.q_num_blocks, mask.q_indices), (mask.full_q_num_blocks, mask.full_q_indices)):  # the backward pass
        back = _dense(counts[0, 0], lists[0, 0]).T
        assert torch.equal(back, part if counts is mask.q_num_blocks else full)


def _lists(mask: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(mask.kv_num_blocks[0, 0], mask.kv_indices[0, 0]), (mask.full_kv_num_blocks[0, 0], mask.full_kv_indices[0, 0])]


def _dense(counts_B: torch.Tensor, lists_BB: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(len(counts_B), len(counts_B), dtype=torch.bool)
    for row, (count, columns) in enumerate(zip(counts_B.tolist(), lists_BB.tolist(), strict=True)):
        assert len(set(columns[:count])) == count
        out[row, columns[:count]] = True
    return out


def test_blocks_are_left_out() -> None:
    """Eight rows of 128 tokens behind 256: a [T, T] mask has 100 blocks below its diagonal and on it, here 3 * 8 + 3 are computed."""
    _, plan, _ = _mask(256, [128] * 8)
    computed = int(plan.part_counts_B[:10].sum() + plan.full_counts_B[:10].sum())
    assert computed == 27 and int(plan.full_counts_B.sum()) == 17


@pytest.mark.usefixtures("flex_on_cpu")
@pytest.mark.parametrize(("num_prefix", "leaves"), TREES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_flex_attention_equals_reference(num_prefix: int, leaves: list[int], heads: int, kv_heads: int) -> None:
    tree, _, mask = _mask(num_prefix, leaves)
    gen = torch.Generator().manual_seed(2)
    inputs = [torch.randn(n, num_prefix + sum(leaves), 16, generator=gen, requires_grad=True) for n in (heads, kv_heads, kv_heads)]
    x_TSD = torch.cat(inputs).transpose(0, 1)
    fast = flex.tree_flex_attention(x_TSD, mask, num_query_heads=heads, scaling=0.3).transpose(0, 1)
    slow = reference.tree_attention(*inputs, num_prefix=num_prefix, leaf_grid_RL=tree.leaf_grid_RL, scaling=0.3)
    torch.testing.assert_close(fast, slow, atol=5e-6, rtol=2e-5)
    weight = torch.randn(fast.shape, generator=torch.Generator().manual_seed(1))
    got, want = (torch.autograd.grad((out * weight).sum(), inputs) for out in (fast, slow))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-4)
    if num_prefix == 5:  # a leaf that does not see the last token of the prefix is told apart
        blind = reference.tree_attention(*inputs, num_prefix=4, leaf_grid_RL=tree.leaf_grid_RL, scaling=0.3)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(fast, blind, atol=5e-6, rtol=2e-5)


@pytest.mark.usefixtures("flex_on_cpu")
def test_other_batches_of_a_size_are_not_compiled_anew() -> None:
    """The tree is data: only another number of blocks makes another graph."""
    graphs = torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()
    plain_flex.cache_clear()
    seen: list[int] = []
    for num_prefix, leaves in [(0, [90]), (7, [30, 50]), (60, [3] * 20), (0, [200]), (150, [50, 40]), (0, [128])]:
        _, _, mask = _mask(num_prefix, leaves)
        x_TSD = torch.randn(num_prefix + sum(leaves), 6, 16)
        flex.tree_flex_attention(x_TSD, mask, num_query_heads=4, scaling=0.3)
        seen.append(graphs["unique_graphs"])
    assert [number - seen[0] for number in seen] == [0, 0, 0, 1, 1, 1]
