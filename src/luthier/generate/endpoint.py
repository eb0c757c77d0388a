"""Generation by a server that speaks the OpenAI chat API: ChatGPT, Gemini, Claude, vLLM, llama.cpp, Ollama.

Nothing is sent but to the address the user named. Whatever comes back is untrusted. Every answer is handed to the store as
soon as it is there, so that none is paid for twice, whatever happens afterwards.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Literal, TypeVar, cast

from luthier.core.errors import EndpointError
from luthier.core.hashing import digest
from luthier.core.types import Generation, GenerationRequest
from luthier.generate.http_post import MAX_BODY_BYTES, NoReply, Reply, TooLarge, check_url, post, url_flag
from luthier.generate.server_form import FREE, ServerForm, form_of
from luthier.generate.store import GenerationStore

AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # what may go better the next time
MAX_BACKOFF_S = 30.0
MAX_WAIT_S = 120.0  # a server that asks for more has no room for us today
POLL_S = 0.2
MAX_SHOWN_CHARS = 300
FIELD = "response_format"
MAX_TOKENS = 100_000_000  # a count beyond this is no count


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server and a model on it. `key_env` names the environment variable that holds the key; the key itself is kept nowhere."""

    url: str
    model: str
    name: str  # as tables and messages call it
    key_env: str = ""
    context: int = 8192  # tokens of prompt and answer together
    concurrency: int = 4
    timeout_s: float = 60.0
    retries: int = 5
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: float | None = 0.0  # None: not sent, for models that know no other than their own
    backoff_s: float = 1.0
    role: Literal["endpoint", "judge", "embeddings"] = "endpoint"  # its group of settings; its options begin with it
    holds: bool = False  # answers to the labels or the schema of a request, which `probe_form` has found out
    why_free: str = ""  # or why it does not

    @property
    def fingerprint(self) -> str:
        """What an answer depends on besides the request."""
        return digest([self.url, self.model, self.length_field, self.temperature])


Found = TypeVar("Found")
Job = TypeVar("Job")


class Refused(EndpointError):
    """The server refuses the request itself, and would again."""


class Halted(Exception):
    """Given up because another request failed for good, or on request."""


