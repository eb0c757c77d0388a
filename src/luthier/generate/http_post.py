"""One POST of JSON to an address the user named: https unless it is this machine, no redirects, no proxies, bounded in time and size.

The standard library's client does exactly this and nothing behind our back: it follows no redirect and reads no proxy from the
environment. The one thing it lacks, a limit on the whole exchange instead of on each read, is added here.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from luthier.core.errors import ConfigError

MAX_BODY_BYTES = 1 << 20  # an answer of a few hundred tokens takes a few KiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back. `body` is untrusted and whole."""

    status: int
    body: bytes
    retry_after: str
    location: str


class NoReply(Exception):
    """No whole answer: no connection, cut off, or out of time. It may go better the next time."""


class TooLarge(Exception):
    """More than `MAX_BODY_BYTES`."""


def url_flag(role: str) -> str:
    """The option that names the address of a server; `role` is its group of settings."""
    return "--endpoint" if role == "endpoint" else f"--{role}-endpoint"


def check_url(url: str, *, role: str = "endpoint") -> SplitResult:
    """The parts of a base address. Raises ConfigError unless it is https, or http to this machine, without anything secret in it."""
    where, flag = f"{role}.url", url_flag(role)
    example = f"{flag} https://api.openai.com/v1"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{url!r} is no address: {error}", where=where, fix=example) from error
    if any(not 0x21 <= ord(char) <= 0x7E for char in url):
        raise ConfigError("the address holds a character that addresses cannot hold", where=where, fix=example)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        problem = "the address holds a user, a query or a fragment; it is written into records, so a key must not be part of it"
        raise ConfigError(problem, where=where, fix=f"--{role}-key-env NAME_OF_A_VARIABLE")
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"found {url!r}, expected https://HOST/PATH", where=where, fix=example)
    if parts.scheme == "http" and not _is_loopback(host):
        problem = f"http to {host} would send examples and key readable by everyone on the way"
        raise ConfigError(problem, where=where, fix=f"{flag} https://{parts.netloc}{parts.path}")
    return parts


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def post(url: SplitResult, path: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float) -> Reply:
    """Send one request on a connection of its own. Raises NoReply or TooLarge; a status of any number is a reply."""
    host = url.hostname or ""
    connection = (
        http.client.HTTPSConnection(host, url.port, timeout=timeout_s, context=ssl.create_default_context())
        if url.scheme == "https"
        else http.client.HTTPConnection(host, url.port, timeout=timeout_s)
    )
    # A server that sends a byte now and then never runs into the timeout of a single read.
    expired = threading.Event()
    opened: list[socket.socket] = []  # the connection forgets its socket once the server says it will close

    def cut() -> None:
        expired.set()
        for sock in (*opened, connection.sock):
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        connection.connect()
        opened.append(connection.sock)
        connection.request("POST", path, body=body, headers=dict(headers))
        with connection.getresponse() as response:
            found = response.read(MAX_BODY_BYTES + 1)
            num_missing = response.length
        if len(found) > MAX_BODY_BYTES:
            raise TooLarge
        if expired.is_set():
            raise NoReply(_no_time(timeout_s))
        if num_missing:
            raise NoReply("the connection broke off in the middle of the answer")
        return Reply(
            status=response.status,
            body=found,
            retry_after=response.headers.get("Retry-After", ""),
            location=response.headers.get("Location", ""),
        )
    except (OSError, http.client.HTTPException) as error:
        is_late = expired.is_set() or isinstance(error, TimeoutError)
        raise NoReply(_no_time(timeout_s) if is_late else f"no answer: {type(error).__name__}: {error}"[:300]) from error
    finally:
        timer.cancel()
        connection.close()


def _no_time(timeout_s: float) -> str:
    return f"no whole answer within {timeout_s:g} s"
