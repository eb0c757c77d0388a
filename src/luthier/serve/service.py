"""From a body to an order of the engine: which model, which prompt, how long, drawn how. Whatever does not fit is a Problem."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, replace

from luthier.core.seeds import seed_for
from luthier.core.types import Message, Order, Sampling
from luthier.serve.dispatch import Dispatcher
from luthier.serve.metrics import Metrics
from luthier.serve.offers import Offer, find_offer
from luthier.serve.problems import Problem
from luthier.serve.wire import ChatMessage, ChatRequest, CompletionRequest, JsonFormat, SchemaFormat

DEFAULT_COMPLETION_TOKENS = 16  # of /v1/completions where none is given, as OpenAI has it; a chat answer may fill the context
ANY_OBJECT = '{"type": "object"}'


@dataclass(slots=True, kw_only=True)
class Service:
    """What a server serves."""

    offers: tuple[Offer, ...]
    dispatcher: Dispatcher
    metrics: Metrics
    context: int  # tokens of prompt and answer together
    fingerprint: str  # names base, adapters and dtype: with it and a seed an answer can be had again
    created_s: int

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
            "root": offer.root or offer.name,
            "parent": offer.parent,
            "max_model_len": self.context,
            "description": offer.description,
            "prompt": {"system": offer.system, "instruction": offer.instruction} if offer.is_prompted else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request in the server's terms: an order for each choice."""

    offer: Offer
    orders: tuple[Order, ...]
    has_logprobs: bool
    wants_usage: bool


def asked_of_chat(service: Service, body: ChatRequest) -> Asked:
    """Raises Problem."""
    offer = service.find(body.model)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise Problem(400, "invalid_value", "max_tokens and max_completion_tokens are the same; give one", param="max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise Problem(400, "invalid_value", "top_logprobs needs logprobs: true", param="top_logprobs")
    tools = [tool.model_dump(mode="json", exclude_none=True) for tool in body.tools or ()] if body.tool_choice != "none" else []
    order = Order(
        messages=offer.conversation([_message(message) for message in body.messages]),
        tools=json.dumps(tools, ensure_ascii=False) if tools else "",
        max_new_tokens=_length(service, body.max_completion_tokens or body.max_tokens),
        num_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        json_schema=_schema(body),
    )
    return _asked(offer, body, order)


def asked_of_completion(service: Service, body: CompletionRequest) -> Asked:
    """Raises Problem."""
    offer = service.find(body.model)
    if offer.is_prompted:
        raise Problem(400, "invalid_value", f"{offer.name} puts a prompt before chat messages; a completion has none", param="model")
    text, ids = _prompt(body)
    order = Order(
        text=text,
        prompt_ids=ids,
        max_new_tokens=_length(service, body.max_tokens or DEFAULT_COMPLETION_TOKENS),
        num_logprobs=body.logprobs,
    )
    return _asked(offer, body, order)


def _asked(offer: Offer, body: ChatRequest | CompletionRequest, order: Order) -> Asked:
    seed = body.seed if body.seed is not None else secrets.randbits(62)
    # The first choice draws from the seed itself, so that it is what a request for one alone gives.
    seeds = [seed % 2**63 if choice == 0 else seed_for(seed, f"choice/{choice}") for choice in range(body.num_choices)]
    sampling = Sampling(
        temperature=0.0 if body.temperature is None else body.temperature,  # greedily, as the model was measured
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
    )
    return Asked(
        offer=offer,
        orders=tuple(replace(order, voice=offer.voice, stop=body.stops, sampling=replace(sampling, seed=own)) for own in seeds),
        has_logprobs=order.num_logprobs is not None,
        wants_usage=body.wants_usage,
    )


def _prompt(body: CompletionRequest) -> tuple[str | None, tuple[int, ...]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return prompt, ()
    first = prompt[0]
    if isinstance(first, str):
        return first, ()
    ids = first if isinstance(first, list) else prompt
    return None, tuple(number for number in ids if isinstance(number, int))


def _schema(body: ChatRequest) -> str | None:
    """The schema the answer is held to, as JSON."""
    match body.response_format:
        case SchemaFormat(json_schema=named):
            return json.dumps(named.json_schema)
        case JsonFormat():
            return ANY_OBJECT
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
