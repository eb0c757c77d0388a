"""Attention over a token tree of depth one: a shared prefix computed once, and one leaf per row.

Shapes: H query heads, K key/value heads (H = K * G), D head size, P prefix tokens, R leaves (rows), L longest leaf.
A leaf token sees the whole prefix and its own leaf up to itself; a prefix token sees the prefix up to itself. With causal
attention and no dropout this is what each row would see alone, so outputs and gradients are the same to rounding
(`reference.tree_attention` is the plain twin; tests/parity/test_kernels.py holds them together).

Why not one [T, T] mask: T is the sum of all rows, and nearly all of that square is masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.device import to_device
from luthier.kernels.segment_attention import segment_attention
from luthier.kernels.short_attention import ShortLeaves, plan_short_leaves, short_attention
from luthier.kernels.tree_layout import TokenTree

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Kind = Literal["short", "segment", "flex"]
# Up to this many tokens of leaf or prefix all leaves are computed in one batch; above it the [R, H, L, P + L] weights that autograd would
# keep cost more memory than they save time, and leaves are computed one by one (segment_attention).
MATMUL_MAX_LEAF = 160
# Up to so many keys of the prefix, one copy for each leaf, it is repeated: copying costs less than a softmax over two parts.
MAX_REPEATED_KEYS = 4096


def leaf_attention(
    q_RHLD: Tensor,
    k_RKLD: Tensor,
    v_RKLD: Tensor,
    k_prefix_KPD: Tensor | None,
    v_prefix_KPD: Tensor | None,
    visible_RLC: Tensor,
    scaling: float,
) -> Tensor:
    """Leaf queries over (prefix, own leaf); returns [R, H, L, D].

    1. Scores against the shared prefix: one product per key head over all rows at once, [K, R*G*L, D] x [K, D, P].
    2. Scores against the row's own keys, hidden ones (`visible_RLC` False; C own keys) at -inf.
    3. One softmax in fp32 over both parts.
    4. The two weighted sums are added.

    The prefix is never repeated for each row. `visible_RLC` may have size 1 in its first axis. Every query must see at
    least one key.
    """
    R, H, L, D = q_RHLD.shape
    K = k_RKLD.shape[1]
    G = H // K
    # 2. own keys
    q_RKgD = q_RHLD.reshape(R, K, G * L, D)
    own = (q_RKgD @ k_RKLD.transpose(-1, -2)).view(R, K, G, L, -1).float() * scaling
    own = own.masked_fill(~visible_RLC[:, None, None], float("-inf"))
    if k_prefix_KPD is None or v_prefix_KPD is None:
        weights = torch.softmax(own, dim=-1).to(q_RHLD.dtype)
        return (weights.view(R, K, G * L, -1) @ v_RKLD).view(R, H, L, D)
    # 1. the shared prefix
    P = k_prefix_KPD.shape[1]
    q_KxD = q_RKgD.transpose(0, 1).reshape(K, R * G * L, D)
    prefix = (q_KxD @ k_prefix_KPD.transpose(-1, -2)).view(K, R, G, L, P).transpose(0, 1).float() * scaling
    # 3. one softmax
    weights = torch.softmax(torch.cat([prefix, own], dim=-1), dim=-1).to(q_RHLD.dtype)
    w_prefix, w_own = weights.split([P, own.shape[-1]], dim=-1)
    # 4. both sums
    out_prefix = (w_prefix.transpose(0, 1).reshape(K, R * G * L, P) @ v_prefix_KPD).view(K, R, G * L, D).transpose(0, 1)
    out_own = w_own.reshape(R, K, G * L, -1) @ v_RKLD
    return (out_prefix + out_own).reshape(R, H, L, D)


def flash_leaf_attention(
    q_RHLD: Tensor,
    k_RKLD: Tensor,
    v_RKLD: Tensor,
    k_prefix_KPD: Tensor | None,
    v_prefix_KPD: Tensor | None,
    visible_RLC: Tensor,
    scaling: float,
) -> Tensor:
    """The same as `leaf_attention` for long leaves: the prefix is repeated for each row, the scores are never held."""
    R = q_RHLD.shape[0]
    if k_prefix_KPD is not None and v_prefix_KPD is not None:
        k_RKLD = torch.cat([k_prefix_KPD.expand(R, -1, -1, -1), k_RKLD], dim=2)
        v_RKLD = torch.cat([v_prefix_KPD.expand(R, -1, -1, -1), v_RKLD], dim=2)
        sees_prefix = visible_RLC.new_ones(*visible_RLC.shape[:2], k_prefix_KPD.shape[1])
        visible_RLC = torch.cat([sees_prefix, visible_RLC], dim=2)
    if q_RHLD.device.type != "cpu":  # on a GPU the kernels that take a mask and never hold the scores want as many key heads as query heads
        k_RKLD, v_RKLD = (x.repeat_interleave(q_RHLD.shape[1] // k_RKLD.shape[1], dim=1) for x in (k_RKLD, v_RKLD))
    return F.scaled_dot_product_attention(q_RHLD, k_RKLD, v_RKLD, attn_mask=visible_RLC[:, None], scale=scaling, enable_gqa=True)


@dataclass(slots=True)
class TreePlan:
    """What the layers of one forward pass have in common; filled by the first."""

    leaves: ShortLeaves | None = None
    segments: list[tuple[int, int]] | None = None
    mask: BlockMask | None = None
    narrowed: bool = False  # the last layer made only the states that will be read


def tree_attention(x_TSD: Tensor, tree: TokenTree, plan: TreePlan, *, num_query_heads: int, scaling: float) -> Tensor:
    """Attention of a flat tree (prefix, then the leaves one after another), [T, H, D].

    `x_TSD` holds the S = H + 2K heads of each token: queries, keys, values.
    """
    P, kind = tree.num_prefix, kind_of(tree, x_TSD.device)
    if kind == "flex":
        return _flex(x_TSD, tree, plan, num_query_heads=num_query_heads, scaling=scaling)
    if kind == "segment":
        if plan.segments is None:
            plan.segments = segments_of(P, tree.leaf_grid_RL)
        return segment_attention(x_TSD, plan.segments, num_prefix=P, num_query_heads=num_query_heads, scaling=scaling)
    if plan.leaves is None:
        key_heads = (x_TSD.shape[1] - num_query_heads) // 2
        leaves = plan_short_leaves(P, tree.leaf_grid_RL, tree.flat_slot_T, heads=num_query_heads, key_heads=key_heads, dtype=x_TSD.dtype)
        plan.leaves = leaves.on(partial(to_device, device=x_TSD.device))
    return short_attention(x_TSD, plan.leaves, scaling=scaling)


def kind_of(tree: TokenTree, device: torch.device) -> Kind:
    """Which way is fastest: FlexAttention on a GPU; on a CPU all leaves at once where they are short, else one by one."""
    if device.type != "cpu":
        return "flex"
    P, (R, L) = tree.num_prefix, tree.leaf_grid_RL.shape
    return "segment" if L > MATMUL_MAX_LEAF or P > MATMUL_MAX_LEAF or R * P > MAX_REPEATED_KEYS else "short"


def _flex(x_TSD: Tensor, tree: TokenTree, plan: TreePlan, *, num_query_heads: int, scaling: float) -> Tensor:
    from luthier.kernels import flex_attention as flex  # loads torch's compiler, which a CPU does not need

    if plan.mask is None:
        blocks = flex.plan_blocks(tree.num_prefix, tree.leaf_grid_RL, x_TSD.shape[0])
        plan.mask = flex.block_mask(to_device(flex.joined(blocks), x_TSD.device), blocks.part_counts_B.shape[0])
    return flex.tree_flex_attention(x_TSD, plan.mask, num_query_heads=num_query_heads, scaling=scaling)


def segments_of(num_prefix: int, leaf_grid_RL: Tensor) -> list[tuple[int, int]]:
    """Where the prefix, if any, and every leaf begin and end."""
    leaves = [(int(row[0]), int(row[-1]) + 1) for row in leaf_grid_RL]
    return [(0, num_prefix), *leaves] if num_prefix else leaves
