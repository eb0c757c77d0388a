"""One base model and the adapters on it, each a named voice: from tokens to hidden states, whichever voice each row has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.kernels import wide
from luthier.models.backbone import AttentionLayout, body_and_head, hidden_states
from luthier.models.fast_body import can_pack, open_fast_body

# The output layer is packed as the others are; most models have it tied to the embedding, which stays as it is: this much is held twice.
MAX_PACKED_HEAD = 128 * 2**20


class Voices:
    """`adapters`: voice -> the name peft knows its adapter under; every other voice is the base model."""

    def __init__(self, model: nn.Module, adapters: Mapping[str, str] | None = None) -> None:
        self.adapters = dict(adapters or {})
        self._model: Any = model
        self._config: Any = self._model.config
        self._body, self.head_VE = body_and_head(model)
        self._active: str | None = ""
        if self.adapters:
            self._use(None)
        self._fast = open_fast_body(self._body, tuple(self.adapters.values()))
        num_bytes = self.head_VE.numel() * self.head_VE.element_size()
        is_packable = can_pack(self.head_VE) and self._fast is not None and num_bytes <= MAX_PACKED_HEAD
        self._packed_head = torch.ops.mkldnn._reorder_linear_weight(self.head_VE.detach()) if is_packable else None
        self._number = {voice: number for number, voice in enumerate(self.adapters, start=1)}

    @property
    def own(self) -> str:
        """The voice of a model that was opened with one adapter, or with none."""
        return next(iter(self.adapters), "")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head_VE.device

    @property
    def bytes_per_token(self) -> int:
        """Of keys and values, all layers."""
        text = self._config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return int(2 * text.num_hidden_layers * heads * head_dim * self.head_VE.element_size())

    @property
    def mixes(self) -> bool:
        """Whether rows of several voices can be in one pass."""
        return self._fast is not None or not self.adapters

    def states(self, ids_BT: Tensor, positions_BT: Tensor, layout: AttentionLayout, voices: Sequence[str]) -> Tensor:
        """Last hidden states, [B, T, E]; `voices[b]` is row b's."""
        if self._fast is not None:
            return self._fast.states(ids_BT, positions_BT, layout, [self._number.get(voice, 0) for voice in voices])
        if self.adapters:
            self._use(voices[0])
        return hidden_states(self._body, ids_BT, positions_BT, layout)

    def logits(self, h_NE: Tensor) -> Tensor:
        """[N, V]."""
        if self._packed_head is None:
            return wide.product([(h_NE, self.head_VE.T)])
        return torch.ops.mkldnn._linear_pointwise(h_NE, self._packed_head, None, "none", [], "")

    def _use(self, voice: str | None) -> None:
        """Speak with one adapter, or with none."""
        if voice not in self.adapters:
            voice = None
        if voice == self._active:
            return
        layers = self._model.base_model
        if voice is not None:
            layers.enable_adapter_layers()
            layers.set_adapter(self.adapters[voice])
            self._model.requires_grad_(requires_grad=False)
        else:
            layers.disable_adapter_layers()
        self._active = voice