def ask(
    endpoint: Endpoint,
    requests: Sequence[GenerationRequest],
    *,
    store: GenerationStore,
    on_progress: Callable[[int, int], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Generation, ...]:
    """Complete every request, in the order given, `concurrency` at once; what the store has is not asked again.

    `latency_s` is the time of the attempt that succeeded, network included; attempts before it are in `num_retries`. Raises
    EndpointError when one request fails for good, KeyboardInterrupt when asked to stop; answers on their way are stored first.
    """
    keys = [request_key(endpoint, request, _form(endpoint, request)) for request in requests]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # one request for all that ask the same
    done = {key: kept for key in first if (kept := store.get(key)) is not None}
    todo = [key for key in dict.fromkeys(keys) if key not in done]
    on_progress(sum(key in done for key in keys), len(requests))

    def keep(key: str, generation: Generation) -> None:
        store.put(key, generation)
        done[key] = generation
        on_progress(sum(key in done for key in keys), len(requests))

    run_at_once(endpoint, todo, lambda key, secret, halt: _ask_one(endpoint, secret, requests[first[key]], key, halt), keep, should_stop)
    return tuple(replace(done[key], item_id=request.item_id) for key, request in zip(keys, requests, strict=True))


def request_key(endpoint: Endpoint, request: GenerationRequest, form: ServerForm) -> str:
    """What an answer depends on."""
    asked = [endpoint.fingerprint, [[m.role, m.content] for m in request.messages], request.max_new_tokens, request.seed]
    return digest([*asked, form.schema] if form.schema else asked)


def _form(endpoint: Endpoint, request: GenerationRequest) -> ServerForm:
    return form_of(request.choices, request.json_schema) if endpoint.holds else FREE


def secret_of(endpoint: Endpoint) -> str:
    """The key, from the environment; empty where none is named. Raises EndpointError."""
    if not endpoint.key_env:
        return ""
    secret = os.environ.get(endpoint.key_env, "")
    fix = f"export {endpoint.key_env}=…, then the same command again"
    if not secret:
        raise EndpointError(f"no key: the environment variable {endpoint.key_env} is not set", where=endpoint.name, fix=fix)
    if any(not 0x21 <= ord(char) <= 0x7E for char in secret):
        problem = f"the environment variable {endpoint.key_env} holds white space or a character that no key has"
        raise EndpointError(problem, where=endpoint.name, fix=fix)
    return secret


def run_at_once(
    endpoint: Endpoint,
    jobs: Sequence[Job],
    call: Callable[[Job, str, threading.Event], Found],
    keep: Callable[[Job, Found], None],
    should_stop: Callable[[], bool],
) -> None:
    """`call(job, secret, halt)` for every job, `concurrency` at once, and `keep(job, found)` in this thread as each comes back.

    Where one fails for good, or what came back cannot be kept, nothing that is still waiting is sent, and what is on its way is kept.
    Raises that first EndpointError, or KeyboardInterrupt when asked to stop.
    """
    if not jobs:
        return
    secret, halt = secret_of(endpoint), threading.Event()
    problem: EndpointError | None = None

    def call_or_halt(job: Job) -> Found:
        try:
            return call(job, secret, halt)
        except EndpointError:
            halt.set()
            raise

    with ThreadPoolExecutor(max_workers=endpoint.concurrency) as pool:
        waiting: dict[Future[Found], Job] = {pool.submit(call_or_halt, job): job for job in jobs}
        while waiting:
            if should_stop():
                halt.set()
            for future in wait(waiting, timeout=POLL_S, return_when=FIRST_COMPLETED).done:
                job = waiting.pop(future)
                try:
                    found = future.result()
                except Halted:
                    continue
                except EndpointError as error:
                    problem = problem or error
                    continue
                try:
                    keep(job, found)
                except BaseException:  # what cannot be kept must not be paid for
                    halt.set()
                    raise
    if problem is not None:
        raise problem
    if halt.is_set():
        raise KeyboardInterrupt


def _ask_one(endpoint: Endpoint, secret: str, request: GenerationRequest, key: str, halt: threading.Event) -> Generation:
    form = _form(endpoint, request)
    answer = complete(endpoint, secret, request, form, key, halt)
    return replace(answer, text=form.unwrap(answer.text))


def complete(endpoint: Endpoint, secret: str, request: GenerationRequest, form: ServerForm, key: str, halt: threading.Event) -> Generation:
    """One answer as the server wrote it, asked to be in this form. Raises EndpointError (Refused for the request itself), or Halted."""

    def read(body: bytes) -> Generation:
        return _read_answer(endpoint, request, body)

    answer, seconds, retries = exchange(endpoint, secret, "/chat/completions", _question(endpoint, request, form), read, key, halt)
    return replace(answer, latency_s=seconds, num_retries=retries)


def exchange(
    endpoint: Endpoint,
    secret: str,
    suffix: str,
    question: Mapping[str, object],
    read: Callable[[bytes], Found],
    key: str,
    halt: threading.Event,
) -> tuple[Found, float, int]:
    """One request with its retries: what `read` makes of the answer, the seconds of the attempt that succeeded, and how many failed.

    Waits grow twofold, with jitter, and are never shorter than what the server asks for. `read` raises Garbage for what may be better
    the next time. Raises EndpointError, or Halted.
    """
    parts = check_url(endpoint.url, role=endpoint.role)
    path = parts.path.rstrip("/").removesuffix(suffix) + suffix
    body = json.dumps(question).encode("ascii")
    headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "luthier"}
    if secret:
        headers["Authorization"] = f"Bearer {secret}"
    jitter = random.Random(f"{key}/jitter")  # noqa: S311 - no secret
    for attempt in range(endpoint.retries + 1):
        if halt.is_set():
            raise Halted
        started = time.perf_counter()
        wait_s = 0.0
        try:
            reply = post(parts, path, body, headers, timeout_s=endpoint.timeout_s)
            if reply.status == 200:
                return read(reply.body), time.perf_counter() - started, attempt
            reason = _refusal(endpoint, secret, reply)
            wait_s = _asked_wait_s(reply.retry_after)
        except NoReply as error:
            reason = str(error)
        except Garbage as error:
            reason = f"the answer cannot be read: {error}"
        except TooLarge as error:
            problem = f"the answer has more than {MAX_BODY_BYTES:,} bytes"
            fix = f"look at what listens there: luthier asks for {suffix}"
            raise EndpointError(problem, where=endpoint.name, fix=fix) from error
        if wait_s > MAX_WAIT_S:
            problem = f"{reason}; the server asks to wait {wait_s:,.0f} s"
            raise EndpointError(problem, where=endpoint.name, fix="repeat the same command later; answers so far are kept")
        if attempt == endpoint.retries:
            problem = f"{reason} (after {attempt} retries)"
            raise EndpointError(problem, where=endpoint.name, fix="repeat the same command later; answers so far are kept")
        backoff_s = min(MAX_BACKOFF_S, endpoint.backoff_s * 2**attempt)
        halt.wait(wait_s + backoff_s * (0.5 + jitter.random() / 2))
    raise AssertionError("the last attempt returns or raises")


