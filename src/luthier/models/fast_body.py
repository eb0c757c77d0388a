"""The body of a Llama-like model for generation: few, large operations, and any number of adapters in one pass.

    x1 = x + O(attention(rotate(Q(n1(x))), rotate(K(n1(x))), V(n1(x))))        n1, n2: RMSNorm
    y  = x1 + D(silu(G(n2(x1))) * U(n2(x1)))

Layers that read the same input (Q, K, V; G, U) are one product. The adapters of all voices stand side by side: every row's input goes
through all A at once, what is not its voice's is set to zero, and one product with all B adds the rest. `open_fast_body` uses it only where
it gives the model's own states on random tokens; the model's weights become views of the joined ones, so nothing is held twice.

Shapes: X = B * T tokens, E hidden, D head size, O output width, R sum of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn

from luthier.kernels import few_layer, fused, wide
from luthier.models.backbone import AttentionLayout, hidden_states
from luthier.models.decode_layout import EnterLayout, StepLayout

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
CHECKED_TOKENS = 5
RANKS = 32


@dataclass(frozen=True, slots=True)
class _LowRank:
    """Adapters of one joined layer: u = scale * A h, then B u. `scale_VR[v]` is 0 but for the ranks of voice v.

    Each adapter's ranks are filled up to whole `RANKS` with zeros.
    """

    a_RI: Tensor
    b_OR: Tensor
    scale_VR: Tensor


@dataclass(frozen=True, slots=True)
class _Joined:
    """Linear layers that read the same input. `low_rank[None]` has the adapters of all voices, `low_rank[v]` of one.

    `weight` is [O, I], on a CPU without tiles in oneDNN's own blocked order (`packed`): products with few rows take two thirds of the time.
    """

    weight: Tensor
    packed: bool
    bias_O: Tensor | None
    low_rank: Mapping[int | None, _LowRank]


@dataclass(frozen=True, slots=True)
class _Layer:
    norm1_E: Tensor
    qkv: _Joined
    o: _Joined
    norm2_E: Tensor
    gate_up: _Joined
    down: _Joined
    scaling: float
    few: Mapping[int, few_layer.Layer]  # by voice, where few tokens can be computed at once


class FastBody:
    """See `open_fast_body`. `adapters[v - 1]` is peft's name of voice v; voice 0 is the base."""

    def __init__(self, body: Any, adapters: Sequence[str]) -> None:
        first = body.layers[0]
        self._embed: Tensor = body.embed_tokens.weight
        self._rotary = body.rotary_emb
        self._eps = float(first.input_layernorm.variance_epsilon)
        self._head_dim = int(first.self_attn.head_dim)
        self._norm_E: Tensor = body.norm.weight
        self._layers = [_read_layer(layer, adapters, self._eps) for layer in body.layers]
        self._num_kv = int(first.self_attn.config.num_key_value_heads)
        scalings = [layer.scaling for layer in self._layers]
        at_once = {
            v: few_layer.read_layers([layer.few.get(v) for layer in self._layers], scalings, head_dim=self._head_dim)
            for v in range(len(adapters) + 1)
        }
        self._at_once = {voice: layers for voice, layers in at_once.items() if layers is not None}

    def states(self, ids_BT: Tensor, positions_BT: Tensor, layout: AttentionLayout, voices_B: Sequence[int]) -> Tensor:
        """Last hidden states, [B, T, E]; `voices_B[b]` is row b's voice."""
        B, T = ids_BT.shape
        x_XE = self._embed[ids_BT.reshape(-1)]
        E, D, K = x_XE.shape[1], self._head_dim, self._num_kv
        cos, sin = (table.reshape(B * T, 1, D).contiguous() for table in self._rotary(x_XE, positions_BT.expand(B, T)))
        voice: int | None = voices_B[0] if len(set(voices_B)) == 1 else None
        if voice in self._at_once and isinstance(layout, StepLayout) and not layout.shared and B * T <= wide.FEW_TOKENS:
            x_XE = few_layer.next_states(self._at_once[voice], x_XE, cos, sin, layout.store, layout.slot_R)
            return fused.rms_norm(x_XE, self._norm_E, self._eps)[0].view(B, T, E)
        voice_X = None
        if voice is None:
            voice_X = torch.tensor(voices_B, device=ids_BT.device).repeat_interleave(T)
        for number, layer in enumerate(self._layers):
            few = layer.few.get(voice) if voice is not None and 0 < B * T <= wide.FEW_TOKENS else None
            if few is not None:
                heads_XSD = few_layer.layer_in(few, x_XE, cos, sin, values=K)
            else:
                h_XE = fused.rms_norm(x_XE, layer.norm1_E, self._eps)[0]
                heads_XSD = fused.rotate(_apply(layer.qkv, h_XE, voice, voice_X).view(B * T, -1, D), cos, sin, values=K)
            parts = heads_XSD.split([heads_XSD.shape[1] - 2 * K, K, K], dim=1)
            q_BHTD, k_BKTD, v_BKTD = (part.view(B, T, -1, D).transpose(1, 2) for part in parts)
            out_BHTD = layout.attend(number, q_BHTD, k_BKTD, v_BKTD, layer.scaling)
            out_XO = out_BHTD.transpose(1, 2).reshape(B * T, -1)
            if few is not None:
                x_XE = few_layer.layer_out(few, out_XO, x_XE)
                continue
            x_XE = _apply(layer.o, out_XO, voice, voice_X, x_XE)
            h_XE = fused.rms_norm(x_XE, layer.norm2_E, self._eps)[0]
            gate_XF, up_XF = _apply(layer.gate_up, h_XE, voice, voice_X).chunk(2, dim=1)
            x_XE = _apply(layer.down, fused.swiglu(gate_XF, up_XF), voice, voice_X, x_XE)
        return fused.rms_norm(x_XE, self._norm_E, self._eps)[0].view(B, T, E)


