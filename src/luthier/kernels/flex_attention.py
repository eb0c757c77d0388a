"""Attention over a token tree on a GPU: FlexAttention with the tree as a block mask.

Token t of a tree sees s if s <= t, and s stands before `shared_T[t]` (the prefix, for tokens of leaves) or not before `start_T[t]` (the
beginning of its own leaf). Blocks of BLOCK x BLOCK pairs of which none is seen are left out by the kernel; where all are seen, it does
not look at single pairs. Both lists are made on the host, from those two numbers for each token, without a [T, T] mask.

The kernel is compiled once for each number of tokens it meets, so T is filled up to BLOCK times a power of two. A filling token sees
itself alone: one block in each row of blocks, and no query without a key.

Plain twin: `reference.tree_attention`. FlexAttention has no backward pass on a CPU in torch 2.13, so training there uses the other files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128
COMPILATIONS = 32  # at most: sizes, each with gradient and without; torch would stop at 8


@dataclass(frozen=True, slots=True)
class HostPlan:
    """One batch in numbers, on the host; B blocks of tokens."""

    seen_2T: Tensor  # int32: `start_T` and `shared_T`, filled up to B * BLOCK tokens
    part_counts_B: Tensor  # int32: blocks of keys of which a block of queries sees some pairs
    part_blocks_BB: Tensor  # which they are, first
    full_counts_B: Tensor  # blocks of keys that a block of queries sees wholly
    full_blocks_BB: Tensor


def plan_blocks(num_prefix: int, leaf_grid_RL: Tensor, num_tokens: int) -> HostPlan:
    """What each block of queries sees; `leaf_grid_RL` as in `TokenTree`, on the host."""
    T = BLOCK * 2 ** max(0, (num_tokens - 1) // BLOCK).bit_length()
    start_T, shared_T = torch.arange(T), torch.zeros(T, dtype=torch.long)
    start_T[:num_prefix] = 0
    start_T[leaf_grid_RL] = leaf_grid_RL[:, :1].expand_as(leaf_grid_RL)
    shared_T[num_prefix:num_tokens] = num_prefix
    first_B = torch.arange(0, T, BLOCK)[None, :]  # of the keys of each block
    last_B, query_T1, start_T1, shared_T1 = first_B + BLOCK - 1, torch.arange(T)[:, None], start_T[:, None], shared_T[:, None]
    # For each query and block of keys, [T, B]. A block that straddles prefix and leaf is taken as seen in part; the mask settles it.
    some_TB = (first_B < shared_T1) | ((last_B >= start_T1) & (first_B <= query_T1))
    whole_TB = (last_B < shared_T1) | ((first_B >= start_T1) & (last_B <= query_T1))
    some_BB, whole_BB = some_TB.view(-1, BLOCK, T // BLOCK).any(1), whole_TB.view(-1, BLOCK, T // BLOCK).all(1)
    return HostPlan(torch.stack([start_T, shared_T]).int(), *_listed(some_BB & ~whole_BB), *_listed(whole_BB))


def _listed(wanted_BB: Tensor) -> tuple[Tensor, Tensor]:
    """How many are wanted in each row, and their columns, first and in order; behind them the others."""
    return wanted_BB.sum(1).int(), wanted_BB.int().argsort(dim=1, descending=True, stable=True).int()


def joined(plan: HostPlan) -> Tensor:
    """All of a plan in one tensor, so that one copy takes it to the device."""
    return torch.cat(
        [part.reshape(-1) for part in (plan.seen_2T, plan.part_counts_B, plan.part_blocks_BB, plan.full_counts_B, plan.full_blocks_BB)]
    )


def block_mask(joined_X: Tensor, num_blocks: int) -> BlockMask:
    """The mask of a plan that `joined` brought to the device."""
    B, T = num_blocks, num_blocks * BLOCK
    seen, part_counts, part_blocks, full_counts, full_blocks = joined_X.split([2 * T, B, B * B, B, B * B])
    return BlockMask.from_kv_blocks(
        part_counts.view(1, 1, B),
        part_blocks.view(1, 1, B, B),
        full_counts.view(1, 1, B),
        full_blocks.view(1, 1, B, B),
        BLOCK_SIZE=BLOCK,
        mask_mod=_sees(seen.view(2, T)),
        seq_lengths=(T, T),
    )


def _sees(seen_2T: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del b, h
        return (key <= query) & ((key < seen_2T[1, query]) | (key >= seen_2T[0, query]))

    return sees


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def tree_flex_attention(x_TSD: Tensor, mask: BlockMask, *, num_query_heads: int, scaling: float) -> Tensor:
    """Attention of a flat tree, [T, H, D], from its S = H + 2K heads of queries, keys and values."""
    T, S, _ = x_TSD.shape
    filled_STD = torch.nn.functional.pad(x_TSD, (0, 0, 0, 0, 0, mask.seq_lengths[0] - T)).transpose(0, 1)[None]
    key_heads = (S - num_query_heads) // 2
    q, k, v = filled_STD.split([num_query_heads, key_heads, key_heads], dim=1)
    with torch._dynamo.config.patch(recompile_limit=COMPILATIONS):  # pyright: ignore[reportPrivateUsage]
        out_HTD = _compiled()(q, k, v, block_mask=mask, scale=scaling, enable_gqa=True)[0]
    return out_HTD.transpose(0, 1)[:T]
