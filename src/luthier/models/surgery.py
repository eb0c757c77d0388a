"""Fast kernels in place of layers of a model, where they compute the same.

No class and no module of another package is changed: only the `forward` of single layers of this one model, each after its fast twin gave
the layer's own answer on random input. A layer of another kind (another activation, dropout, DoRA) keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from luthier.kernels.adapted_layer import Ready, ready, suits_pass
from luthier.kernels.decoder_layer import attention_input, attention_output, whole_layers
from luthier.kernels.device import to_device
from luthier.kernels.layer_parts import Adapted, Norm, Parts, Seen, Turn
from luthier.kernels.lora_linear import lora_linear
from luthier.kernels.rms_norm import rms_norm
from luthier.kernels.swiglu import swiglu
from luthier.kernels.tree_attention import tree_attention
from luthier.kernels.tree_layout import layout_tree
from luthier.models.backbone import TreeLayout

CHECKED_TOKENS = 3
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
ADAPTER = "default"
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def use_fast_kernels(model: nn.Module) -> dict[str, int]:
    """Replace what can be replaced (in place); how many layers of each kind were."""
    found = {"lora_linear": 0, "rms_norm": 0, "swiglu": 0, "decoder_layer": 0}
    for module in model.modules():
        layer: Any = module
        if isinstance(module, PeftLoraLinear):
            found["lora_linear"] += _replace(layer, _fast_lora(layer), width=layer.in_features)
        elif type(module).__name__.endswith("RMSNorm") and getattr(layer, "weight", None) is not None:
            eps = getattr(layer, "variance_epsilon", None) or getattr(layer, "eps", None)
            if eps is not None:
                width = layer.weight.shape[0]
                found["rms_norm"] += any(_replace(layer, fast, width=width, alike=_each_alike) for fast in _fast_norms(layer, float(eps)))
        elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            found["swiglu"] += _replace(layer, _fast_mlp(layer), width=layer.gate_proj.in_features)
    layers = [module for module in model.modules() if hasattr(module, "self_attn")]
    found["decoder_layer"] = sum(_replace_layer(layer, is_last=layer is layers[-1]) for layer in layers)
    if layers and found["decoder_layer"] == len(layers):
        _join_layers(layers[:-1])
    return found


def _replace_layer(layer: Any, *, is_last: bool) -> bool:
    """Use the functions of `decoder_layer` for passes over a token tree, if they answer as the layer does; other passes keep its own."""
    if not _is_adapted_llama(layer):
        return False
    own = layer.forward

    def forward(hidden_states: Tensor, **given: Any) -> Tensor:
        layout = given.get("layout")
        if not isinstance(layout, TreeLayout):
            return own(hidden_states, **given)
        compute = partial(_fast_layer, layer, turn=given["position_embeddings"], layout=layout, is_last=is_last)
        # transformers 5.23 puts activation checkpointing into the `forward` replaced here, earlier versions around it
        if layer.training and getattr(layer, "gradient_checkpointing", False) and hasattr(type(layer).forward, "__wrapped__"):
            return layer._gradient_checkpointing_func(compute, hidden_states)
        return compute(hidden_states)

    example = _example_pass(layer)
    with torch.no_grad():
        want, got = own(**example), forward(**example)
    if not isinstance(want, Tensor) or not _alike(got, want):
        return False
    layer.forward = forward
    return True


def _join_layers(layers: Sequence[Any]) -> None:
    """Let the first of these layers answer for all of them in passes that their kernel can compute, and the others hand that on."""
    joined = Joined(layers)

    def answer_for_all(own: Callable[..., Tensor], hidden_states: Tensor, **given: Any) -> Tensor:
        layout = given.get("layout")
        if isinstance(layout, TreeLayout):
            turned = _turn(given["position_embeddings"])
            whole = joined.ready() if suits_pass(hidden_states[0], turned) else None
            if whole is not None:
                layout.plan.joined = True
                return whole_layers(hidden_states[0], whole, turned, _seen(layout, layers[0].self_attn))[None]
        return own(hidden_states, **given)

    def hand_on(own: Callable[..., Tensor], hidden_states: Tensor, **given: Any) -> Tensor:
        layout = given.get("layout")
        return hidden_states if isinstance(layout, TreeLayout) and layout.plan.joined else own(hidden_states, **given)

    for n, layer in enumerate(layers):
        layer.forward = partial(hand_on if n else answer_for_all, layer.forward)


class Joined:
    """Layers that are computed in one go while all of their tensors are here and suit. What was found of them is kept until one moves."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        self._holders = [(module._parameters, name) for layer in layers for module in layer.modules() for name in module._parameters]
        self._addresses: list[int] = []
        self._ready: list[Ready] | None = None

    def ready(self) -> list[Ready] | None:
        """None where activations are not kept, a rank holds a share of the weights, or a layer is one of those that are computed apart."""
        first = self._layers[0]
        tensors = [held[name] for held, name in self._holders]
        if (first.training and getattr(first, "gradient_checkpointing", False)) or any(isinstance(t, DTensor) for t in tensors):
            return None
        addresses = [0 if t is None else t.data_ptr() for t in tensors]
        if addresses != self._addresses:
            found = [ready(_parts(layer)) for layer in self._layers]
            self._ready = [one for one in found if one is not None]
            self._addresses = addresses
            if len(self._ready) < len(found):
                self._ready = None
        return self._ready


def _is_adapted_llama(layer: Any) -> bool:
    """Whether a layer has the seven linear layers and two norms of Llama, and adapters alone are trained."""
    parts = (layer.self_attn, getattr(layer, "mlp", None))
    linears = [getattr(part, name) for name in LINEARS for part in parts if hasattr(part, name)]
    norms = [getattr(layer, name, None) for name in ("input_layernorm", "post_attention_layernorm")]
    return (
        len(linears) == len(LINEARS)
        and all(isinstance(linear, PeftLoraLinear) and _fast_lora(linear) is not None for linear in linears)
        and all(norm is not None and hasattr(norm, "variance_epsilon") and not norm.weight.requires_grad for norm in norms)
    )


