"""Rows of a batch as one token tree: the prefix they share, then each row's remainder as a leaf.

    rows      [s s s a b] [s s s c] [s s s d e f]
    flat      s s s | a b | c | d e f          positions 0 1 2 | 3 4 | 3 | 3 4 5

The model runs once over the flat tokens; attention alone knows the tree (kernels/tree_attention.py). Rows without a common
prefix are simply packed, each seeing only itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from luthier.core.types import TokenRow
from luthier.kernels.device import to_device
from luthier.kernels.tree_layout import TokenTree, layout_tree


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeBatch:
    """One micro-batch. Label n is predicted from hidden state `source_N[n]` and must be `target_N[n]`."""

    input_ids_T: Tensor
    position_ids_T: Tensor
    source_N: Tensor
    target_N: Tensor
    tree: TokenTree
    num_row_tokens: int  # tokens of the rows themselves, the shared prefix counted for each: what tokens/s counts

    def on(self, device: torch.device) -> TreeBatch:
        """The same where the model computes, in one copy; the layout of its tree stays on the host."""
        if device.type == "cpu":
            return self
        parts = (self.input_ids_T, self.position_ids_T, self.source_N, self.target_N)
        ids, positions, sources, targets = to_device(torch.cat(parts), device).split([part.numel() for part in parts])
        return replace(self, input_ids_T=ids, position_ids_T=positions, source_N=sources, target_N=targets)


def common_prefix_length(ids: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all sequences share; at most all but the last token of the shortest."""
    if not ids:
        return 0
    low, high = min(map(tuple, ids)), max(map(tuple, ids))  # the common prefix of the extremes is common to everything between
    limit = min(len(row) for row in ids) - 1
    n = 0
    while n < limit and low[n] == high[n]:
        n += 1
    return n


def tree_batch(rows: Sequence[TokenRow], *, share_prefix: bool = True) -> TreeBatch:
    """Lay out rows as a tree. With `share_prefix=False` every row is a leaf of its own: the plain twin for parity tests.

    The prefix ends before the first label of any row, so each label is counted once for each row, and its hidden state
    (for a row's first label, perhaps the last prefix token) is the same as in the row alone.
    """
    first_label = min(row.is_label.index(True) if row.num_labels else len(row.is_label) for row in rows)
    num_prefix = min(common_prefix_length([row.input_ids for row in rows]), first_label) if share_prefix else 0
    leaf_lengths = [len(row.input_ids) - num_prefix for row in rows]
    ids = list(rows[0].input_ids[:num_prefix])
    positions = list(range(num_prefix))
    sources: list[int] = []
    targets: list[int] = []
    for row in rows:
        offset = len(ids) - num_prefix
        for t, wanted in enumerate(row.is_label):
            if wanted and t > 0:
                sources.append(t - 1 if t - 1 < num_prefix else offset + t - 1)
                targets.append(row.input_ids[t])
        ids.extend(row.input_ids[num_prefix:])
        positions.extend(range(num_prefix, len(row.input_ids)))
    return TreeBatch(
        input_ids_T=torch.tensor(ids),
        position_ids_T=torch.tensor(positions),
        source_N=torch.tensor(sources, dtype=torch.long),
        target_N=torch.tensor(targets, dtype=torch.long),
        tree=layout_tree(num_prefix, leaf_lengths),
        num_row_tokens=sum(len(row.input_ids) for row in rows),
    )
