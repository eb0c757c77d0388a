"""A decoder layer with adapters but for its attention, for many tokens, in two calls forward and two backward: `adapted_layer.cpp`, on
processors with tiles (`tiles.h`).

With attention in between it is `reference.decoder_layer`; bit-equal to the operations called one by one, as `decoder_layer.py` does where
anything is not as `suits` asks (tests/parity/test_adapted_layer.py).

Shapes: T tokens, E hidden, F feed-forward width, S = H + 2K heads of size D, R rank.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.kernels import wide
from luthier.kernels.compiled import library
from luthier.kernels.layer_parts import Adapted, Norm, Turn


class _Layer(ctypes.Structure):
    """`Adapted` of the C++ file."""

    _fields_ = (
        ("w", ctypes.c_void_p), ("O", ctypes.c_int64), ("K", ctypes.c_int64), ("bias", ctypes.c_void_p), ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p), ("R", ctypes.c_int64), ("grad_a", ctypes.c_void_p), ("grad_b", ctypes.c_void_p), ("scale", ctypes.c_double),
    )  # fmt: skip


def suits(norm: Norm, by_input: Sequence[Sequence[Adapted]], *others: Tensor) -> bool:
    """Whether all is bf16 on the host and in one piece, every width whole thirty-twos, and there are tokens enough for `wide.cpp`.

    `by_input`: layers that read the same input; `others` are numbers of each token, the first of them [T, ...].
    """
    if not library().tiles or others[0].shape[0] <= wide.FEW_TOKENS:
        return False
    layers = [layer for group in by_input for layer in group]
    matrices = [tensor for layer in layers for tensor in (layer.weight_OI, layer.a_RI, layer.b_OR)]
    biases = [layer.bias_O for layer in layers if layer.bias_O is not None]
    return (
        all(t.dtype == torch.bfloat16 and t.is_cpu and t.is_contiguous() for t in (norm.weight_E, *matrices, *biases, *others))
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
        turn.sin_T1D.data_ptr(), g_TSD.shape[2], r_T1.data_ptr(), u_TR.data_ptr(), g_TSD.data_ptr(),
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
