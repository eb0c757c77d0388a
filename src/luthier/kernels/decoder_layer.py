"""A decoder layer with adapters on all its linear layers as two autograd functions, one before attention and one behind it.

    x1 = x + O(attention(rotate(Q(n1(x))), rotate(K(n1(x))), V(n1(x))))          n1, n2: RMSNorm;  every capital a frozen linear layer
    y  = x1 + D(silu(G(n2(x1))) * U(n2(x1)))                                     with its low-rank adapter: W h + b + B (scale * A h)

Taken apart, a layer is some hundred small operations forward and two hundred backward, and on a CPU an update of a few hundred tokens
spends half as long on them as on the large products. Here adapters that read the same input (Q, K, V; G, U) share their product with A,
sums are made inside the products of their parts, and what is cheap (norms, silu) is computed again instead of being kept.

Shapes: T tokens, E hidden, F feed-forward width, S = H + 2K heads of size D, R rank. Plain twin: `reference.decoder_layer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
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


def attention_input(x_TE: Tensor, norm: Norm, q: Adapted, k: Adapted, v: Adapted, turn: Turn) -> Tensor:
    """Rotated queries and keys, and values, [T, S, D]."""
    return _AttentionInput.apply(x_TE, norm, (q, k, v), turn, q.a_RI, k.a_RI, v.a_RI, q.b_OR, k.b_OR, v.b_OR)  # pyright: ignore[reportReturnType]


def attention_output(x_TE: Tensor, attended_TO: Tensor, norm: Norm, o: Adapted, gate: Adapted, up: Adapted, down: Adapted) -> Tensor:
    """What the layer answers, from its input and from the heads' answers: [T, E]."""
    layers = (o, gate, up, down)
    trained = (o.a_RI, gate.a_RI, up.a_RI, down.a_RI, o.b_OR, gate.b_OR, up.b_OR, down.b_OR)
    return _AttentionOutput.apply(x_TE, attended_TO, norm, layers, *trained)  # pyright: ignore[reportReturnType]


