"""What every request passes before anything of it is looked at, on every path there is or is not: deny by default.

In order: not a WebSocket; a Host from the list (DNS rebinding); no browser (Origin, Sec-Fetch-Site: nothing here is made for pages, so
there is no CORS either); the key, where the server has one, on all paths but /healthz; a body within its size and time. Answers get the
security headers, and a client that does not read its answer is left.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.core.console import note
from luthier.core.errors import ConfigError
from luthier.serve.problems import Problem, as_bytes, internal_problem
from luthier.serve.wire import MAX_BODY_BYTES

OPEN_PATH = "/healthz"
MIN_KEY_CHARS = 16
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Who may talk to the server, and how slowly."""

    hosts: frozenset[str]  # names a Host header may hold, in lower case, without port
    key_sha256s: tuple[bytes, ...] = ()  # of the API keys; none: no key is asked for
    body_timeout_s: float = 20.0  # for a whole body
    send_timeout_s: float = 60.0  # for one piece of an answer to be taken


def hash_key(key: str) -> bytes:
    """What is kept of an API key: digests have one length, so comparing them tells nothing of the key's."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True, slots=True)
class Guard:
    """The outermost ASGI application."""

    app: ASGIApp
    rules: Rules
    count: Callable[[str, str, int], None]  # method, path and status of every answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a WebSocket: the server closes what is not accepted
        has_started = False

        async def send_guarded(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                self.count(scope["method"], scope["path"], message["status"])
                message = {**message, "headers": [*message.get("headers", ()), *SECURITY_HEADERS]}
            async with asyncio.timeout(self.rules.send_timeout_s):
                await send(message)

        try:
            self._check(scope)
            await self.app(scope, _bounded(receive, self.rules.body_timeout_s), send_guarded)
        except ClientDisconnect:
            return
        except TimeoutError:
            raise  # nobody takes the answer: uvicorn closes the connection
        except Problem as problem:
            await answer(problem, send_guarded)
        except Exception as error:  # a bug of ours: where it is goes to the log, of its text nothing, which may hold a prompt
            log_bug(error)
            if not has_started:
                await answer(internal_problem(), send_guarded)

    def _check(self, scope: Scope) -> None:
        headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value.decode("latin-1"))
        _check_host(headers.get(b"host", []), self.rules.hosts)
        if b"origin" in headers or any(site != "none" for site in headers.get(b"sec-fetch-site", [])):
            raise Problem(403, "browser_refused", "this server does not answer web pages")
        if self.rules.key_sha256s and scope["path"] != OPEN_PATH:
            _check_key(headers.get(b"authorization", []), self.rules.key_sha256s)
        lengths = headers.get(b"content-length", [])
        if any(not length.isascii() or not length.isdecimal() or int(length[:20]) > MAX_BODY_BYTES for length in lengths):
            raise _too_large()


def _check_host(values: Sequence[str], allowed: frozenset[str]) -> None:
    try:
        name = (urlsplit(f"//{values[0]}").hostname or "") if len(values) == 1 else ""
    except ValueError:
        name = ""
    if name not in allowed or any(c in values[0] for c in "@/?#\\"):
        raise Problem(421, "host_refused", "the Host header names no host this server answers for (luthier serve --allow-host NAME)")


def _check_key(values: Sequence[str], key_sha256s: Sequence[bytes]) -> None:
    scheme, _, key = (values[0] if len(values) == 1 else "").partition(" ")
    given = hash_key(key.strip())
    matches = [hmac.compare_digest(given, known) for known in key_sha256s]  # all of them, so that time does not tell which
    if scheme.lower() != "bearer" or not any(matches):
        raise Problem(401, "invalid_api_key", "a valid API key is needed: Authorization: Bearer KEY")


def _too_large() -> Problem:
    return Problem(413, "body_too_large", f"the body is larger than {MAX_BODY_BYTES:,} bytes")


def _bounded(receive: Receive, timeout_s: float) -> Receive:
    """`receive` with the body counted and timed, whatever its headers say of it."""
    loop = asyncio.get_running_loop()
    deadline, num_bytes, is_whole = loop.time() + timeout_s, 0, False

    async def receive_bounded() -> Message:
        nonlocal num_bytes, is_whole
        if is_whole:
            return await receive()  # waits for the client to leave
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError as error:
            raise Problem(408, "timeout", "the body took too long to arrive") from error
        num_bytes += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        if num_bytes > MAX_BODY_BYTES:
            raise _too_large()
        return message

    return receive_bounded


async def answer(problem: Problem, send: Send) -> None:
    """Send a problem as the whole answer."""
    body = as_bytes(problem.body())
    headers = {"content-type": "application/json", "content-length": str(len(body))} | problem.headers()
    start = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": start})
    await send({"type": "http.response.body", "body": body})


def log_bug(error: BaseException) -> None:
    """Class and place of an error that should not be, without its text and without values."""
    frames = traceback.extract_tb(error.__traceback__)
    at = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:]))
    note(f"error: this is a bug, sorry ({type(error).__name__} at {at}); the request was answered with status 500")


def rules_for(host: str, *, allowed_hosts: Sequence[str], keys: Mapping[str, str | None]) -> Rules:
    """The rules of a server that listens on `host`. `keys`: environment variable -> its value. Raises ConfigError for what is not safe."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError as error:
        raise ConfigError(f"{host!r} is no address of this machine", where="--host", fix="--host 127.0.0.1") from error
    if not address.is_loopback and not keys:
        raise ConfigError(
            f"{host} can be reached from other machines, which takes a key",
            where="--host",
            fix="export LUTHIER_API_KEY=$(openssl rand -hex 32), then --key-env LUTHIER_API_KEY",
        )
    if address.is_unspecified and not allowed_hosts:
        raise ConfigError(
            f"{host} is every address of this machine; say by which name clients call it", where="--host", fix="--allow-host my-box.example"
        )
    for name, value in keys.items():
        if not value:
            raise ConfigError(f"the environment variable {name} is empty or not set", where="--key-env", fix=f"export {name}=…")
        if len(value) < MIN_KEY_CHARS or not value.isascii() or not value.isprintable() or " " in value:
            raise ConfigError(
                f"the key in {name} has {len(value)} characters; expected at least {MIN_KEY_CHARS}, printable ASCII without spaces",
                where="--key-env",
                fix=f"export {name}=$(openssl rand -hex 32)",
            )
    own = () if address.is_unspecified else (str(address),)
    return Rules(
        hosts=LOOPBACK_NAMES | {name.strip("[]").lower() for name in (*own, *allowed_hosts)},
        key_sha256s=tuple(hash_key(value) for value in keys.values() if value),
    )
