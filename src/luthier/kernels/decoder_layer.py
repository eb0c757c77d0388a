"""A decoder layer with adapters on all its linear layers as two autograd functions, one before attention and one behind it; or as one.

    x1 = x + O(attention(rotate(Q(n1(x))), rotate(K(n1(x))), V(n1(x))))          n1, n2: RMSNorm;  every capital a frozen linear layer
    y  = x1 + D(silu(G(n2(x1))) * U(n2(x1)))                                     with its low-rank adapter: W h + b + B (scale * A h)

Taken apart, a layer is some hundred small operations forward and two hundred backward, and on a CPU an update of a few hundred tokens
spends half as long on them as on the large products. Here sums are made inside the products of their parts, what is cheap (norms, silu)
is computed again instead of being kept, and what lies between products is one pass each (`fused.py`, `narrow.py`, `wide.py`); where
`adapted_layer.py` can, all of a half is one call, or all of a layer.

Shapes: T tokens, E hidden, F feed-forward width, S = H + 2K heads of size D, R rank. Plain twin: `reference.decoder_layer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.kernels import adapted_layer, fused, narrow, wide
from luthier.kernels.layer_parts import Adapted, Norm, Seen, Turn


def attention_input(x_TE: Tensor, norm: Norm, q: Adapted, k: Adapted, v: Adapted, turn: Turn) -> Tensor:
    """Rotated queries and keys, and values, [T, S, D]."""
    return _AttentionInput.apply(x_TE, norm, (q, k, v), turn, q.a_RI, k.a_RI, v.a_RI, q.b_OR, k.b_OR, v.b_OR)  # pyright: ignore[reportReturnType]


def attention_output(x_TE: Tensor, attended_TO: Tensor, norm: Norm, o: Adapted, gate: Adapted, up: Adapted, down: Adapted) -> Tensor:
    """What the layer answers, from its input and from the heads' answers: [T, E]."""
    layers = (o, gate, up, down)
    trained = (o.a_RI, gate.a_RI, up.a_RI, down.a_RI, o.b_OR, gate.b_OR, up.b_OR, down.b_OR)
    return _AttentionOutput.apply(x_TE, attended_TO, norm, layers, *trained)  # pyright: ignore[reportReturnType]


def whole_layers(x_TE: Tensor, layers: Sequence[adapted_layer.Ready], turn: Turn, seen: Seen) -> Tensor:
    """What layers answer one behind another, attention over a token tree included: [T, E]. Only where `adapted_layer.suits_pass`."""
    trained = [tensor for layer in layers for tensor in layer.trained]
    return _WholeLayers.apply(x_TE, layers, turn, seen, torch.is_grad_enabled(), *trained)  # pyright: ignore[reportReturnType]


