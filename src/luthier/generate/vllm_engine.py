"""The running engine over vLLM in this process: it computes and draws the tokens, all else is as in `engine`.

For GPUs and many orders at once. Prompts, stop texts, forms, ends and what is shown of an answer are Luthier's own, so an order means the
same on every engine; drawn answers come from vLLM's own random streams, so that a seed gives others here than elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from luthier.core.errors import EngineEnded, ModelError
from luthier.core.types import Message, Order, Piece, TokenLogprob
from luthier.generate.answers import Answer, Desk, add_token
from luthier.generate.vllm_package import Vllm, ask
from luthier.tokens.template import ChatEncoder


class VllmEngine:
    """See `TextEngine`. `base_name` is what the base model is called; the adapters' voices are those of `vllm.loras`."""

    def __init__(self, vllm: Vllm, encoder: ChatEncoder, *, context: int, base_name: str, num_vocab: int) -> None:
        self.voices = (base_name, *vllm.loras)
        self.context = context
        self.program = f"vllm {vllm.version}"
        self._vllm = vllm
        self._desk = Desk(voices=self.voices, encoder=encoder, context=context, num_vocab=num_vocab)
        self._answers: dict[int, Answer] = {}
        self._begun: set[int] = set()

    @property
    def num_active(self) -> int:
        """Orders being answered."""
        return len(self._begun)

    @property
    def num_waiting(self) -> int:
        """Orders not begun, or whose prompt is still read."""
        return len(self._answers) - len(self._begun)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._answers

    def count_prompt(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, as `submit` counts them. Raises InputError."""
        return self._desk.count_prompt(messages)

    def submit(self, order: Order) -> int:
        """Take an order and return its ticket; see `TextEngine.submit` for what it raises."""
        ticket = self._desk.take(order)
        answer = self._desk.waiting.pop()
        ends = sorted(self._desk.encoder.eos_ids)
        ask(self._vllm, str(ticket), order, answer.prompt, length=answer.length, ends=ends, voice=answer.voice)
        self._answers[ticket] = answer
        return ticket

    def cancel(self, ticket: int) -> None:
        """Give an order up; its place is free at once."""
        if self._answers.pop(ticket, None) is not None:
            self._begun.discard(ticket)
            self._vllm.running.abort_request([str(ticket)])

    def step(self) -> tuple[Piece, ...]:
        """One step of vLLM: a token of each answer that is being written, and a stretch of the prompts that are read. Raises EngineEnded,
        or ModelError where one answer alone is lost.
        """
        if self.idle:
            return ()
        try:
            outputs = self._vllm.running.step()
        except Exception as error:  # it computes for all orders, on a device of which nothing is known any more
            fix = "start again; if it happens again, leave --vllm out: Luthier's own engine answers then"
            raise EngineEnded(f"{self.program} failed: {error}"[:300], where="the engine", fix=fix) from error
        pieces: list[Piece] = []
        for output in outputs:
            answer = self._answers.get(int(output.request_id))
            if answer is not None:
                pieces += self._written(answer, output)
        return tuple(pieces)

    def close(self) -> None:
        """Free what vLLM holds."""
        self._vllm.running.engine_core.shutdown()

    def _written(self, answer: Answer, output: Any) -> list[Piece]:
        """What vLLM wrote of one answer in this step, a piece a token, up to the answer's end."""
        completion = output.outputs[0]
        answer.num_cached = output.num_cached_tokens or 0
        self._begun.add(answer.ticket)
        found: list[Piece] = []
        for place, token in enumerate(completion.token_ids):
            piece = add_token(answer, self._desk.encoder, token, None)
            if answer.order.num_logprobs is not None and completion.logprobs:
                piece = replace(piece, logprobs=(self._logprob(token, completion.logprobs[place], answer.order.num_logprobs),))
            found.append(piece)
            if piece.finish is not None:
                break
        if output.finished and (not found or found[-1].finish is None):  # by an end of vLLM's own
            found.append(self._ended(answer, completion.finish_reason))
        if found and found[-1].finish is not None:
            del self._answers[answer.ticket]
            self._begun.discard(answer.ticket)
            if not output.finished:  # a stop text or a whole form, of which vLLM knows nothing
                self._vllm.running.abort_request([str(answer.ticket)])
        return found

    def _ended(self, answer: Answer, reason: str | None) -> Piece:
        if reason not in ("stop", "length"):
            self.cancel(answer.ticket)
            raise _failed(f"{self.program} gave up an answer: {reason}")
        return Piece(
            ticket=answer.ticket,
            text=answer.writing.end(),
            finish="length" if reason == "length" and not answer.writing.stopped else "stop",
            num_prompt_tokens=len(answer.prompt),
            num_cached_tokens=answer.num_cached,
            num_new_tokens=len(answer.written),
        )

    def _logprob(self, token: int, known: Mapping[int, Any], num: int) -> TokenLogprob:
        """`known`: token -> its log-probability, the likeliest and the one that was taken."""
        spell = self._desk.encoder.spell
        best = sorted(known.items(), key=lambda one: -one[1].logprob)[:num]
        likeliest = tuple((spell(one), float(of.logprob)) for one, of in best)
        return TokenLogprob(spelled=spell(token), logprob=float(known[token].logprob), likeliest=likeliest)


def _failed(what: str) -> ModelError:
    return ModelError(what, where="the engine", fix="leave --vllm out: Luthier's own engine answers then")
