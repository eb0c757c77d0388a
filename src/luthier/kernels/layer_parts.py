"""What a decoder layer is made of, for the files that compute one: `decoder_layer.py`, `adapted_layer.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Adapted:
    """A frozen linear layer and its adapter."""

    weight_OI: Tensor
    bias_O: Tensor | None
    a_RI: Tensor
    b_OR: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class Norm:
    """A frozen RMSNorm."""

    weight_E: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Turn:
    """Rotary embedding of T positions: cos and sin, [T, 1, D]; both halves of D alike."""

    cos_T1D: Tensor
    sin_T1D: Tensor


@dataclass(frozen=True, slots=True)
class Seen:
    """Which tokens of a flat tree see one another: the ranges of its prefix, if any, and of every leaf (`tiled_attention.py`)."""

    segments: Sequence[tuple[int, int]]
    num_prefix: int
    scaling: float


@dataclass(frozen=True, slots=True)
class Parts:
    """A decoder layer: `layers` are q, k, v, o, gate, up and down."""

    norm1: Norm
    norm2: Norm
    layers: tuple[Adapted, ...]
