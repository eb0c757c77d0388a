"""An engine that answers one order at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from luthier.core.errors import InputError
from luthier.core.types import Order, Piece
from luthier.generate.contract import check_order
from luthier.generate.local import LocalModel
from luthier.models.backbone import DecodeLayout, body_and_head, hidden_states


@dataclass(slots=True)
class SingleEngine:
    """A `TextEngine` over one opened model."""

    local: LocalModel
    voices: tuple[str, ...] = ("",)
    _tickets: int = 0
    _waiting: dict[int, Iterator[Piece]] = field(default_factory=dict[int, Iterator[Piece]])

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return self.local.context

    @property
    def num_active(self) -> int:
        """Orders being answered."""
        return min(1, len(self._waiting))

    @property
    def num_waiting(self) -> int:
        """Orders not begun."""
        return max(0, len(self._waiting) - 1)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting

    def submit(self, order: Order) -> int:
        """Take an order. Raises InputError for one that cannot be answered."""
        check_order(order)
        ids = self.local.encoder.encode_prompt(order.messages)
        if len(ids) + order.max_new_tokens > self.context:
            raise InputError(f"the prompt has {len(ids)} tokens", where="messages", fix="a shorter prompt")
        self._tickets += 1
        self._waiting[self._tickets] = self._pieces(self._tickets, order, ids)
        return self._tickets

    def step(self) -> tuple[Piece, ...]:
        """One token of the order at the front."""
        if self.idle:
            return ()
        ticket = next(iter(self._waiting))
        piece = next(self._waiting[ticket])
        if piece.finish is not None:
            self.cancel(ticket)
        return (piece,)

    def cancel(self, ticket: int) -> None:
        """Give an order up."""
        self._waiting.pop(ticket, None)

    def _pieces(self, ticket: int, order: Order, ids: tuple[int, ...]) -> Iterator[Piece]:
        body, head_VE = body_and_head(self.local.model)
        generator = torch.Generator().manual_seed(order.sampling.seed)
        layout = DecodeLayout(first_R=torch.tensor([0]), capacity=len(ids) + order.max_new_tokens)
        new, position, written, shown = list(ids), 0, list[int](), 0
        while True:
            with torch.no_grad():
                h_TE = hidden_states(body, torch.tensor([new]), torch.arange(position, position + len(new))[None], layout)[0, -1]
                layout.filled += len(new)
                position += len(new)
                logits_V = (h_TE @ head_VE.T).float()
                temperature = order.sampling.temperature
                likely = logits_V if temperature <= 0 else torch.softmax(logits_V / temperature, dim=-1)
                token = int(likely.argmax()) if temperature <= 0 else int(torch.multinomial(likely, 1, generator=generator))
            is_end = token in self.local.encoder.eos_ids
            written += [] if is_end else [token]
            finish = "stop" if is_end else "length" if len(written) >= order.max_new_tokens else None
            text = self.local.encoder.decode(written)
            piece = text[shown:] if finish or not text.endswith("�") else ""
            shown += len(piece)
            yield Piece(
                ticket=ticket, text=piece, tokens=(token,), finish=finish, num_prompt_tokens=len(ids), num_cached_tokens=0,
                num_new_tokens=len(written),
            )  # fmt: skip
            new = [token]
