"""Attention over a token tree with short leaves: all scores of a batch in one product.

Shapes: T flat tokens of S = H + 2K heads each (queries, keys, values, in this order), H = K * G, D head size; R leaves of at most L tokens
behind P shared ones. Every leaf gets its own copy of the prefix's keys, so that N = R * K products of Q = G * L queries with C keys give
everything. One gather brings tokens to these places and one brings the answers back; where they lie is worked out once for a batch and
used in every layer. Plain twin: `reference.tree_attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from luthier.kernels import fused


@dataclass(frozen=True, slots=True)
class LeafGroup:
    """Leaves computed together. Positions are those of rows of D numbers: token t, head j of n stands in row t * n + j."""

    from_heads_X: Tensor  # N * Q queries, N * C keys, N * C values among the T * S rows that come in
    from_answers_X: Tensor  # the N * Q queries among the T * H rows that go out
    padding_X: Tensor  # queries, of N * Q, that are no token
    bias_NQC: Tensor  # 0 where a query sees a key, else -inf; N is 1 where all leaves are alike
    num_products: int

    def on(self, move: Callable[[Tensor], Tensor]) -> LeafGroup:
        """The same where `move` takes tensors to."""
        from_heads_X, from_answers_X = move(self.from_heads_X), move(self.from_answers_X)
        return LeafGroup(from_heads_X, from_answers_X, move(self.padding_X), move(self.bias_NQC), self.num_products)

    @property
    def num_queries(self) -> int:
        """Q."""
        return self.bias_NQC.shape[1]

    @property
    def num_keys(self) -> int:
        """C."""
        return self.bias_NQC.shape[2]


@dataclass(frozen=True, slots=True)
class ShortLeaves:
    """The plan of one batch. The first group holds the R leaves behind the prefix."""

    groups: tuple[LeafGroup, ...]
    answers_back_X: Tensor  # T * H rows among the groups' N * Q, one group after another
    heads_back_X: Tensor  # T * S rows among the groups' N * (Q + 2C)
    num_prefix: int
    num_leaves: int
    num_query_heads: int
    num_key_heads: int

    def on(self, move: Callable[[Tensor], Tensor]) -> ShortLeaves:
        """The same where `move` takes tensors to."""
        groups = tuple(group.on(move) for group in self.groups)
        return replace(self, groups=groups, answers_back_X=move(self.answers_back_X), heads_back_X=move(self.heads_back_X))


def plan_short_leaves(
    num_prefix: int, leaf_grid_RL: Tensor, flat_slot_T: Tensor, *, heads: int, key_heads: int, dtype: torch.dtype
) -> ShortLeaves:
    """The plan of one batch, on the host.

    1. A prefix that is not much longer than the leaves is one leaf more, which sees no prefix; a long one is a group of its own.
    2. For each group: which token is which query and which key, and what sees what.
    3. The way back, for every token and head.
    """
    P, (R, L) = num_prefix, leaf_grid_RL.shape
    T = flat_slot_T.shape[0]
    real_RL = torch.zeros(R * L, dtype=torch.bool).index_fill_(0, flat_slot_T[P:], value=True).view(R, L)
    own_P = torch.arange(P)
    groups: list[LeafGroup] = []
    if 0 < P <= 2 * L:
        wide = max(P, L)
        queries_RL = torch.cat([_widened(leaf_grid_RL, wide), _widened(own_P[None], wide)])
        real_RL = torch.cat([_padded(real_RL, wide), _padded(torch.ones(1, P, dtype=torch.bool), wide)])
        hidden_RLC = _later(wide, P).repeat(R + 1, 1, 1)
        hidden_RLC[R, :, :P] = True
        places = [(queries_RL, torch.cat([own_P.expand(R + 1, P), queries_RL], dim=1), real_RL, hidden_RLC)]
    else:
        places = [(leaf_grid_RL, torch.cat([own_P.expand(R, P), leaf_grid_RL], dim=1), real_RL, _later(L, P))]
        if P:
            places.append((own_P[None], own_P[None], torch.ones(1, P, dtype=torch.bool), _later(P, 0)))
    answers_back = torch.empty(T, heads, dtype=torch.long)
    heads_back = torch.empty(T, heads + 2 * key_heads, dtype=torch.long)
    answers_before = heads_before = 0
    for queries_RL, keys_RC, real, hidden in places:
        group = _group(queries_RL, keys_RC, real, hidden, heads=heads, key_heads=key_heads, dtype=dtype)
        groups.append(group)
        token, leaf, column = queries_RL[real], *real.nonzero().unbind(1)
        size = queries_RL.shape[1]
        head_H = torch.arange(heads)
        slots = leaf[:, None] * heads * size + head_H[None, :] * size + column[:, None]
        answers_back[token] = answers_before + slots
        heads_back[token, :heads] = heads_before + slots
        C, own = group.num_keys, group.num_keys - size
        key_slots = (leaf[:, None] * key_heads + torch.arange(key_heads)[None, :]) * C + own + column[:, None]
        num_queries, num_keys = group.num_products * group.num_queries, group.num_products * C
        heads_back[token, heads : heads + key_heads] = heads_before + num_queries + key_slots
        heads_back[token, heads + key_heads :] = heads_before + num_queries + num_keys + key_slots
        answers_before += num_queries
        heads_before += num_queries + 2 * num_keys
    return ShortLeaves(tuple(groups), answers_back.reshape(-1), heads_back.reshape(-1), P, R, heads, key_heads)


def _widened(positions_RL: Tensor, wide: int) -> Tensor:
    """Columns added at the end, which repeat the last one."""
    return torch.cat([positions_RL, positions_RL[:, -1:].expand(-1, wide - positions_RL.shape[1])], dim=1)


def _padded(real_RL: Tensor, wide: int) -> Tensor:
    return torch.nn.functional.pad(real_RL, (0, wide - real_RL.shape[1]))


def _later(size: int, before: int) -> Tensor:
    """Hidden from the queries of a leaf behind `before` other tokens: its own later ones, [1, size, before + size]."""
    own = torch.ones(size, size, dtype=torch.bool).triu(1)
    return torch.cat([torch.zeros(size, before, dtype=torch.bool), own], dim=1)[None]


def _group(
    queries_RL: Tensor, keys_RC: Tensor, real_RL: Tensor, hidden_RLC: Tensor, *, heads: int, key_heads: int, dtype: torch.dtype
) -> LeafGroup:
    (R, L), C, K, G, S = queries_RL.shape, keys_RC.shape[1], key_heads, heads // key_heads, heads + 2 * key_heads
    head_H, key_K = torch.arange(heads)[None, :, None], torch.arange(K)[None, :, None]
    keys = keys_RC[:, None, :] * S + heads + key_K  # [R, K, C]
    from_heads = torch.cat([(queries_RL[:, None, :] * S + head_H).reshape(-1), keys.reshape(-1), (keys + K).reshape(-1)])
    padding = (~real_RL[:, None, :]).expand(R, heads, L).reshape(-1).nonzero()[:, 0]
    bias_RLC = torch.zeros(hidden_RLC.shape, dtype=dtype).masked_fill_(hidden_RLC, float("-inf"))
    copies = bias_RLC.shape[0]
    bias_NQC = bias_RLC[:, None, None].expand(copies, K if copies > 1 else 1, G, L, C).reshape(-1, G * L, C)
    return LeafGroup(from_heads, (queries_RL[:, None, :] * heads + head_H).reshape(-1), padding, bias_NQC, R * K)


class _ShortAttention(torch.autograd.Function):
    """Per group, with W = softmax(scale * q k^T + bias) and g = dL/dout:

    dv = W^T g,   dS = softmax'(g v^T),   dq = scale * dS k,   dk = scale * dS^T q;   what the leaves' copies of a prefix key got is summed.
    """

    @staticmethod
    def forward(ctx: Any, x_TSD: Tensor, plan: ShortLeaves, scaling: float) -> Tensor:
        T, _, D = x_TSD.shape
        answers: list[Tensor] = []
        weights: list[Tensor] = []
        for group in plan.groups:
            q_NQD, k_NCD, v_NCD = _split(fused.gather_rows(x_TSD.reshape(-1, D), group.from_heads_X), group)
            weights.append(fused.softmax_(torch.bmm(q_NQD, k_NCD.transpose(1, 2)), scale=scaling, bias_YC=group.bias_NQC))
            answers.append(torch.bmm(weights[-1], v_NCD).view(-1, D))
        ctx.save_for_backward(x_TSD, *weights)
        ctx.plan, ctx.scaling = plan, scaling
        return fused.gather_rows(_joined(answers), plan.answers_back_X).view(T, plan.num_query_heads, D)

    @staticmethod
    def backward(ctx: Any, g_THD: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TSD, *weights = ctx.saved_tensors
        plan: ShortLeaves = ctx.plan
        H, K, P, D = plan.num_query_heads, plan.num_key_heads, plan.num_prefix, x_TSD.shape[2]
        grads: list[Tensor] = []
        for group, w_NQC in zip(plan.groups, weights, strict=True):
            x_XD = fused.gather_rows(x_TSD.reshape(-1, D), group.from_heads_X)
            q_NQD, k_NCD, v_NCD = _split(x_XD, group)
            g_XD = fused.gather_rows(g_THD.reshape(-1, D), group.from_answers_X)
            g_NQD = (g_XD.index_fill_(0, group.padding_X, 0.0) if group.padding_X.numel() else g_XD).view_as(q_NQD)
            grads.append(torch.empty_like(x_XD))
            dq_NQD, dk_NCD, dv_NCD = _split(grads[-1], group)
            dw_NQC = torch.bmm(g_NQD, v_NCD.transpose(1, 2))
            torch.bmm(w_NQC.transpose(1, 2), g_NQD, out=dv_NCD)
            ds_NQC = fused.softmax_backward_(dw_NQC, w_NQC, scale=ctx.scaling)
            torch.bmm(ds_NQC, k_NCD, out=dq_NQD)
            torch.bmm(ds_NQC.transpose(1, 2), q_NQD, out=dk_NCD)
        dx_TSD = fused.gather_rows(_joined(grads), plan.heads_back_X).view_as(x_TSD)
        if P:
            first = plan.groups[0]
            copies = grads[0][first.num_products * first.num_queries :].view(2, -1, K, first.num_keys, D)[:, : plan.num_leaves, :, :P]
            dx_TSD[:P, H:].view(P, 2, K, D).add_(copies.sum(1).permute(2, 0, 1, 3))
        return dx_TSD, None, None


def _split(x_XD: Tensor, group: LeafGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a group, as views."""
    N, Q, C, D = group.num_products, group.num_queries, group.num_keys, x_XD.shape[1]
    q, k, v = x_XD.split([N * Q, N * C, N * C])
    return q.view(N, Q, D), k.view(N, C, D), v.view(N, C, D)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def short_attention(x_TSD: Tensor, plan: ShortLeaves, *, scaling: float) -> Tensor:
    """Attention of all tokens of the tree, [T, H, D]."""
    return _ShortAttention.apply(x_TSD, plan, scaling)  # pyright: ignore[reportReturnType]