def can_pack(weight_OI: Tensor) -> bool:
    """Whether oneDNN can hold it in its own order here, and that is faster than as it lies."""
    if wide.has_own(weight_OI) or weight_OI.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight_OI.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()  # not on processors without AVX-512
    if weight_OI.dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return weight_OI.dtype == torch.float32


def open_fast_body(body: Any, adapters: Sequence[str]) -> FastBody | None:
    """None where the model is of another kind: other layers, norms or activations, DoRA, quantised weights."""
    if not _is_llama_like(body, adapters):
        return None
    fast = FastBody(body, adapters)
    if not _answers_alike(body, fast):
        return None
    for layer in body.layers:
        for linear in _linears(layer):
            base = _base(linear)
            base.weight.data = base.weight.data.new_empty(0)
    return fast


def _is_llama_like(body: Any, adapters: Sequence[str]) -> bool:
    layers = getattr(body, "layers", None)
    if not layers or not all(hasattr(body, name) for name in ("embed_tokens", "norm", "rotary_emb")):
        return False
    if type(body.embed_tokens) is not nn.Embedding:
        return False
    for layer in layers:
        attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
        names = {name for name, _ in layer.named_children()}
        if names != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"} or not hasattr(attention, "q_proj"):
            return False
        if any(hasattr(attention, name) for name in ("q_norm", "k_norm")) or not all(
            hasattr(mlp, n) for n in ("gate_proj", "up_proj", "act_fn")
        ):
            return False
        linears = _linears(layer)
        if len(linears) != 7 or not all(_is_plain(linear, adapters) for linear in linears):
            return False
        if not hasattr(layer.input_layernorm, "variance_epsilon") or not hasattr(attention, "scaling"):
            return False
    return True


def _linears(layer: Any) -> list[Any]:
    parts = (
        (layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")),
        (layer.mlp, ("gate_proj", "up_proj", "down_proj")),
    )
    return [getattr(part, name) for part, names in parts for name in names if hasattr(part, name)]


def _base(linear: Any) -> Any:
    """The linear layer itself, without its adapters."""
    return linear.base_layer if isinstance(linear, PeftLoraLinear) else linear


def _is_plain(linear: Any, adapters: Sequence[str]) -> bool:
    if not isinstance(linear, PeftLoraLinear):
        return type(linear) is nn.Linear
    return type(linear.base_layer) is nn.Linear and not any(linear.use_dora.get(name) for name in adapters)


def _read_layer(layer: Any, adapters: Sequence[str], eps: float) -> _Layer:
    q, k, v, o, gate, up, down = _linears(layer)
    joined = [_join(linears, adapters) for linears in ([q, k, v], [o], [gate, up], [down])]
    norm1_E, norm2_E = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
    few: dict[int, few_layer.Layer] = {}
    for voice in () if any(part.packed for part in joined) else range(len(adapters) + 1):
        read = few_layer.read_layer([_of_voice(part, voice) for part in joined], norm1_E, norm2_E, eps)
        if read is not None:
            few[voice] = read
    return _Layer(norm1_E, joined[0], joined[1], norm2_E, joined[2], joined[3], scaling=float(layer.self_attn.scaling), few=few)


def _of_voice(part: _Joined, voice: int) -> few_layer.Joined:
    low_rank = part.low_rank.get(voice)
    if low_rank is None:
        return few_layer.Joined(part.weight, part.bias_O, None, None, None)
    return few_layer.Joined(part.weight, part.bias_O, low_rank.a_RI, low_rank.scale_VR[0], low_rank.b_OR)


def _join(linears: Sequence[Any], adapters: Sequence[str]) -> _Joined:
    bases = [_base(linear) for linear in linears]
    weight_OI = torch.cat([base.weight.data for base in bases]) if len(bases) > 1 else bases[0].weight.data
    packed = can_pack(weight_OI)
    biases = [base.bias for base in bases]
    zeros = [base.weight.new_zeros(base.weight.shape[0]) if bias is None else bias for base, bias in zip(bases, biases, strict=True)]
    bias_O = None if all(bias is None for bias in biases) else torch.cat(zeros)
    low_rank: dict[int | None, _LowRank] = {}
    for voice, name in enumerate(adapters, start=1):
        if (found := _read_adapter(linears, bases, name)) is not None:
            low_rank[voice] = found
    if len(low_rank) > 0:
        parts = list(low_rank.values())
        none = parts[0].scale_VR.new_zeros(1, 0)
        scale_VR = torch.block_diag(*(low_rank[v].scale_VR if v in low_rank else none for v in range(1, len(adapters) + 1)))
        low_rank[None] = _LowRank(
            torch.cat([part.a_RI for part in parts]),
            torch.cat([part.b_OR for part in parts], dim=1),
            torch.cat([scale_VR.new_zeros(1, scale_VR.shape[1]), scale_VR]).to(weight_OI),
        )
    weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI) if packed else weight_OI
    return _Joined(weight, packed, bias_O, low_rank)