class _AttentionInput(torch.autograd.Function):
    """For each linear layer, with h its input, u = scale * A h and g the gradient of what it answers:

    dB = g^T u,   c = scale * g B,   dA = c^T h,   dh = g W + c A.   The rotation is turned back first.
    """

    @staticmethod
    def forward(ctx: Any, x_TE: Tensor, norm: Norm, layers: tuple[Adapted, Adapted, Adapted], turn: Turn, *trained: Tensor) -> Tensor:
        del trained  # parts of the layers
        h_TE, r_T1 = _normalise(x_TE, norm)
        sizes = [layer.weight_OI.shape[0] for layer in layers]
        raw_TO = x_TE.new_empty(x_TE.shape[0], sum(sizes))
        u_TRs = _low_rank(h_TE, layers)
        for layer, u_TR, part_TO in zip(layers, u_TRs, raw_TO.split(sizes, dim=1), strict=True):
            _linear(h_TE, u_TR, layer, out_TO=part_TO)
        ctx.save_for_backward(x_TE, r_T1, *u_TRs)
        ctx.spec = (norm, layers, turn)
        D = turn.cos_T1D.shape[2]
        return _rotate(raw_TO.view(x_TE.shape[0], -1, D), turn, values=sizes[2] // D)

    @staticmethod
    def backward(ctx: Any, g_TSD: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TE, r_T1, *u_TRs = ctx.saved_tensors
        norm, layers, turn = ctx.spec
        sizes = [layer.weight_OI.shape[0] for layer in layers]
        back = Turn(turn.cos_T1D, -turn.sin_T1D)
        g_TO = _rotate(g_TSD, back, values=sizes[2] // g_TSD.shape[2]).view(x_TE.shape[0], -1)
        dh_TE, grad_a, grad_b = _backward(g_TO.split(sizes, dim=1), u_TRs, layers, lambda c: _normalised_grad_a(c, x_TE, r_T1, norm))
        grad_x = _normalise_backward(dh_TE, x_TE, r_T1, norm) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None, *grad_a, *grad_b


class _AttentionOutput(torch.autograd.Function):
    """The same rules, from the end to the beginning."""

    @staticmethod
    def forward(ctx: Any, x_TE: Tensor, attended_TO: Tensor, norm: Norm, layers: tuple[Adapted, ...], *trained: Tensor) -> Tensor:
        del trained  # parts of the layers
        o, gate, up, down = layers
        (u_o,) = _low_rank(attended_TO, (o,))
        x1_TE = _linear(attended_TO, u_o, o).add_(x_TE)
        h_TE, r_T1 = _normalise(x1_TE, norm)
        u_gate, u_up = _low_rank(h_TE, (gate, up))
        gate_TF = _linear(h_TE, u_gate, gate)
        up_TF = _linear(h_TE, u_up, up)
        s_TF = F.silu(gate_TF).mul_(up_TF)
        (u_down,) = _low_rank(s_TF, (down,))
        ctx.save_for_backward(attended_TO, u_o, x1_TE, r_T1, u_gate, u_up, gate_TF, up_TF, u_down)
        ctx.spec = (norm, layers)
        return _linear(s_TF, u_down, down).add_(x1_TE)

    @staticmethod
    def backward(ctx: Any, g_TE: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        attended_TO, u_o, x1_TE, r_T1, u_gate, u_up, gate_TF, up_TF, u_down = ctx.saved_tensors
        norm, (o, gate, up, down) = ctx.spec
        # 1. silu(gate) * up
        silu_TF = F.silu(gate_TF)
        ds_TF, a_down, b_down = _backward([g_TE], [u_down], [down], lambda c: c.T @ (silu_TF * up_TF))
        d_up = silu_TF.mul_(ds_TF)
        d_gate = torch.ops.aten.silu_backward(ds_TF.mul_(up_TF), gate_TF)
        # 2. gate and up, and the norm they read
        grad_a = lambda c: _normalised_grad_a(c, x1_TE, r_T1, norm)  # noqa: E731
        dh_TE, a_both, b_both = _backward([d_gate, d_up], [u_gate, u_up], [gate, up], grad_a)
        d_x1 = _normalise_backward(dh_TE, x1_TE, r_T1, norm).add_(g_TE)
        # 3. the layer behind attention
        d_attended, a_o, b_o = _backward([d_x1], [u_o], [o], lambda c: c.T @ attended_TO)
        return d_x1 if ctx.needs_input_grad[0] else None, d_attended, None, None, *a_o, *a_both, *a_down, *b_o, *b_both, *b_down


def _low_rank(h_TI: Tensor, layers: Sequence[Adapted]) -> tuple[Tensor, ...]:
    """scale * A h for layers that read the same input, in one product."""
    if len(layers) == 1:
        return ((h_TI @ layers[0].a_RI.T).mul_(layers[0].scale),)
    u_TR = h_TI @ torch.cat([layer.a_RI for layer in layers]).T
    return tuple(u.mul_(layer.scale) for u, layer in zip(u_TR.split([layer.a_RI.shape[0] for layer in layers], dim=1), layers, strict=True))


def _linear(h_TI: Tensor, u_TR: Tensor, layer: Adapted, out_TO: Tensor | None = None) -> Tensor:
    """B u + W h + bias; `u_TR` is scale * A h.

    The adapter's part is small. Added to a large part that is already rounded to bf16, most of it would round away, always in the same
    direction; so it comes first, and the large product is added to it before rounding. For the same reason the residual is added last.
    """
    part_TO = torch.mm(u_TR, layer.b_OR.T) if out_TO is None else torch.mm(u_TR, layer.b_OR.T, out=out_TO)
    part_TO.addmm_(h_TI, layer.weight_OI.T)
    return part_TO if layer.bias_O is None else part_TO.add_(layer.bias_O)


def _backward(
    g_TOs: Sequence[Tensor], u_TRs: Sequence[Tensor], layers: Sequence[Adapted], grad_a_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """Through layers that read the same input: gradient of that input, of each A, of each B.

    `grad_a_of` makes dA of all layers from c of all, [T, sum of R]: what they read need not be kept for that.
    """
    ranks = [layer.a_RI.shape[0] for layer in layers]
    c_TR = g_TOs[0].new_empty(g_TOs[0].shape[0], sum(ranks))
    grad_b: list[Tensor] = []
    for g_TO, u_TR, layer, c in zip(g_TOs, u_TRs, layers, c_TR.split(ranks, dim=1), strict=True):
        torch.mm(g_TO, layer.b_OR, out=c).mul_(layer.scale)
        grad_b.append((u_TR.T @ g_TO).T)
    dh_TI = c_TR @ (
        torch.cat([layer.a_RI for layer in layers]) if len(layers) > 1 else layers[0].a_RI
    )  # the small part first, as in `_linear`
    for g_TO, layer in zip(g_TOs, layers, strict=True):
        dh_TI.addmm_(g_TO, layer.weight_OI)
    return dh_TI, grad_a_of(c_TR).split(ranks), grad_b


def _normalise(x_TE: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """RMSNorm, and r = 1 / sqrt(mean(x^2) + eps) for each token in fp32."""
    length_T1 = torch.linalg.vector_norm(x_TE, dim=-1, keepdim=True, dtype=torch.float32)
    r_T1 = length_T1.square_().div_(x_TE.shape[-1]).add_(norm.eps).rsqrt_()
    return (x_TE * r_T1).to(x_TE.dtype).mul_(norm.weight_E), r_T1


def _normalised_grad_a(c_TR: Tensor, x_TE: Tensor, r_T1: Tensor, norm: Norm) -> Tensor:
    """dA = c^T h for a normalised h = r * x * w, without forming h: (r * c)^T x * w."""
    return ((c_TR * r_T1).to(x_TE.dtype).T @ x_TE).mul_(norm.weight_E)


def _normalise_backward(g_TE: Tensor, x_TE: Tensor, r_T1: Tensor, norm: Norm) -> Tensor:
    """With u = g * w:  dx = r * (u - x * r^2 * mean(u * x)), in fp32."""
    u_TE = g_TE.float().mul_(norm.weight_E)
    x32_TE = x_TE.float()
    along_T1 = torch.linalg.vecdot(u_TE, x32_TE)[:, None].mul_(r_T1.square()).div_(-x_TE.shape[-1])
    return u_TE.addcmul_(x32_TE, along_T1).mul_(r_T1).to(x_TE.dtype)


def _rotate(x_TSD: Tensor, turn: Turn, *, values: int) -> Tensor:
    """Turn all heads but the last `values`, which are copied: (a, b) becomes (a cos - b sin, b cos + a sin)."""
    out_TSD = torch.empty_like(x_TSD, memory_format=torch.contiguous_format)  # a gradient comes as the attention kernel laid it out
    turned = x_TSD.shape[1] - values
    half = x_TSD.shape[2] // 2
    x, out = x_TSD[:, :turned], out_TSD[:, :turned]
    torch.mul(x, turn.cos_T1D, out=out)
    out[..., :half].addcmul_(x[..., half:], turn.sin_T1D[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], turn.sin_T1D[..., half:])
    out_TSD[:, turned:] = x_TSD[:, turned:]
    return out_TSD
