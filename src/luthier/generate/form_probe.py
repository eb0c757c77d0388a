"""Whether a server holds answers to a form when asked to: one request at the beginning, kept like an answer.

Servers differ: some refuse `response_format`, some take it and write what they like. So the schema of the task is sent with a request that
nobody would answer in that form of their own accord; what comes back tells. A server that refuses is asked once more without the field, so
that a refusal of something else (the model, a key, a length) is not taken for one of the form.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from luthier.core.types import Generation, GenerationRequest, Message
from luthier.generate.endpoint import MAX_SHOWN_CHARS, Endpoint, Refused, complete, request_key, run_at_once
from luthier.generate.server_form import FREE, form_of
from luthier.generate.store import GenerationStore

PROMPT = "Write the word hello and nothing else."
PROBE_TOKENS = 256  # room for a model that thinks a little before it writes
SHOWN_CHARS = 60


def probe_form(
    endpoint: Endpoint,
    *,
    choices: tuple[str, ...],
    json_schema: str,
    store: GenerationStore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Endpoint:
    """The endpoint with `holds` or `why_free` set; as it is where there is nothing to hold to. What the store knows is not asked again.

    Raises EndpointError where the server does not answer at all, KeyboardInterrupt when asked to stop.
    """
    form = form_of(choices, json_schema)
    if form is FREE:
        return endpoint
    if form.why_not:
        return replace(endpoint, why_free=form.why_not)
    tokens = min(PROBE_TOKENS, endpoint.context // 2)
    request = GenerationRequest(item_id="probe", messages=(Message(role="user", content=PROMPT),), max_new_tokens=tokens)
    answered = request_key(endpoint, request, form)
    refused = f"{answered}/refused"  # what is kept under this key is the refusal
    found: dict[str, Generation] = {key: kept for key in (answered, refused) if (kept := store.get(key)) is not None}

    def ask(_: str, secret: str, halt: threading.Event) -> tuple[str, Generation]:
        try:
            return answered, complete(endpoint, secret, request, form, answered, halt)
        except Refused as error:
            free = complete(endpoint, secret, request, FREE, answered, halt)
            return refused, replace(free, text=error.message)

    def keep(_: str, result: tuple[str, Generation]) -> None:
        store.put(*result)
        found[result[0]] = result[1]

    if not found:
        run_at_once(endpoint, ["probe"], ask, keep, should_stop)
    if refused in found:
        return replace(endpoint, why_free=f"the endpoint refuses response_format ({found[refused].text[:MAX_SHOWN_CHARS]})")
    reply = found[answered]
    was_cut_off = reply.finish == "length" and reply.text.lstrip().startswith("{")  # no free answer to the prompt begins so
    if form.is_kept_by(reply.text) or was_cut_off:
        return replace(endpoint, holds=True)
    wrote = reply.text[:SHOWN_CHARS]
    return replace(endpoint, why_free=f"the endpoint ignores response_format (asked for an object of the schema, it wrote {wrote!r})")
