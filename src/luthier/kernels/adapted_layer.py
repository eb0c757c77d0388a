"""A decoder layer with adapters, for many tokens, in one call forward and one backward, or without its attention in two and two:
`adapted_layer.cpp`, on processors with tiles (`tiles.h`).

It is `reference.decoder_layer`; bit-equal to the operations called one by one, as `decoder_layer.py` does where anything is not as `suits`
asks, but for the gradient of a whole layer's input, which is rounded once and not twice (tests/parity/test_adapted_layer.py).

Shapes: T tokens, E hidden, F feed-forward width, S = H + 2K heads of size D, R rank.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from luthier.kernels import wide
from luthier.kernels.compiled import library
from luthier.kernels.layer_parts import Adapted, Norm, Parts, Seen, Turn


class _Layer(ctypes.Structure):
    """`Adapted` of the C++ file."""

    _fields_ = (
        ("w", ctypes.c_void_p), ("O", ctypes.c_int64), ("K", ctypes.c_int64), ("bias", ctypes.c_void_p), ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p), ("R", ctypes.c_int64), ("grad_a", ctypes.c_void_p), ("grad_b", ctypes.c_void_p), ("scale", ctypes.c_double),
    )  # fmt: skip


class _Around(ctypes.Structure):
    """`Around` of the C++ file."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("norm1", "norm2", "cos", "sin")),
        ("segments", ctypes.POINTER(ctypes.c_int64)),
        *((name, ctypes.c_int64) for name in ("num_segments", "P", "H", "K", "D")),
        *((name, ctypes.c_double) for name in ("eps1", "eps2", "scaling")),
    )


def suits(norm: Norm, by_input: Sequence[Sequence[Adapted]], *others: Tensor) -> bool:
    """Whether all is bf16 on the host and in one piece, every width whole thirty-twos, and there are tokens enough for `wide.h`.

    `by_input`: layers that read the same input; `others` are numbers of each token, the first of them [T, ...].
    """
    return _suit_tokens(*others) and _suit(norm, by_input)


def _suit_tokens(*others: Tensor) -> bool:
    return (
        bool(library().tiles)
        and others[0].shape[0] > wide.FEW_TOKENS
        and all(t.dtype == torch.bfloat16 and t.is_cpu and t.is_contiguous() for t in others)
    )


def _suit(norm: Norm, by_input: Sequence[Sequence[Adapted]]) -> bool:
    layers = [layer for group in by_input for layer in group]
    matrices = [tensor for layer in layers for tensor in (layer.weight_OI, layer.a_RI, layer.b_OR)]
    biases = [layer.bias_O for layer in layers if layer.bias_O is not None]
    return (
        bool(library().tiles)
        and all(t.dtype == torch.bfloat16 and t.is_cpu and t.is_contiguous() for t in (norm.weight_E, *matrices, *biases))
        and all(side % 32 == 0 for layer in layers for side in layer.weight_OI.shape)
        and all(layer.a_RI.shape[0] % 16 == 0 for layer in layers)
        and all(layer.weight_OI.shape[1] + layer.a_RI.shape[0] <= wide.MAX_K for layer in layers)
        and all(sum(layer.weight_OI.shape[0] for layer in group) + _ranks(group) <= wide.MAX_K for group in by_input)
    )


