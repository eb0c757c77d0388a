"""What the requests of an evaluation ask of their answers while they are written, whichever program computes the tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from luthier.core.errors import InputError
from luthier.core.hashing import digest
from luthier.core.types import Generation, GenerationRequest
from luthier.generate.choices import Choices, ChoiceStep, open_choices
from luthier.generate.held import can_hold_to_schema, hold_to_schema
from luthier.tokens.template import ChatEncoder

STOP_TOKENS = 4  # at most so many tokens spell a stop text


def check_fits(context: int, request: GenerationRequest, num_prompt_tokens: int) -> None:
    """Raise InputError if prompt and answer together exceed what the model can see, in tokens."""
    if num_prompt_tokens + request.max_new_tokens > context:
        raise InputError(
            f"the prompt has {num_prompt_tokens} tokens and the answer may take {request.max_new_tokens}; the model sees {context}",
            where=f"item {request.item_id}",
            fix="fewer or shorter examples in the prompt: --set arms.shots=[2]",
        )


def request_key(encoder: ChatEncoder, request: GenerationRequest, prompt: Sequence[int], *, made_by: Sequence[object]) -> str:
    """Digest of all that an answer depends on. `made_by`: the model, and what of the program that computes it changes a last bit."""
    return digest(
        [*made_by, list(prompt), request.max_new_tokens, request.temperature, request.seed, stop_of(encoder, request)]
        + ([list(request.choices)] if choices_of(encoder, request) is not None else [])
        + ([request.json_schema] if request.json_schema and can_hold_to_schema(encoder) else [])
    )


def choices_of(encoder: ChatEncoder, request: GenerationRequest) -> Choices | None:
    """What the answer is held to while it is written; None where it is free, or the tokenizer's bytes are not known."""
    return open_choices(encoder.tokenizer, request.choices, stop_of(encoder, request), encoder.eos_ids)


def stop_of(encoder: ChatEncoder, request: GenerationRequest) -> str:
    """Where an answer ends besides the end token: only models without chat training need it, they never learnt to end a turn."""
    return "" if encoder.is_chat else request.stop


class RequestRows:
    """What the answers to some requests are held to while they are written, and where each stands. Row by row.

    `num_vocab`: entries of a row of logits. `on_first` is called when the first token is there.
    """

    def __init__(
        self, encoder: ChatEncoder, requests: Sequence[GenerationRequest], *, num_vocab: int, on_first: Callable[[], None] | None = None
    ) -> None:
        self._encoder = encoder
        self._requests = requests
        self._on_first = on_first
        self.stops = [stop_of(encoder, request) for request in requests]
        self.choices = [choices_of(encoder, request) for request in requests]
        self.schemas = [hold_to_schema(request.json_schema, encoder, num_vocab) for request in requests]
        self.is_complete = [False] * len(requests)  # a label or an object, behind which only the end could stand
        self.spelled = [b""] * len(requests)
        self.steps: list[list[ChoiceStep]] = [[] for _ in requests]
        self._tails: list[list[int]] = [[] for _ in requests]

    @property
    def is_watched(self) -> bool:
        """Whether tokens need to be looked at one by one."""
        return any(self.stops) or any(self.choices) or any(self.schemas) or self._on_first is not None

    def allowed(self, row: int) -> Tensor | None:
        """Ids of the tokens that may follow, ascending; None: any."""
        held, schema = self.choices[row], self.schemas[row]
        if schema is not None:
            return schema.allowed()
        return None if held is None else held.allowed(self.spelled[row])

    def accepts(self, row: int, token: int) -> bool:
        """Whether the token is one of these, for a row that is held to a schema or free."""
        schema = self.schemas[row]
        return schema is None or schema.accepts(token)

    def on_choice(self, row: int, ids: Tensor, logprobs: Tensor) -> None:
        """Several labels could go on: the tokens that may follow and their log-probabilities among themselves, [N]."""
        self.steps[row].append(ChoiceStep(self.spelled[row], ids, logprobs))

    def goes_on(self, row: int, token: int) -> bool:
        """A token, no end, is written: whether another may follow."""
        if self._on_first is not None:
            self._on_first()
            self._on_first = None
        held, schema = self.choices[row], self.schemas[row]
        if held is not None:
            self.spelled[row] = held.after(self.spelled[row], token)
            self.is_complete[row] = held.is_complete(self.spelled[row])
        elif schema is not None:
            self.is_complete[row] = schema.write(token)
        if self.is_complete[row]:
            return False
        self._tails[row] = [*self._tails[row][1 - STOP_TOKENS :], token]
        return not self.stops[row] or self.stops[row] not in self._encoder.decode(self._tails[row]).lstrip()

    def generation(
        self, row: int, written: Sequence[int], *, num_prompt_tokens: int, num_cached_tokens: int, latency_s: float
    ) -> Generation:
        """The finished answer of a row. `written`: its tokens without the end token."""
        request = self._requests[row]
        return Generation(
            item_id=request.item_id,
            text=_before(self._encoder.decode(written), self.stops[row]),
            finish="length" if len(written) >= request.max_new_tokens and not self.is_complete[row] else "stop",
            num_prompt_tokens=num_prompt_tokens,
            num_cached_tokens=num_cached_tokens,
            num_new_tokens=len(written),
            latency_s=latency_s,
            choice_logprob=self._logprob(row),
        )

    def _logprob(self, row: int) -> float | None:
        """Of the label that was written, among the labels."""
        held = self.choices[row]
        return None if held is None else held.logprob(self.spelled[row], self.steps[row])


def _before(text: str, stop: str) -> str:
    """What stands before the stop text, behind what white space the answer begins with."""
    if not stop:
        return text
    start = len(text) - len(text.lstrip())
    return text[:start] + text[start:].partition(stop)[0]
