"""What a client is told when a request is not served: OpenAI's error object, the right status, and nothing of ours in it.

`{"error": {"message", "type", "param", "code"}}`; `param` names the field, `code` is stable and for programs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import cast

from pydantic import BaseModel, ValidationError

MAX_MESSAGE_CHARS = 500

# Fields that are known only for the value that means "not used".
NOT_DONE = frozenset({"frequency_penalty", "presence_penalty", "logit_bias", "best_of", "echo", "suffix", "store", "modalities"})

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Problem(Exception):
    """A request that is answered with an error. `retry_after_s` goes into the Retry-After header."""

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message[:MAX_MESSAGE_CHARS]
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, object]:
        """The JSON body."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers besides those of every answer."""
        out = {"Retry-After": str(self.retry_after_s)} if self.retry_after_s is not None else {}
        return out | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def as_bytes(value: Mapping[str, object]) -> bytes:
    """JSON as it is sent: UTF-8, on one line. A model can write half of a character; it is sent as the escape JSON has for it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def internal_problem() -> Problem:
    """What is said of a bug: nothing of its text, which may hold a prompt."""
    return Problem(500, "internal_error", "the server made a mistake on this request; its log says where")


def problem_of(error: ValidationError, body: object, model: type[BaseModel]) -> Problem:
    """What is wrong with a body, by the name of its field. The values a client sent are not repeated.

    Of a field that may have several forms each form has its errors; the one that came deepest into the body was meant.
    """
    found = error.errors(include_url=False, include_context=True, include_input=False)
    first = max(found, key=lambda one: len(_path(one["loc"], body)))
    path, kind = _path(first["loc"], body), first["type"]
    field = str(first["loc"][0]) if first["loc"] else ""
    code, message = "invalid_value", first["msg"][:1].lower() + first["msg"][1:].removeprefix("alue error, ")
    if kind == "extra_forbidden":
        code = "unknown_parameter"
        near = get_close_matches(str(first["loc"][-1]), list(model.model_fields) if len(first["loc"]) == 1 else [], n=1)
        message = "is not a field this server knows" + (f"; did you mean {near[0]}?" if near else "")
    elif kind == "missing":
        code, message = "missing_required_parameter", "is required"
    elif field in NOT_DONE:
        code, message = "unsupported_parameter", "this server cannot do that; leave it out"
    elif kind == "union_tag_invalid":
        name = str(first.get("ctx", {}).get("discriminator", "")).strip("'")
        path, message = f"{path}.{name}", f"expected one of {first.get('ctx', {}).get('expected_tags')}"
    return Problem(400, code, f"{path}: {message}" if path else message, param=path or None)


def _path(loc: Sequence[int | str], body: object) -> str:
    """`messages[0].content`. pydantic names the branch of a union in between; what is no key of the body is left out."""
    out, at = "", body
    for position, part in enumerate(loc):
        if isinstance(part, int):
            out += f"[{part}]"
            at = at[part] if isinstance(at, list) and part < len(cast("list[object]", at)) else None
        elif isinstance(at, dict) and part in at:
            out += f".{part}" if out else part
            at = cast("dict[str, object]", at)[part]
        elif position == len(loc) - 1 and isinstance(at, dict):
            out += f".{part}" if out else part
    return out[:120]
