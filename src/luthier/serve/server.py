"""Listening: a socket that is bound before anything is promised, uvicorn within limits, and an end that loses no answer it can keep."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from luthier.core.console import note_from_signal_handler
from luthier.core.errors import ConfigError
from luthier.core.stop import SIGNALS
from luthier.serve.guard import SECURITY_HEADERS
from luthier.serve.problems import Problem, as_bytes

if TYPE_CHECKING:
    from starlette.types import ASGIApp

HEAD_TIMEOUT_S = 10.0  # for the head of a request, from the connection or from the end of the request before
KEEP_ALIVE_S = 10
MAX_HEAD_BYTES = 16 * 1024
MAX_CONNECTIONS = 1000
OnReady = Callable[[Callable[[], None]], None]  # is handed what ends the server, to be called from any thread

DRAIN_S = 7.0  # for answers that are being written when the server is told to end
CLOSE_S = 2  # for their last words to be taken


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with two bounds it does not have: on the time of a request's head, and on the number of connections."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A client connects."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, perhaps one at a time."""
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """An answer is sent; the next request, or the rest of a body nobody reads, has its own time."""
        super().on_response_complete()
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left."""
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        is_answering = self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]
        if is_answering and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        elif not is_answering and self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or has too long a head, gets the same kind of answer as everything else."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = as_bytes(Problem(400, "invalid_http", f"{msg} The head of a request may have {MAX_HEAD_BYTES:,} bytes.").body())
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=[*headers, *SECURITY_HEADERS], reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own handling of signals, which would end the process by the signal again instead of with 0."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(256)
    except (OSError, OverflowError) as error:
        found.close()
        raise ConfigError(f"cannot listen there: {error}", where=f"{host}:{port}", fix=f"--port {port % 65_000 + 1}") from error
    found.setblocking(False)
    return found


def serve_until_stopped(
    app: ASGIApp, listener: socket.socket, *, on_ready: OnReady, drain: Callable[[float], Coroutine[object, object, None]]
) -> None:
    """Serve until SIGTERM or SIGINT; then take nothing new, `drain` what is open, and return. A second signal ends the process at once."""
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(DRAIN_S) + CLOSE_S,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    asyncio.run(_serve(_Uvicorn(config), listener, on_ready, drain))


async def _serve(
    server: _Uvicorn, listener: socket.socket, on_ready: OnReady, drain: Callable[[float], Coroutine[object, object, None]]
) -> None:
    loop = asyncio.get_running_loop()
    draining: list[asyncio.Task[None]] = []

    def begin_to_end() -> None:
        if not draining:
            draining.append(loop.create_task(drain(DRAIN_S)))
            server.should_exit = True

    with _on_signals(lambda: loop.call_soon_threadsafe(begin_to_end)):
        serving = loop.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if not serving.done():
            on_ready(lambda: loop.call_soon_threadsafe(begin_to_end) and None)
        await serving
        for task in draining:
            await task


@contextmanager
def _on_signals(begin_to_end: Callable[[], object]) -> Generator[None]:
    """The first SIGINT or SIGTERM calls `begin_to_end`, the second ends the process. In other threads (tests) signals stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if seen:
            os._exit(128 + number)
        seen.append(number)
        note_from_signal_handler("no new requests; finishing what is being answered, once more stops at once")
        begin_to_end()

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
