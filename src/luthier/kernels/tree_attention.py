"""Attention over a token tree of depth one: a shared prefix computed once, and one leaf per row.

Shapes: H query heads, K key/value heads (H = K * G), D head size, P prefix tokens, R leaves (rows), L longest leaf.
A leaf token sees the whole prefix and its own leaf up to itself; a prefix token sees the prefix up to itself. With causal
attention and no dropout this is what each row would see alone, so outputs and gradients are the same to rounding
(`reference.tree_attention` is the plain twin; tests/parity/test_kernels.py holds them together).

Why not one [T, T] mask: T is the sum of all rows, and nearly all of that square is masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.segment_attention import segment_attention

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
    return F.scaled_dot_product_attention(q_RHLD, k_RKLD, v_RKLD, attn_mask=visible_RLC[:, None], scale=scaling, enable_gqa=True)


@dataclass(frozen=True, slots=True)
class ShortLeaves:
    """Where each number of a batch with short leaves comes from and goes to: made once, used in every layer.

    Every leaf gets its own copy of the prefix's keys, so that one product gives all scores of a batch. N = K * R products of
    Q = G * L queries with C = P + L keys; the queries of the G heads that share a key head lie one after another.
    """

    keys_x: Tensor  # R * C flat positions: for each leaf the prefix, then itself
    queries_x: Tensor  # R * Q positions among G * T queries of a key head
    back_x: Tensor  # G * T' places of the leaf tokens' answers among R * Q
    bias_1QC: Tensor  # 0 where a query sees a key, else -inf
    num_leaves: int


def plan_short_leaves(num_prefix: int, leaf_grid_RL: Tensor, flat_slot_T: Tensor, *, groups: int, dtype: torch.dtype) -> ShortLeaves:
    """The plan of one batch; `groups` query heads share a key head."""
    P, (R, L), G, T = num_prefix, leaf_grid_RL.shape, groups, flat_slot_T.shape[0]
    group_G = torch.arange(G)
    keys_RC = torch.cat([torch.arange(P).expand(R, P), leaf_grid_RL], dim=1)
    queries_RGL = leaf_grid_RL[:, None, :] + group_G[None, :, None] * T
    slot_T = flat_slot_T[P:]
    back_GT = (slot_T // L * (G * L) + slot_T % L)[None, :] + group_G[:, None] * L
    hidden_LC = torch.cat([torch.zeros(L, P, dtype=torch.bool), torch.ones(L, L, dtype=torch.bool).triu(1)], dim=1)
    bias_LC = torch.zeros(L, P + L, dtype=dtype).masked_fill_(hidden_LC, float("-inf"))
    return ShortLeaves(keys_RC.reshape(-1), queries_RGL.reshape(-1), back_GT.reshape(-1), bias_LC.repeat(G, 1)[None], R)


def short_leaf_attention(q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, plan: ShortLeaves, scaling: float) -> Tensor:
    """Attention of the leaf tokens over the prefix and their own leaf, [H, T', D].

    1. Gather keys, values and queries leaf by leaf.
    2. Scores with scale and mask in one product, one softmax (fp32 inside), one product with the values.
    3. Put the answers back in flat order.
    """
    H, _, D = q_HTD.shape
    K, R = k_KTD.shape[0], plan.num_leaves
    Q, C = plan.bias_1QC.shape[1:]
    k_NCD = k_KTD.index_select(1, plan.keys_x).view(K * R, C, D)
    v_NCD = v_KTD.index_select(1, plan.keys_x).view(K * R, C, D)
    q_NQD = q_HTD.reshape(K, -1, D).index_select(1, plan.queries_x).view(K * R, Q, D)
    weights_NQC = torch.softmax(torch.baddbmm(plan.bias_1QC, q_NQD, k_NCD.transpose(1, 2), alpha=scaling), dim=-1)
    return torch.bmm(weights_NQC, v_NCD).view(K, R * Q, D).index_select(1, plan.back_x).view(H, -1, D)


@dataclass(slots=True)
class TreePlan:
    """What the layers of one forward pass have in common; filled by the first."""

    leaves: ShortLeaves | None = None
    prefix: ShortLeaves | None = None
    segments: list[tuple[int, int]] | None = None


def tree_attention(
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    *,
    num_prefix: int,
    leaf_grid_RL: Tensor,
    flat_slot_T: Tensor,
    scaling: float,
    plan: TreePlan,
) -> Tensor:
    """Attention of a flat tree (prefix, then the leaves one after another); returns [H, T, D].

    `leaf_grid_RL[r, i]` is the flat position of token i of leaf r (padding repeats the leaf's last token), and
    `flat_slot_T[t]` the slot of leaf token t in the flattened grid, for t >= num_prefix.
    """
    P, (R, L) = num_prefix, leaf_grid_RL.shape
    G = q_HTD.shape[0] // k_KTD.shape[0]
    if L > MATMUL_MAX_LEAF or P > MATMUL_MAX_LEAF or R * P > MAX_REPEATED_KEYS:
        if plan.segments is None:
            plan.segments = segments_of(P, leaf_grid_RL)
        return segment_attention(q_HTD, k_KTD, v_KTD, plan.segments, num_prefix=P, scaling=scaling)
    if plan.leaves is None:
        plan.leaves = plan_short_leaves(P, leaf_grid_RL, flat_slot_T, groups=G, dtype=q_HTD.dtype)
    leaves_HxD = short_leaf_attention(q_HTD, k_KTD, v_KTD, plan.leaves, scaling)
    if not P:
        return leaves_HxD
    if plan.prefix is None:  # one leaf without a prefix
        own_P = torch.arange(P)
        plan.prefix = plan_short_leaves(0, own_P[None], own_P, groups=G, dtype=q_HTD.dtype)
    before_HPD = short_leaf_attention(q_HTD[:, :P], k_KTD[:, :P], v_KTD[:, :P], plan.prefix, scaling)
    return torch.cat([before_HPD, leaves_HxD], dim=1)


def segments_of(num_prefix: int, leaf_grid_RL: Tensor) -> list[tuple[int, int]]:
    """Where the prefix, if any, and every leaf begin and end."""
    leaves = [(int(row[0]), int(row[-1]) + 1) for row in leaf_grid_RL]
    return [(0, num_prefix), *leaves] if num_prefix else leaves