class _WholeLayers(torch.autograd.Function):
    """For each layer both functions below and `tiled_attention` between them, by the same rules."""

    @staticmethod
    def forward(
        ctx: Any, x_TE: Tensor, layers: Sequence[adapted_layer.Ready], turn: Turn, seen: Seen, goes_back: bool, *trained: Tensor
    ) -> Tensor:
        del trained  # parts of the layers
        ctx.layers, ctx.through, ctx.kept = layers, adapted_layer.Pass(layers[0], turn, seen), []
        for layer in layers:
            out_TE, kept_X, r_2T = adapted_layer.forward_layer(x_TE, layer, ctx.through)
            if goes_back:
                ctx.kept.append((x_TE, kept_X, r_2T))
            x_TE = out_TE
        return x_TE

    @staticmethod
    def backward(ctx: Any, g_TE: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grads = adapted_layer.Gradients(ctx.layers)
        grad_x: Tensor | None = g_TE.contiguous()
        for n in reversed(range(len(ctx.layers))):
            assert grad_x is not None
            needs_dx = n > 0 or ctx.needs_input_grad[0]
            x_TE, kept_X, r_2T = ctx.kept.pop()
            grad_x = adapted_layer.backward_layer(grad_x, x_TE, kept_X, r_2T, grads.place(n), ctx.through, needs_dx=needs_dx)
        return grad_x, None, None, None, None, *grads.each()


class _AttentionInput(torch.autograd.Function):
    """For each linear layer, with h its input, u = scale * A h and g the gradient of what it answers:

    dB = g^T u,   c = scale * g B,   dA = c^T h,   dh = g W + c A.   The rotation is turned back first.
    """

    @staticmethod
    def forward(ctx: Any, x_TE: Tensor, norm: Norm, layers: tuple[Adapted, Adapted, Adapted], turn: Turn, *trained: Tensor) -> Tensor:
        del trained  # parts of the layers
        ctx.spec = (norm, layers, turn)
        ctx.in_one_call = adapted_layer.suits(norm, [layers], x_TE, turn.cos_T1D, turn.sin_T1D)
        if ctx.in_one_call:
            out_TSD, r_T1, u_TR = adapted_layer.forward_in(x_TE, norm, layers, turn)
            ctx.save_for_backward(x_TE, r_T1, u_TR)
            return out_TSD
        h_TE, r_T1 = fused.rms_norm(x_TE, norm.weight_E, norm.eps)
        sizes = [layer.weight_OI.shape[0] for layer in layers]
        raw_TO = x_TE.new_empty(x_TE.shape[0], sum(sizes))
        u_TR = _low_rank(h_TE, layers)
        for layer, u, part_TO in zip(layers, _of_each(u_TR, layers), torch.split_with_sizes(raw_TO, sizes, 1), strict=True):
            _linear(h_TE, u, layer, out_TO=part_TO)
        ctx.save_for_backward(x_TE, r_T1, u_TR)
        D = turn.cos_T1D.shape[2]
        return fused.rotate(raw_TO.view(x_TE.shape[0], -1, D), turn.cos_T1D, turn.sin_T1D, values=sizes[2] // D)

    @staticmethod
    def backward(ctx: Any, g_TSD: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TE, r_T1, u_TR = ctx.saved_tensors
        norm, layers, turn = ctx.spec
        if ctx.in_one_call:
            grad_x, grad_a, grad_b = adapted_layer.backward_in(
                g_TSD.contiguous(), x_TE, r_T1, u_TR, norm, layers, turn, needs_dx=ctx.needs_input_grad[0]
            )
            return grad_x, None, None, None, *grad_a, *grad_b
        sizes = [layer.weight_OI.shape[0] for layer in layers]
        g_TSD = fused.rotate(g_TSD, turn.cos_T1D, turn.sin_T1D, values=sizes[2] // g_TSD.shape[2], back=True)
        dh_TE, c_TR, grad_b = _backward(torch.split_with_sizes(g_TSD.view(x_TE.shape[0], -1), sizes, 1), _of_each(u_TR, layers), layers)
        grad_a = _normalised_grad_a(c_TR, x_TE, r_T1, norm).split([layer.a_RI.shape[0] for layer in layers])
        grad_x = fused.rms_norm_backward(dh_TE, x_TE, norm.weight_E, r_T1) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None, *grad_a, *grad_b


class _AttentionOutput(torch.autograd.Function):
    """The same rules, from the end to the beginning."""

    @staticmethod
    def forward(ctx: Any, x_TE: Tensor, attended_TO: Tensor, norm: Norm, layers: tuple[Adapted, ...], *trained: Tensor) -> Tensor:
        del trained  # parts of the layers
        o, gate, up, down = layers
        ctx.spec = (norm, layers)
        ctx.in_one_call = adapted_layer.suits(norm, ((o,), (gate, up), (down,)), x_TE, attended_TO)
        if ctx.in_one_call:
            out_TE, kept = adapted_layer.forward_out(x_TE, attended_TO, norm, layers)
            ctx.save_for_backward(attended_TO, *kept)
            return out_TE
        u_o = _low_rank(attended_TO, (o,))
        x1_TE = _linear(attended_TO, u_o, o, residual_TO=x_TE)
        h_TE, r_T1 = fused.rms_norm(x1_TE, norm.weight_E, norm.eps)
        u_both = _low_rank(h_TE, (gate, up))
        u_gate, u_up = _of_each(u_both, (gate, up))
        gate_TF = _linear(h_TE, u_gate, gate)
        up_TF = _linear(h_TE, u_up, up)
        s_TF = fused.swiglu(gate_TF, up_TF)
        u_down = _low_rank(s_TF, (down,))
        u_X = torch.cat([u_o.view(-1), u_both.view(-1), u_down.view(-1)])
        ctx.save_for_backward(attended_TO, u_X, x1_TE, r_T1, gate_TF, up_TF)
        return _linear(s_TF, u_down, down, residual_TO=x1_TE)

    @staticmethod
    def backward(ctx: Any, g_TE: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        attended_TO, u_X, x1_TE, r_T1, gate_TF, up_TF = ctx.saved_tensors
        norm, (o, gate, up, down) = ctx.spec
        if ctx.in_one_call:
            kept, layers = (u_X, x1_TE, r_T1, gate_TF, up_TF), (o, gate, up, down)
            grad_x, d_attended, grad_a, grad_b = adapted_layer.backward_out(g_TE.contiguous(), attended_TO, kept, norm, layers)
            return grad_x if ctx.needs_input_grad[0] else None, d_attended, None, None, *grad_a, *grad_b
        ranks = [layer.a_RI.shape[0] for layer in (o, gate, up, down)]
        parts = u_X.split([g_TE.shape[0] * n for n in (ranks[0], ranks[1] + ranks[2], ranks[3])])
        u_o, u_both, u_down = (part.view(g_TE.shape[0], -1) for part in parts)
        # 1. the last layer, and silu(gate) * up, which it reads
        ds_TF, c_down, b_down = _backward([g_TE], [u_down], [down])
        d_gate, d_up, s_TF = fused.swiglu_backward(ds_TF, gate_TF, up_TF)
        # 2. gate and up, and the norm they read
        dh_TE, c_both, b_both = _backward([d_gate, d_up], _of_each(u_both, (gate, up)), [gate, up])
        a_both = _normalised_grad_a(c_both, x1_TE, r_T1, norm).split([gate.a_RI.shape[0], up.a_RI.shape[0]])
        d_x1 = fused.rms_norm_backward(dh_TE, x1_TE, norm.weight_E, r_T1, residual_TE=g_TE.contiguous())
        # 3. the layer behind attention
        d_attended, c_o, b_o = _backward([d_x1], [u_o], [o])
        grad_x = d_x1 if ctx.needs_input_grad[0] else None
        return grad_x, d_attended, None, None, narrow.outer(c_o, attended_TO), *a_both, narrow.outer(c_down, s_TF), *b_o, *b_both, *b_down


def _low_rank(h_TI: Tensor, layers: Sequence[Adapted]) -> Tensor:
    """scale * A h of the layers, side by side."""
    u_TR = h_TI.new_empty(h_TI.shape[0], sum(layer.a_RI.shape[0] for layer in layers))
    for layer, part_TR in zip(layers, _of_each(u_TR, layers), strict=True):
        narrow.into_rank(h_TI, layer.a_RI.T, scale=layer.scale, out_TR=part_TR)
    return u_TR


def _of_each(u_TR: Tensor, layers: Sequence[Adapted]) -> tuple[Tensor, ...]:
    return torch.split_with_sizes(u_TR, [layer.a_RI.shape[0] for layer in layers], 1)


def _linear(h_TI: Tensor, u_TR: Tensor, layer: Adapted, *, residual_TO: Tensor | None = None, out_TO: Tensor | None = None) -> Tensor:
    """B u + W h + bias + residual; `u_TR` is scale * A h."""
    parts = [(u_TR, layer.b_OR.T), (h_TI, layer.weight_OI.T)]
    return wide.product(parts, bias_O=layer.bias_O, residual_TO=residual_TO, out_TO=out_TO)


def _backward(g_TOs: Sequence[Tensor], u_TRs: Sequence[Tensor], layers: Sequence[Adapted]) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
    """Through layers that read the same input: gradient of that input, c of all layers [T, sum of R], gradient of each B."""
    ranks = [layer.a_RI.shape[0] for layer in layers]
    c_TR = g_TOs[0].new_empty(g_TOs[0].shape[0], sum(ranks))
    grad_b: list[Tensor] = []
    for g_TO, u_TR, layer, c in zip(g_TOs, u_TRs, layers, torch.split_with_sizes(c_TR, ranks, 1), strict=True):
        narrow.into_rank(g_TO, layer.b_OR, scale=layer.scale, out_TR=c)
        grad_b.append(narrow.outer(u_TR, g_TO, transposed=True))
    a_RI = torch.cat([layer.a_RI for layer in layers]) if len(layers) > 1 else layers[0].a_RI
    dh_TI = wide.product([(c_TR, a_RI), *((g_TO, layer.weight_OI) for g_TO, layer in zip(g_TOs, layers, strict=True))])
    return dh_TI, c_TR, grad_b


def _normalised_grad_a(c_TR: Tensor, x_TE: Tensor, r_T1: Tensor, norm: Norm) -> Tensor:
    """dA = c^T h for a normalised h = r * x * w, without forming h: (r * c)^T x * w."""
    return narrow.outer(c_TR, x_TE, token_scale_T1=r_T1, scale_O=norm.weight_E)
