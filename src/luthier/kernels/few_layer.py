"""A decoder layer but for its attention, for few tokens, in two calls, or all layers in one: `few_layer.cpp`, on processors with tiles
(`tiles.h`).

With attention in between it is `reference.decoder_layer`; bit-equal to the same operations called one by one, as `models/fast_body.py` does
where there are many tokens, several voices, or no such processor (tests/parity/test_few_layer.py).

Shapes: X tokens, at most `wide.FEW_TOKENS`, E hidden, S heads of queries, keys and values, D head size, R rank.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.kernels import wide
from luthier.kernels.compiled import library


@dataclass(frozen=True, slots=True)
class Joined:
    """Layers that read the same input, [O, I], and an adapter of theirs, if any: B (scale * A h)."""

    weight_OI: Tensor
    bias_O: Tensor | None
    a_RI: Tensor | None
    scale_R: Tensor | None
    b_OR: Tensor | None

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.weight_OI, self.bias_O, self.a_RI, self.scale_R, self.b_OR) if t is not None)

    def suits(self) -> bool:
        """Whether all that is read is bf16 on the host, in one piece, in whole thirty-twos."""
        matrices = [t for t in (self.weight_OI, self.a_RI, self.b_OR) if t is not None]
        return all(wide.has_own(t) for t in matrices) and all(t.is_contiguous() and t.dtype == torch.bfloat16 for t in self._tensors)

    def numbers(self) -> list[int]:
        """As `few_layer.cpp` reads them."""
        where = [0 if t is None else t.data_ptr() for t in (self.bias_O, self.a_RI, self.scale_R, self.b_OR)]
        ranks = 0 if self.a_RI is None else self.a_RI.shape[0]
        return [self.weight_OI.data_ptr(), *self.weight_OI.shape, where[0], where[1], ranks, where[2], where[3]]


@dataclass(frozen=True, slots=True)
class Layer:
    """Where everything lies, for C++, and what keeps it there."""

    addresses: ctypes.Array[ctypes.c_int64]
    parts: tuple[Joined, Joined, Joined, Joined]
    norms: tuple[Tensor, Tensor]
    eps: float


def read_layer(parts: Sequence[Joined], norm1_E: Tensor, norm2_E: Tensor, eps: float) -> Layer | None:
    """`parts`: Q, K, V; O; gate, up; down. None where `few_layer.cpp` cannot compute them."""
    norms = (norm1_E, norm2_E)
    if (
        not library().tiles
        or not all(part.suits() for part in parts)
        or any(n.dtype != torch.bfloat16 or not n.is_contiguous() for n in norms)
    ):
        return None
    qkv, o, gate_up, down = parts
    numbers = [n for part in parts for n in part.numbers()] + [n.data_ptr() for n in norms]
    return Layer((ctypes.c_int64 * len(numbers))(*numbers), (qkv, o, gate_up, down), norms, eps)


def layer_in(layer: Layer, x_XE: Tensor, cos_X1D: Tensor, sin_X1D: Tensor, *, values: int) -> Tensor:
    """Rotated queries and keys, and values, which are the last `values` heads: [X, S, D]."""
    X, D = x_XE.shape[0], cos_X1D.shape[-1]
    out_XSD = x_XE.new_empty(X, layer.parts[0].weight_OI.shape[0] // D, D)
    library().tiles["layer_in"](
        layer.addresses, x_XE.data_ptr(), X, layer.eps, cos_X1D.data_ptr(), sin_X1D.data_ptr(), D, values, out_XSD.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return out_XSD


def layer_out(layer: Layer, attended_XO: Tensor, x_XE: Tensor) -> Tensor:
    """What the layer answers, from what the heads answered and its input: [X, E]."""
    out_XE = torch.empty_like(x_XE)
    threads = torch.get_num_threads()
    library().tiles["layer_out"](
        layer.addresses, attended_XO.data_ptr(), x_XE.data_ptr(), x_XE.shape[0], layer.eps, out_XE.data_ptr(), threads
    )
    return out_XE


@dataclass(frozen=True, slots=True)
class Layers:
    """All layers of a model, one behind another, for C++, and what keeps them there."""

    addresses: ctypes.Array[ctypes.c_void_p]
    layers: tuple[Layer, ...]
    scaling: float


def read_layers(layers: Sequence[Layer | None], scalings: Sequence[float], *, head_dim: int) -> Layers | None:
    """None where one of them cannot be computed here, or their attention (`step_attention.cpp`) cannot."""
    read = tuple(layer for layer in layers if layer is not None)
    if len(read) < len(layers) or len(set(scalings)) != 1 or head_dim % 32:
        return None
    return Layers((ctypes.c_void_p * len(read))(*(ctypes.addressof(layer.addresses) for layer in read)), read, scalings[0])


def next_states(layers: Layers, x_RE: Tensor, cos_R1D: Tensor, sin_R1D: Tensor, store: Tensor, slot_R: Tensor) -> Tensor:
    """One new token for each of R rows through all layers, [R, E], before the last norm.

    `store` [layers, 2, rows, C, K, D] holds the rows' keys and values and gets the new ones at flat place `slot_R` of (rows, C).
    """
    (_, _, rows, C, K, D), R = store.shape, x_RE.shape[0]
    assert store.is_contiguous() and store.dtype == torch.bfloat16 and min(rows, wide.FEW_TOKENS) >= R
    heads = layers.layers[0].parts[0].weight_OI.shape[0] // D - 2 * K
    out_RE = torch.empty_like(x_RE)
    library().tiles["few_layers"](
        layers.addresses, len(layers.layers), x_RE.data_ptr(), R, layers.layers[0].eps, cos_R1D.data_ptr(), sin_R1D.data_ptr(),
        store.data_ptr(), rows, C, slot_R.data_ptr(), heads, K, D, layers.scaling, out_RE.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out_RE
