"""From a body to requests of the engine: which model, which prompt as tokens, how long, drawn how. Whatever does not fit is a Problem."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from luthier.core.errors import InputError
from luthier.core.types import Message
from luthier.serve.dispatch import Dispatcher
from luthier.serve.metrics import Metrics
from luthier.serve.offers import Offer, find_offer
from luthier.serve.problems import Problem
from luthier.serve.wire import ChatMessage, ChatRequest, CompletionRequest, JsonFormat, SchemaFormat
from luthier.tokens.template import ChatEncoder

DEFAULT_COMPLETION_TOKENS = 16  # of /v1/completions where none is given, as OpenAI has it; a chat answer may fill the context


@dataclass(slots=True, kw_only=True)
class Service:
    """What a server serves. `encoder` is its own, for a tokenizer must not be used by two threads at once."""

    offers: tuple[Offer, ...]
    dispatcher: Dispatcher
    metrics: Metrics
    encoder: ChatEncoder
    context: int  # tokens of prompt and answer together
    num_token_ids: int
    fingerprint: str
    created_s: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, name: str) -> Offer:
        """The model of this name. Raises Problem 404."""
        return find_offer(self.offers, name)

    def entry(self, offer: Offer) -> dict[str, object]:
        """An offer as /v1/models shows it."""
        return {
            "id": offer.name,
            "object": "model",
            "created": self.created_s,
            "owned_by": "luthier",
            "root": offer.name.removesuffix("-prompted") if offer.is_prompted else offer.name,
            "parent": offer.parent,
            "max_model_len": self.context,
            "description": offer.description,
            "prompt": {"system": offer.system, "instruction": offer.instruction} if offer.is_prompted else None,
        }

    def encode(self, prompt: Callable[[ChatEncoder], tuple[int, ...]]) -> tuple[int, ...]:
        """A prompt as tokens. Called in threads. Raises Problem."""
        try:
            with self.lock:
                ids = prompt(self.encoder)
        except InputError as error:
            raise Problem(
                400, "invalid_prompt", f"{error.message} ({error.fix})" if error.fix else error.message, param="messages"
            ) from error
        if not ids:
            raise Problem(400, "invalid_prompt", "the prompt is empty", param="prompt")
        return ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How tokens are drawn. Where a client says nothing: greedily, as the model was measured."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request in the server's terms, its prompt not tokenised yet."""

    offer: Offer
    prompt: Callable[[ChatEncoder], tuple[int, ...]]
    num_choices: int
    max_new_tokens: int | None  # None: what the context leaves
    seed: int | None  # None: a new one
    draw: Draw
    stops: tuple[str, ...]
    num_logprobs: int | None  # None: none; 0: of the tokens written only
    wants_usage: bool
    json_schema: str | None = None


def asked_of_chat(service: Service, body: ChatRequest) -> Asked:
    """Raises Problem."""
    offer = service.find(body.model)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise Problem(400, "invalid_value", "max_tokens and max_completion_tokens are the same; give one", param="max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise Problem(400, "invalid_value", "top_logprobs needs logprobs: true", param="top_logprobs")
    messages = offer.conversation([_message(message) for message in body.messages])
    tools = [tool.model_dump(mode="json", exclude_none=True) for tool in body.tools or ()] if body.tool_choice != "none" else []
    return Asked(
        offer=offer,
        prompt=lambda encoder: encoder.encode_prompt(messages, tools),
        num_choices=body.num_choices,
        max_new_tokens=_length(service, body.max_completion_tokens or body.max_tokens),
        seed=body.seed,
        draw=_draw(body),
        stops=body.stops,
        num_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        wants_usage=body.wants_usage,
        json_schema=_schema(body),
    )


def asked_of_completion(service: Service, body: CompletionRequest) -> Asked:
    """Raises Problem."""
    offer = service.find(body.model)
    if offer.is_prompted:
        raise Problem(400, "invalid_value", f"{offer.name} puts a prompt before chat messages; a completion has none", param="model")
    prompt: object = body.prompt
    if isinstance(prompt, list) and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        text = prompt
        encode: Callable[[ChatEncoder], tuple[int, ...]] = lambda encoder: encoder.encode_plain(text)  # noqa: E731 both branches in view
    else:
        ids = tuple(prompt)
        if max(ids) >= service.num_token_ids:
            raise Problem(400, "invalid_value", f"a token id is beyond the vocabulary of {service.num_token_ids:,}", param="prompt")
        encode = lambda encoder: ids  # noqa: E731
    return Asked(
        offer=offer,
        prompt=encode,
        num_choices=body.num_choices,
        max_new_tokens=_length(service, body.max_tokens or DEFAULT_COMPLETION_TOKENS),
        seed=body.seed,
        draw=_draw(body),
        stops=body.stops,
        num_logprobs=body.logprobs,
        wants_usage=body.wants_usage,
    )


def _draw(body: ChatRequest | CompletionRequest) -> Draw:
    return Draw(
        temperature=0.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
    )


def _schema(body: ChatRequest) -> str | None:
    """The schema the answer is held to, as JSON."""
    match body.response_format:
        case SchemaFormat(json_schema=named):
            return json.dumps(named.json_schema)
        case JsonFormat():
            return '{"type": "object"}'
        case _:
            return None


def _message(message: ChatMessage) -> Message:
    content = message.content if isinstance(message.content, str) else "\n".join(part.text for part in message.content)
    return Message(role="system" if message.role == "developer" else message.role, content=content)


def _length(service: Service, wanted: int | None) -> int | None:
    if wanted is not None and wanted > service.context:
        raise Problem(
            400, "context_length_exceeded", f"{wanted:,} new tokens are wanted, the model sees {service.context:,}", param="max_tokens"
        )
    return wanted
