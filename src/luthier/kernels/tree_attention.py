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

from torch import Tensor

from luthier.kernels import wide
from luthier.kernels.device import to_device
from luthier.kernels.segment_attention import segment_attention
from luthier.kernels.short_attention import ShortLeaves, plan_short_leaves, short_attention
from luthier.kernels.tiled_attention import suits, tiled_attention
from luthier.kernels.tree_layout import TokenTree

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Kind = Literal["tiled", "short", "segment", "flex"]
# Up to this many tokens of leaf or prefix all leaves are computed in one batch; above it the [R, H, L, P + L] weights that autograd would
# keep cost more memory than they save time, and leaves are computed one by one (segment_attention).
MATMUL_MAX_LEAF = 160
# Up to so many keys of the prefix, one copy for each leaf, it is repeated: copying costs less than a softmax over two parts.
MAX_REPEATED_KEYS = 4096


@dataclass(slots=True)
class TreePlan:
    """What the layers of one forward pass have in common; filled by the first."""

    leaves: ShortLeaves | None = None
    segments: list[tuple[int, int]] | None = None
    mask: BlockMask | None = None
    narrowed: bool = False  # the last layer made only the states that will be read
    joined: bool = False  # the first layer answered for all but the last

    def segments_of(self, tree: TokenTree) -> list[tuple[int, int]]:
        """As the function of this name, once for all layers."""
        if self.segments is None:
            self.segments = segments_of(tree.num_prefix, tree.leaf_grid_RL)
        return self.segments


def tree_attention(x_TSD: Tensor, tree: TokenTree, plan: TreePlan, *, num_query_heads: int, scaling: float) -> Tensor:
    """Attention of a flat tree (prefix, then the leaves one after another), [T, H, D].

    `x_TSD` holds the S = H + 2K heads of each token: queries, keys, values.
    """
    P, kind = tree.num_prefix, kind_of(tree, x_TSD)
    if kind in ("segment", "short") and not wide.multiplies(x_TSD):
        return tree_attention(x_TSD.float(), tree, plan, num_query_heads=num_query_heads, scaling=scaling).to(x_TSD.dtype)
    if kind == "flex":
        return _flex(x_TSD, tree, plan, num_query_heads=num_query_heads, scaling=scaling)
    if kind in ("tiled", "segment"):
        attention = tiled_attention if kind == "tiled" else segment_attention
        return attention(x_TSD, plan.segments_of(tree), num_prefix=P, num_query_heads=num_query_heads, scaling=scaling)
    if plan.leaves is None:
        key_heads = (x_TSD.shape[1] - num_query_heads) // 2
        leaves = plan_short_leaves(P, tree.leaf_grid_RL, tree.flat_slot_T, heads=num_query_heads, key_heads=key_heads, dtype=x_TSD.dtype)
        plan.leaves = leaves.on(partial(to_device, device=x_TSD.device))
    return short_attention(x_TSD, plan.leaves, scaling=scaling)


def kind_of(tree: TokenTree, x_TSD: Tensor) -> Kind:
    """Which way is fastest: FlexAttention on a GPU; on a CPU its tiles, else all leaves at once where they are short, or one by one."""
    if x_TSD.device.type != "cpu":
        return "flex"
    if suits(x_TSD):
        return "tiled"
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