def forward_in(x_TE: Tensor, norm: Norm, layers: Sequence[Adapted], turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K, V: rotated heads [T, S, D]; 1 / rms of x [T, 1]; u = scale * A h of each layer [T, 3R]."""
    T, D = x_TE.shape[0], turn.cos_T1D.shape[2]
    out_TSD = x_TE.new_empty(T, sum(layer.weight_OI.shape[0] for layer in layers) // D, D)
    r_T1 = x_TE.new_empty(T, 1, dtype=torch.float32)
    u_TR = x_TE.new_empty(T, _ranks(layers))
    library().tiles["adapted_in"](
        _as_read(layers), norm.weight_E.data_ptr(), norm.eps, x_TE.data_ptr(), T, turn.cos_T1D.data_ptr(), turn.sin_T1D.data_ptr(), D,
        out_TSD.data_ptr(), r_T1.data_ptr(), u_TR.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out_TSD, r_T1, u_TR


def backward_in(
    g_TSD: Tensor, x_TE: Tensor, r_T1: Tensor, u_TR: Tensor, norm: Norm, layers: Sequence[Adapted], turn: Turn, *, needs_dx: bool
) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
    """Gradients of x, of each A and of each B."""
    grads_a, grads_b = _grads(layers, [layers])
    dx_TE = torch.empty_like(x_TE) if needs_dx else None
    library().tiles["adapted_in_backward"](
        _as_read(layers, grads_a, grads_b), norm.weight_E.data_ptr(), x_TE.data_ptr(), x_TE.shape[0], turn.cos_T1D.data_ptr(),
        turn.sin_T1D.data_ptr(), g_TSD.shape[2], r_T1.data_ptr(), u_TR.data_ptr(), g_TSD.data_ptr(), None,
        None if dx_TE is None else dx_TE.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return dx_TE, grads_a, grads_b


Kept = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def forward_out(x_TE: Tensor, attended_TO: Tensor, norm: Norm, layers: Sequence[Adapted]) -> tuple[Tensor, Kept]:
    """O; gate, up; down: what the layer answers [T, E], and what `backward_out` needs: u of all, x1, 1 / rms, gate, up."""
    T, F = x_TE.shape[0], layers[1].weight_OI.shape[0]
    kept = (
        x_TE.new_empty(T * _ranks(layers)), torch.empty_like(x_TE), x_TE.new_empty(T, 1, dtype=torch.float32), x_TE.new_empty(T, F),
        x_TE.new_empty(T, F),
    )  # fmt: skip
    out_TE = torch.empty_like(x_TE)
    library().tiles["adapted_out"](
        _as_read(layers), norm.weight_E.data_ptr(), norm.eps, x_TE.data_ptr(), attended_TO.data_ptr(), T, _addresses(kept),
        out_TE.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out_TE, kept


def backward_out(
    g_TE: Tensor, attended_TO: Tensor, kept: Kept, norm: Norm, layers: Sequence[Adapted]
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Gradients of x, of what the heads answered, of each A and of each B."""
    grads_a, grads_b = _grads(layers, [layers[:1], layers[1:3], layers[3:]])
    dx_TE, d_attended_TO = torch.empty_like(g_TE), torch.empty_like(attended_TO)
    library().tiles["adapted_out_backward"](
        _as_read(layers, grads_a, grads_b), norm.weight_E.data_ptr(), attended_TO.data_ptr(), g_TE.shape[0], _addresses(kept),
        g_TE.data_ptr(), dx_TE.data_ptr(), d_attended_TO.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return dx_TE, d_attended_TO, grads_a, grads_b


@dataclass(frozen=True, slots=True)
class Ready:
    """A layer all of which can be computed here, attention included, as the C++ file reads it; good while its tensors stay in place."""

    parts: Parts
    read: ctypes.Array[_Layer]
    norms: tuple[int, int]  # their addresses
    num_kept: int  # numbers of bf16 that are kept of a token
    trained: tuple[Tensor, ...]  # every A, then every B
    places: tuple[int, ...]  # of their gradients in the layer's room, in bytes
    num_trained: int


def ready(parts: Parts) -> Ready | None:
    """None for a layer that `suits` none of the calls."""
    q, k, v, o, gate, up, down = parts.layers
    if not (_suit(parts.norm1, [(q, k, v)]) and _suit(parts.norm2, [(o,), (gate, up), (down,)])):
        return None
    widths = [layer.weight_OI.shape[0] for layer in (q, k, v, q, o, gate, up)]
    norms = (parts.norm1.weight_E.data_ptr(), parts.norm2.weight_E.data_ptr())
    trained = (*(layer.a_RI for layer in parts.layers), *(layer.b_OR for layer in parts.layers))
    *places, num_trained = accumulate((tensor.numel() for tensor in trained), initial=0)
    return Ready(
        parts, _as_read(parts.layers), norms, sum(widths) + _ranks(parts.layers), trained, tuple(2 * place for place in places), num_trained
    )


def suits_pass(x_TE: Tensor, turn: Turn) -> bool:
    """Whether tokens like these can be taken through layers that are `ready`."""
    return turn.cos_T1D.shape[2] % 32 == 0 and _suit_tokens(x_TE, turn.cos_T1D, turn.sin_T1D)


class Pass:
    """What the layers of one pass have in common. The first layer's shape is that of all."""

    def __init__(self, layer: Ready, turn: Turn, seen: Seen) -> None:
        ends = (ctypes.c_int64 * (2 * len(seen.segments)))(*(end for segment in seen.segments for end in segment))
        size = turn.cos_T1D.shape[2]
        heads, key_heads = (linear.weight_OI.shape[0] // size for linear in layer.parts.layers[:2])
        self._around = _Around(
            *layer.norms, turn.cos_T1D.data_ptr(), turn.sin_T1D.data_ptr(), ends, len(seen.segments), seen.num_prefix, heads, key_heads,
            size, 0.0, 0.0, seen.scaling,
        )  # fmt: skip
        self._alive = turn  # its addresses are held

    def around(self, layer: Ready) -> Any:
        """`Around` of the C++ file, for this layer until the next is asked for."""
        self._around.norm1, self._around.norm2 = layer.norms
        self._around.eps1, self._around.eps2 = layer.parts.norm1.eps, layer.parts.norm2.eps
        return ctypes.byref(self._around)


def forward_layer(x_TE: Tensor, layer: Ready, through: Pass) -> tuple[Tensor, Tensor, Tensor]:
    """What the layer answers [T, E], and what `backward_layer` needs: all numbers of bf16, and 1 / rms of both norms."""
    T = x_TE.shape[0]
    kept_X = x_TE.new_empty(T * layer.num_kept)
    r_2T, out_TE = x_TE.new_empty(2, T, dtype=torch.float32), torch.empty_like(x_TE)
    library().tiles["adapted_layer"](
        layer.read, through.around(layer), x_TE.data_ptr(), T, kept_X.data_ptr(), r_2T.data_ptr(), out_TE.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return out_TE, kept_X, r_2T


class Gradients:
    """Room for the gradients of all that layers train, in one piece: hundreds of small ones took longer than what is written to them."""

    def __init__(self, layers: Sequence[Ready]) -> None:
        self._layers = layers
        sizes = [layer.num_trained for layer in layers]
        self._room_X = layers[0].trained[0].new_empty(sum(sizes))
        self._starts = [self._room_X.data_ptr() + 2 * before for before in accumulate(sizes, initial=0)]

    def place(self, n: int) -> Ready:
        """Layer n, told where its gradients go."""
        layer, start = self._layers[n], self._starts[n]
        num = len(layer.read)
        for read, at_a, at_b in zip(layer.read, layer.places[:num], layer.places[num:], strict=True):
            read.grad_a, read.grad_b = start + at_a, start + at_b
        return layer

    def each(self) -> list[Tensor]:
        """Of each layer every A's, then every B's."""
        trained = [tensor for layer in self._layers for tensor in layer.trained]
        parts = self._room_X.split_with_sizes([tensor.numel() for tensor in trained])
        return [part.view(tensor.shape) for part, tensor in zip(parts, trained, strict=True)]


def backward_layer(
    g_TE: Tensor, x_TE: Tensor, kept_X: Tensor, r_2T: Tensor, layer: Ready, through: Pass, *, needs_dx: bool
) -> Tensor | None:
    """Gradient of x; those of each A and B go where `Gradients.place` said."""
    dx_TE = torch.empty_like(x_TE) if needs_dx else None
    library().tiles["adapted_layer_backward"](
        layer.read, through.around(layer), x_TE.data_ptr(), x_TE.shape[0], kept_X.data_ptr(), r_2T.data_ptr(), g_TE.data_ptr(),
        None if dx_TE is None else dx_TE.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return dx_TE


def _ranks(layers: Sequence[Adapted]) -> int:
    return sum(layer.a_RI.shape[0] for layer in layers)


def _grads(layers: Sequence[Adapted], by_input: Sequence[Sequence[Adapted]]) -> tuple[list[Tensor], list[Tensor]]:
    """Room for the gradients of each A, those of layers with one input one behind another, and of each B."""
    grads_a: list[Tensor] = []
    for group in by_input:
        ranks = [layer.a_RI.shape[0] for layer in group]
        grads_a += group[0].a_RI.new_empty(sum(ranks), group[0].a_RI.shape[1]).split(ranks)
    return grads_a, [torch.empty_like(layer.b_OR) for layer in layers]


def _as_read(layers: Sequence[Adapted], grads_a: Sequence[Tensor] = (), grads_b: Sequence[Tensor] = ()) -> ctypes.Array[_Layer]:
    """As the C++ file reads them. Looked up at each pass: a sharded model holds its parameters only during it."""
    rows = (
        (
            layer.weight_OI.data_ptr(), *layer.weight_OI.shape, None if layer.bias_O is None else layer.bias_O.data_ptr(),
            layer.a_RI.data_ptr(), layer.b_OR.data_ptr(), layer.a_RI.shape[0], grads_a[n].data_ptr() if grads_a else None,
            grads_b[n].data_ptr() if grads_b else None, layer.scale,
        )
        for n, layer in enumerate(layers)
    )  # fmt: skip
    return (_Layer * len(layers))(*rows)


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
