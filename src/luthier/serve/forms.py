"""How the two routes write an answer, whole or in chunks: OpenAI's shapes as functions of what was generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

LOWEST_LOGPROB = -9999.0  # JSON has no minus infinity; OpenAI's own stand-in

Finish = Literal["stop", "length"]
Json = dict[str, object]
Chance = tuple[str, bytes, float]  # a token: its text, its bytes, its log-probability
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"  # keeps proxies from closing a stream whose model still reads its prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One route's shapes. `choice` and `delta` take index, text, logprobs and finish reason."""

    id_prefix: str
    whole: str  # the `object` of a whole answer
    chunk: str  # and of a chunk
    choice: Callable[[int, str, Json | None, Finish | None], Json]
    delta: Callable[[int, str, Json | None, Finish | None], Json]
    opening: Callable[[int], Json] | None  # what a stream says before the first word
    logprobs: Callable[[Sequence[Chance], Sequence[Sequence[Chance]], int], Json]


def usage(*, prompt_tokens: int, cached_tokens: int, new_tokens: int) -> Json:
    """The usage object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def sse(data: bytes) -> bytes:
    """One server-sent event. JSON has no raw line break, so one `data:` line holds it."""
    return b"data: " + data + b"\n\n"


def _chat_choice(index: int, text: str, logprobs: Json | None, finish: Finish | None) -> Json:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def _chat_delta(index: int, text: str, logprobs: Json | None, finish: Finish | None) -> Json:
    return {"index": index, "delta": {"content": text} if text or logprobs else {}, "logprobs": logprobs, "finish_reason": finish}


def _chat_opening(index: int) -> Json:
    return {"index": index, "delta": {"role": "assistant", "content": "", "refusal": None}, "logprobs": None, "finish_reason": None}


def _text_choice(index: int, text: str, logprobs: Json | None, finish: Finish | None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _chat_logprobs(tokens: Sequence[Chance], tops: Sequence[Sequence[Chance]], offset: int) -> Json:
    """Each token with the most likely ones in its place."""
    del offset

    def entry(token: Chance) -> Json:
        return {"token": token[0], "logprob": max(token[2], LOWEST_LOGPROB), "bytes": list(token[1])}

    content = [entry(token) | {"top_logprobs": [entry(other) for other in top]} for token, top in zip(tokens, tops, strict=True)]
    return {"content": content, "refusal": None}


def _text_logprobs(tokens: Sequence[Chance], tops: Sequence[Sequence[Chance]], offset: int) -> Json:
    """The older shape: lists side by side; `offset` is where the first token begins, in characters of the answer."""
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token[0])
    return {
        "tokens": [token[0] for token in tokens],
        "token_logprobs": [max(token[2], LOWEST_LOGPROB) for token in tokens],
        "top_logprobs": [{other[0]: max(other[2], LOWEST_LOGPROB) for other in top} for top in tops],
        "text_offset": offsets,
    }


CHAT = Form(
    id_prefix="chatcmpl-",
    whole="chat.completion",
    chunk="chat.completion.chunk",
    choice=_chat_choice,
    delta=_chat_delta,
    opening=_chat_opening,
    logprobs=_chat_logprobs,
)
TEXT = Form(
    id_prefix="cmpl-",
    whole="text_completion",
    chunk="text_completion",
    choice=_text_choice,
    delta=_text_choice,
    opening=None,
    logprobs=_text_logprobs,
)