def _read_adapter(linears: Sequence[Any], bases: Sequence[Any], name: str) -> _LowRank | None:
    """One voice's adapter of a joined layer; a part without one has no ranks."""
    a_parts: list[Tensor] = []
    b_parts: list[Tensor] = []
    scales: list[Tensor] = []
    for linear, base in zip(linears, bases, strict=True):
        has = linear is not base and name in linear.lora_A
        weight: Tensor = base.weight
        a: Tensor = linear.lora_A[name].weight if has else weight.new_zeros(0, weight.shape[1])
        b: Tensor = linear.lora_B[name].weight if has else weight.new_zeros(weight.shape[0], 0)
        a_parts.append(a.to(weight.dtype))
        b_parts.append(b.to(weight.dtype))
        scales.append(torch.full((a.shape[0],), float(linear.scaling[name]) if has else 0.0))
    ranks = sum(a.shape[0] for a in a_parts)
    if not ranks:
        return None
    more = -ranks % RANKS
    return _LowRank(
        F.pad(torch.cat(a_parts), (0, 0, 0, more)),
        F.pad(torch.block_diag(*b_parts), (0, more)),
        F.pad(torch.cat(scales), (0, more))[None].to(bases[0].weight),
    )


def _apply(layer: _Joined, h_XI: Tensor, voice: int | None, voice_X: Tensor | None, residual_XO: Tensor | None = None) -> Tensor:
    """W h + bias, B u, and the residual; the small part comes first, so that it is not rounded away (see `kernels/wide.py`)."""
    low_rank = layer.low_rank.get(voice)
    small: list[tuple[Tensor, Tensor]] = []
    if low_rank is not None:
        u_XR = wide.product([(h_XI, low_rank.a_RI.T)])
        u_XR.mul_(low_rank.scale_VR if voice_X is None else low_rank.scale_VR.index_select(0, voice_X))
        small.append((u_XR, low_rank.b_OR.T))
    if not layer.packed:
        return wide.product([*small, (h_XI, layer.weight.T)], bias_O=layer.bias_O, residual_TO=residual_XO)
    if small:
        out_XO = torch.ops.mkldnn._linear_pointwise.binary(h_XI, wide.product(small), layer.weight, layer.bias_O, "add")
    else:
        out_XO = torch.ops.mkldnn._linear_pointwise(h_XI, layer.weight, layer.bias_O, "none", [], "")
    return out_XO if residual_XO is None else out_XO.add_(residual_XO)


@torch.no_grad()
def _answers_alike(body: Any, fast: FastBody) -> bool:
    """The same states as the model without adapters, on random tokens."""
    vocab = int(body.embed_tokens.weight.shape[0])
    device = body.embed_tokens.weight.device
    ids_1T = torch.randint(vocab, (1, CHECKED_TOKENS), generator=torch.Generator().manual_seed(0)).to(device)
    positions_1T = torch.arange(CHECKED_TOKENS, device=device)[None]
    want = hidden_states(body, ids_1T, positions_1T, EnterLayout())
    got = fast.states(ids_1T, positions_1T, EnterLayout(), [0])
    tolerance = TOLERANCE.get(want.dtype, 0.0) * float(want.float().abs().max())
    return got.dtype == want.dtype and float((got.float() - want.float()).abs().max()) <= tolerance