def _fast_layer(layer: Any, x_1TE: Tensor, *, turn: tuple[Tensor, Tensor], layout: TreeLayout, is_last: bool) -> Tensor:
    """[1, T, E], or from the last layer [1, N, E] for the tokens that will be read.

    Parameters are looked up at each pass: a sharded model holds them only during it.
    """
    attention, x_TE, parts, turned = layer.self_attn, x_1TE[0], _parts(layer), _turn(turn)
    q, k, v, o, gate, up, down = parts.layers
    wanted_N = layout.wanted_N if is_last else None
    if wanted_N is None and suits_pass(x_TE, turned) and (whole := ready(parts)) is not None:
        return whole_layers(x_TE, [whole], turned, _seen(layout, attention))[None]
    x_TSD = attention_input(x_TE, parts.norm1, q, k, v, turned)
    num_query_heads = q.weight_OI.shape[0] // attention.head_dim
    out_TO = tree_attention(x_TSD, layout.tree, layout.plan, num_query_heads=num_query_heads, scaling=attention.scaling).flatten(1)
    if wanted_N is not None:
        x_TE, out_TO = x_TE.index_select(0, wanted_N), out_TO.index_select(0, wanted_N)
        layout.plan.narrowed = True
    return attention_output(x_TE, out_TO, parts.norm2, o, gate, up, down)[None]


def _parts(layer: Any) -> Parts:
    attention, mlp = layer.self_attn, layer.mlp
    linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return Parts(_norm(layer.input_layernorm), _norm(layer.post_attention_layernorm), tuple(map(_adapted, linears)))


def _turn(turn: tuple[Tensor, Tensor]) -> Turn:
    return Turn(*(table[0][:, None] for table in turn))


def _seen(layout: TreeLayout, attention: Any) -> Seen:
    return Seen(layout.plan.segments_of(layout.tree), layout.tree.num_prefix, float(attention.scaling))


def _adapted(linear: Any) -> Adapted:
    base: nn.Linear = linear.base_layer
    return Adapted(base.weight, base.bias, linear.lora_A[ADAPTER].weight, linear.lora_B[ADAPTER].weight, float(linear.scaling[ADAPTER]))


def _norm(norm: Any) -> Norm:
    return Norm(norm.weight, float(norm.variance_epsilon))


def _example_pass(layer: Any) -> dict[str, Any]:
    """A pass of eight random tokens: a prefix of two and three leaves."""
    weight, head_size = layer.self_attn.q_proj.base_layer.weight, int(layer.self_attn.head_dim)
    device = weight.device
    angle_TX = torch.arange(8.0)[:, None] * torch.linspace(1.0, 0.1, head_size // 2)
    angle_1TD = torch.cat([angle_TX, angle_TX], dim=1)[None]
    return {
        "hidden_states": to_device(torch.randn(1, 8, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.dtype), device),
        "position_embeddings": (to_device(angle_1TD.cos().to(weight.dtype), device), to_device(angle_1TD.sin().to(weight.dtype), device)),
        "layout": TreeLayout(layout_tree(2, [3, 1, 2])),
        "attention_mask": None,
    }


def _replace(
    layer: Any, fast: Callable[[Tensor], Tensor] | None, *, width: int, alike: Callable[[Tensor, Tensor], bool] | None = None
) -> bool:
    """Use `fast` if it answers as the layer does, by `alike` (`_alike`)."""
    if fast is None:
        return False
    weight = next(layer.parameters())
    x = to_device(torch.randn(1, CHECKED_TOKENS, width, generator=torch.Generator().manual_seed(0)).to(weight.dtype), weight.device)
    with torch.no_grad():
        want, got = layer(x), fast(x)
    if not (alike or _alike)(got, want):
        return False
    layer.forward = fast
    return True


def _alike(got: Tensor, want: Tensor) -> bool:
    tolerance = TOLERANCE.get(want.dtype, 0.0) * float(want.float().abs().max())
    return got.dtype == want.dtype and float((got.float() - want.float()).abs().max()) <= tolerance


def _each_alike(got: Tensor, want: Tensor) -> bool:
    """Number by number, as a scale by weights can be held to: beside one weight of 100, weights of 2 and of 3 would look alike."""
    tolerance = TOLERANCE.get(want.dtype, 0.0)
    allowed = tolerance * (want.float().abs() + 1e-3)
    return got.dtype == want.dtype and float(((got.float() - want.float()).abs() - allowed).max()) <= 0


def _fast_lora(layer: Any) -> Callable[[Tensor], Tensor] | None:
    """Plain LoRA without dropout on a frozen layer; anything else keeps peft's own forward."""
    base = layer.base_layer
    has_dropout = not isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
    if type(base) is not nn.Linear or has_dropout or layer.use_dora.get(ADAPTER) or base.weight.requires_grad:
        return None
    a, b, scale = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER], float(layer.scaling[ADAPTER])
    return lambda x: lora_linear(x, base.weight, base.bias, a.weight, b.weight, scale)


def _fast_norms(layer: Any, eps: float) -> tuple[Callable[[Tensor], Tensor], ...]:
    """Scaled by the weight, or by one more (Gemma); the check finds which it is."""
    return (lambda x: rms_norm(x, layer.weight, eps), lambda x: rms_norm(x, layer.weight + 1, eps))


def _fast_mlp(layer: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: layer.down_proj(swiglu(layer.gate_proj(x), layer.up_proj(x)))
