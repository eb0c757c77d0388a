"""Where the tokens of a tree of depth one stand: flat, and as a grid of leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTree:
    """The attention layout of T flat tokens: P prefix tokens, then R leaves of at most L tokens. Its tensors stay on the host."""

    num_prefix: int
    leaf_grid_RL: Tensor  # flat position of token i of leaf r; padding repeats the leaf's last token
    flat_slot_T: Tensor  # slot of token t in the flattened grid (leaf tokens only)


def layout_tree(num_prefix: int, leaf_lengths: Sequence[int]) -> TokenTree:
    """The layout of a prefix and leaves of the given lengths (each >= 1)."""
    longest = max(leaf_lengths)
    starts = [num_prefix]
    for length in leaf_lengths[:-1]:
        starts.append(starts[-1] + length)
    lengths_R = torch.tensor(leaf_lengths)
    column_L = torch.arange(longest)
    grid_RL = torch.tensor(starts)[:, None] + torch.minimum(column_L[None, :], lengths_R[:, None] - 1)
    real_RL = column_L[None, :] < lengths_R[:, None]
    slot_T = torch.zeros(num_prefix + sum(leaf_lengths), dtype=torch.long)
    slot_T[grid_RL[real_RL]] = torch.arange(len(leaf_lengths) * longest).view(len(leaf_lengths), longest)[real_RL]
    return TokenTree(num_prefix=num_prefix, leaf_grid_RL=grid_RL, flat_slot_T=slot_T)