def _question(endpoint: Endpoint, request: GenerationRequest, form: ServerForm) -> dict[str, object]:
    question: dict[str, object] = {
        "model": endpoint.model,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        endpoint.length_field: request.max_new_tokens + form.extra_tokens,
        "stream": False,
    }
    if form.schema:
        question[FIELD] = form.field
    return question if endpoint.temperature is None else {**question, "temperature": endpoint.temperature}


def _refusal(endpoint: Endpoint, secret: str, reply: Reply) -> str:
    """Why the server refused, if it may do better the next time. Raises EndpointError where it will not."""
    said = reply.body.decode("utf-8", "replace")
    if secret:
        said = said.replace(secret, "[key]")  # some servers repeat the key they were given
    reason = f"status {reply.status}" + (f": {' '.join(said.split())[:MAX_SHOWN_CHARS]}" if said.strip() else "")
    if reply.status in AGAIN and not (reply.status >= 500 and FIELD in said):  # older llama.cpp answers 500 to a form it does not know
        return reason
    if 300 <= reply.status < 400:
        problem = f"status {reply.status}: it sends us on to another address, which is refused"
        raise EndpointError(problem, where=endpoint.name, fix=f"{url_flag(endpoint.role)} with the address that answers itself")
    if reply.status in (401, 403):
        fix = f"--{endpoint.role}-key-env NAME of the environment variable that holds a valid key"
        raise EndpointError(reason, where=endpoint.name, fix=fix)
    hints = {
        FIELD: "--set arms.constrained=false",
        "max_completion_tokens": f"--set {endpoint.role}.length_field=max_completion_tokens",
        "temperature": f"--set {endpoint.role}.temperature=null",
        "context": "--set endpoint.context=4096"
        if endpoint.role == "endpoint"
        else f"name a model that sees more: --{endpoint.role}-model",
    }
    fix = next((remedy for word, remedy in hints.items() if word in said), f"check {url_flag(endpoint.role)} and --{endpoint.role}-model")
    raise Refused(reason, where=endpoint.name, fix=fix)


def _asked_wait_s(retry_after: str) -> float:
    """Seconds the server asks us to wait: a number, or a date; 0 where it says nothing we understand."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    now = datetime.datetime.now(tz=datetime.UTC)
    return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=datetime.UTC)) - now).total_seconds())


class Garbage(Exception):
    """Status 200, and nothing in it that was asked for."""


def _read_answer(endpoint: Endpoint, request: GenerationRequest, body: bytes) -> Generation:
    """The first choice of a chat completion. Raises Garbage, or EndpointError where another model answered."""
    try:
        answer = _mapping(json.loads(body.decode("utf-8")))
    except (ValueError, RecursionError) as error:
        raise Garbage(f"it is no JSON ({type(error).__name__})") from error
    served = answer.get("model")
    refuse_other_model(endpoint, served)
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Garbage("it has no choices")
    choice = _mapping(cast("list[object]", choices)[0])
    message = _mapping(choice.get("message"))
    text = message.get("content")
    if text is None:  # a refusal has a field of its own
        text = message.get("refusal") or ""
    if not isinstance(text, str):
        raise Garbage("its content is no text")
    usage = _mapping(answer.get("usage", {}) or {})
    details = _mapping(usage.get("prompt_tokens_details", {}) or {})
    return Generation(
        item_id=request.item_id,
        text=_without_surrogates(text),
        finish="length" if choice.get("finish_reason") == "length" else "stop",
        num_prompt_tokens=_count(usage.get("prompt_tokens")),
        num_cached_tokens=_count(details.get("cached_tokens")),
        num_new_tokens=_count(usage.get("completion_tokens")),
        latency_s=0.0,
        served_by=_without_surrogates(served[:100]) if isinstance(served, str) else "",
    )


def refuse_other_model(endpoint: Endpoint, served: object) -> None:
    """Raise EndpointError where a server says that another model than the one asked for has answered."""
    if isinstance(served, str) and served and not _is_same_model(endpoint.model, served):
        problem = f"asked for {endpoint.model!r}, and {served[:100]!r} answered"
        raise EndpointError(problem, where=endpoint.name, fix=f"name the model that is meant: --{endpoint.role}-model")


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise Garbage(f"found {type(value).__name__}, expected an object")
    return cast("dict[str, object]", value)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS else None


def _without_surrogates(text: str) -> str:
    """Half characters, which JSON can spell and no file can hold, as U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _is_same_model(asked: str, served: str) -> bool:
    """Whether a name that came back is the one asked for, or the dated or tagged version that it stands for."""

    def plain(name: str) -> str:
        return name.rsplit("/", 1)[-1].lower().removesuffix("latest").rstrip("-:@")

    rest = plain(served).removeprefix(plain(asked))
    return plain(served).startswith(plain(asked)) and re.fullmatch(r"(?:[-:@](?:[0-9][0-9.-]*)?)?", rest) is not None
