"""The running engine over llama.cpp: it computes the logits of a GGUF file, all else is as in `engine`.

For what llama.cpp does better on a processor: one answer after another from weights of 8 bits or fewer. Drawing, forms, stop texts and
log-probabilities are Luthier's own, so an order means the same on both engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from luthier.core.types import Message, Order, Piece
from luthier.generate.admission import MAX_READ
from luthier.generate.answers import Answer, Desk, add_token, draw_token
from luthier.generate.llama_file import LlamaFile, LlamaRow
from luthier.tokens.template import ChatEncoder


@dataclass(slots=True)
class _Row:
    """One text llama.cpp has read, and whose answer it is (None: free, what it read is kept for the next turn).

    `last`: the ticket of its last answer, 0 for none yet.
    """

    read: list[int] = field(default_factory=list[int])
    answer: Answer | None = None
    last: int = 0


class LlamaEngine:
    """See `TextEngine`; its one voice is called `name`. `context`: tokens that each of `num_rows` texts may have.

    `open_file` is called again when llama.cpp has ended: orders under way are lost, later ones are answered.
    """

    def __init__(self, open_file: Callable[[], LlamaFile], encoder: ChatEncoder, *, name: str, context: int, num_rows: int) -> None:
        self.voices = (name,)
        self.context = context
        self._open_file = open_file
        self._llama: LlamaFile | None = open_file()
        self._desk = Desk(voices=self.voices, encoder=encoder, context=context, num_vocab=self._llama.num_tokens)
        self.program = self._llama.program
        self._rows = [_Row() for _ in range(num_rows)]

    @property
    def num_active(self) -> int:
        """Orders being answered."""
        return sum(row.answer is not None for row in self._rows)

    @property
    def num_waiting(self) -> int:
        """Orders not begun."""
        return len(self._desk.waiting)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.num_active and not self._desk.waiting

    def count_prompt(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, as `submit` counts them. Raises InputError."""
        return self._desk.count_prompt(messages)

    def submit(self, order: Order) -> int:
        """Take an order and return its ticket; see `TextEngine.submit` for what it raises."""
        return self._desk.take(order)

    def cancel(self, ticket: int) -> None:
        """Give an order up; its row is free at once."""
        self._desk.give_up(ticket)
        for row in self._rows:
            if row.answer is not None and row.answer.ticket == ticket:
                row.answer = None

    def step(self) -> tuple[Piece, ...]:
        """One token of every answer whose prompt is read, and a stretch of the prompts that are not. Raises ModelError."""
        self._admit()
        asked = self._asked()
        if not asked:
            return ()
        if self._llama is None:
            self._llama = self._open_file()
        try:
            found = self._llama.step(asked)
        except BaseException:  # what was read is not known any more
            self.close()
            raise
        pieces: list[Piece] = []
        for part, known in zip(asked, found, strict=True):
            row = self._rows[part.number]
            row.read[part.kept :] = part.ids
            if row.answer is None or known is None:
                continue
            token = known if isinstance(known, int) else draw_token(row.answer, known)
            pieces.append(add_token(row.answer, self._desk.encoder, token, known if isinstance(known, Tensor) else None))
            if pieces[-1].finish is not None:
                row.answer = None
        return tuple(pieces)

    def close(self) -> None:
        """End llama.cpp; what was read is forgotten."""
        if self._llama is not None:
            self._llama.close()
        self._llama = None
        for row in self._rows:
            row.read.clear()

    def _admit(self) -> None:
        """Let waiting orders enter, the oldest first."""
        while self._desk.waiting and (free := [row for row in self._rows if row.answer is None]):
            answer = self._desk.waiting.pop(0)
            row = max(free, key=lambda row: (_worth(row.read, answer.prompt), -row.last))
            row.answer, row.last = answer, answer.ticket
            answer.num_cached = min(_num_common(row.read, answer.prompt), len(answer.prompt) - 1)
            del row.read[answer.num_cached :]

    def _asked(self) -> list[LlamaRow]:
        """What each row is to read in this step: those that write a token each, and up to MAX_READ tokens of prompts."""
        asked: list[LlamaRow] = []
        room = min(MAX_READ, self.context)
        for number, row in enumerate(self._rows):
            if row.answer is None:
                continue
            unread = row.answer.ids[len(row.read) :]
            ids = unread[: 1 if len(unread) == 1 else room]
            if not ids:
                continue
            room -= len(ids) if len(unread) > 1 else 0
            is_whole = len(ids) == len(unread)
            wants = "nothing" if not is_whole else "token" if _takes_token(row.answer) else "logits"
            asked.append(LlamaRow(number=number, kept=len(row.read), ids=ids, wants=wants))
        return asked


def _takes_token(answer: Answer) -> bool:
    return answer.takes_likeliest and answer.order.num_logprobs is None


def _worth(read: Sequence[int], prompt: Sequence[int]) -> int:
    """Tokens saved by going on behind `read`, less those lost; 0 where that is no gain: then the row that was used longest ago will do."""
    common = _num_common(read, prompt)
    return max(0, common - (len(read) - common))


def _num_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that both begin with."""
    return next((n for n, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
