"""Fast kernels in place of layers of a model, where they compute the same.

No class and no module of another package is changed: only the `forward` of single layers of this one model, each after its fast twin gave
the layer's own answer on random input. A layer of another kind (another activation, dropout, DoRA) keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn

from luthier.kernels.lora_linear import lora_linear
from luthier.kernels.rms_norm import rms_norm
from luthier.kernels.swiglu import swiglu

CHECKED_TOKENS = 3
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
ADAPTER = "default"


def use_fast_kernels(model: nn.Module) -> dict[str, int]:
    """Replace what can be replaced (in place); how many layers of each kind were."""
    found = {"lora_linear": 0, "rms_norm": 0, "swiglu": 0}
    for module in model.modules():
        layer: Any = module
        if isinstance(module, PeftLoraLinear):
            found["lora_linear"] += _replace(layer, _fast_lora(layer), width=layer.in_features)
        elif type(module).__name__.endswith("RMSNorm") and getattr(layer, "weight", None) is not None:
            eps = getattr(layer, "variance_epsilon", None) or getattr(layer, "eps", None)
            if eps is not None:
                width = layer.weight.shape[0]
                found["rms_norm"] += any(_replace(layer, fast, width=width) for fast in _fast_norms(layer, float(eps)))
        elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            found["swiglu"] += _replace(layer, _fast_mlp(layer), width=layer.gate_proj.in_features)
    return found


def _replace(layer: Any, fast: Callable[[Tensor], Tensor] | None, *, width: int) -> bool:
    """Use `fast` if it answers as the layer does."""
    if fast is None:
        return False
    dtype = next(layer.parameters()).dtype
    x = torch.randn(1, CHECKED_TOKENS, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        want, got = layer(x), fast(x)
    scale = float(want.float().abs().max())
    if got.dtype != want.dtype or not float((got.float() - want.float()).abs().max()) <= TOLERANCE.get(dtype, 0.0) * scale:
        return False
    layer.forward = fast
    return True


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
