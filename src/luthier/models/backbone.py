"""The parts of a causal model the engine works with: the body that makes hidden states, and the matrix that makes logits.

Attention plugs in through transformers' own `AttentionInterface` under the name "luthier": the body gets a `layout` keyword
that every attention layer passes on, and nothing of the model is patched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from luthier.core.errors import ModelError
from luthier.kernels.tree_attention import TreePlan, tree_attention
from luthier.kernels.tree_layout import TokenTree


class AttentionLayout(Protocol):
    """What stands behind `layout=`: how the tokens of this forward pass see one another."""

    def attend(self, layer: int, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scaling: float) -> Tensor:
        """Attention output, [B, H, T, D]."""
        ...


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Training: all tokens at once, B = 1. Only the states of `wanted_N` will be read: the last layer need not make others."""

    tree: TokenTree
    plan: TreePlan = field(default_factory=TreePlan)
    wanted_N: Tensor | None = None

    def attend(self, layer: int, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scaling: float) -> Tensor:
        """See `tree_attention`."""
        del layer
        x_TSD = torch.cat([part[0].transpose(0, 1) for part in (q_BHTD, k_BKTD, v_BKTD)], dim=1)
        return tree_attention(x_TSD, self.tree, self.plan, num_query_heads=q_BHTD.shape[1], scaling=scaling).transpose(0, 1)[None]


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' attention signature; `kwargs` is theirs."""
    layout: AttentionLayout = kwargs["layout"]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = layout.attend(int(module.layer_idx), query, key, value, scale)  # pyright: ignore[reportArgumentType]
    return out.transpose(1, 2).contiguous(), None


def refuse_uncomputed(model: nn.Module, *, where: str) -> None:
    """Raise ModelError for a model that this engine would compute wrongly: better no result than a false one. Needs no weights."""
    config: Any = model.config
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    soft_caps = [key for key in ("attn_logit_softcapping", "final_logit_softcapping") if getattr(text, key, None)]
    scales = [key for key in ("logits_scaling", "logit_scale") if getattr(text, key, None) not in (None, 1, 1.0)]
    what = ""
    if kinds:
        what = f"layers that are no attention ({', '.join(sorted(map(str, kinds)))})"
    elif soft_caps or scales:
        what = ", ".join(f"{key}={getattr(text, key)}" for key in (*soft_caps, *scales))
    elif text.model_type == "gpt_oss":
        what = "attention sinks"
    elif any(type(module).__name__ == "Conv1D" for module in model.modules()):
        what = "Conv1D layers instead of linear ones (GPT-2)"
    if what:
        raise ModelError(
            f"has {what}, which this engine does not compute", where=where, fix="choose another base model: luthier models list"
        )


def use_layout_attention(model: nn.Module) -> None:
    """Switch a model to attention by layout. Raises ModelError for a model this engine does not compute."""
    config: Any = model.config
    refuse_uncomputed(model, where=str(config.get_text_config().model_type))
    AttentionInterface.register("luthier", _attention)
    model.set_attn_implementation("luthier")  # pyright: ignore[reportCallIssue]


def longest_window(model: nn.Module) -> int | None:
    """Tokens after which a sliding-window layer would forget; None without one. Longer rows are refused, not approximated."""
    config: Any = model.config
    text = config.get_text_config()
    has_sliding = "sliding_attention" in (getattr(text, "layer_types", None) or ())
    if getattr(text, "layer_types", None) is None:  # Mistral, Phi3: every layer, unless switched off
        has_sliding = getattr(text, "use_sliding_window", True) is not False
    return int(text.sliding_window) if has_sliding and getattr(text, "sliding_window", None) else None


def body_and_head(model: nn.Module) -> tuple[nn.Module, Tensor]:
    """The body (ids to hidden states) and the [vocab, hidden] matrix of logits, adapters included."""
    given: Any = model
    causal = given.get_base_model() if hasattr(given, "get_base_model") else given
    head = causal.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ModelError("the output layer has a bias, which this engine does not compute", fix="choose another base model")
    return causal.get_decoder(), head.weight


def wanted_states(
    body: nn.Module, input_ids_T: Tensor, position_ids_T: Tensor, layout: TreeLayout, *, noise_TE: Tensor | None = None
) -> Tensor:
    """Last hidden states of the tokens `layout.wanted_N`, [N, E]."""
    assert layout.wanted_N is not None
    states_XE = hidden_states(body, input_ids_T[None], position_ids_T[None], layout, noise_TE=noise_TE)[0]
    return states_XE if layout.plan.narrowed else states_XE.index_select(0, layout.wanted_N)


def hidden_states(
    body: nn.Module, input_ids_BT: Tensor, position_ids_BT: Tensor, layout: AttentionLayout, *, noise_TE: Tensor | None = None
) -> Tensor:
    """Last hidden states [B, T, E]. `noise_TE` is added to the embeddings of each row."""
    if noise_TE is None:
        return body(input_ids=input_ids_BT, position_ids=position_ids_BT, use_cache=False, layout=layout).last_hidden_state
    embed: Any = body.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    noisy = embed(input_ids_BT) + noise_TE
    return body(inputs_embeds=noisy, position_ids=position_ids_BT, use_cache=False, layout=layout).last_hidden_state
