"""Who is let in and what is let through: keys, hosts, browsers, sizes and slow clients, over raw sockets where a library would help."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import socket
import time
from collections.abc import Iterator

import httpx2 as httpx
import pytest
from tests.fixtures.served import KEY, Served, make_service, served

from luthier.core.errors import ConfigError
from luthier.serve import guard
from luthier.serve import server as serving
from luthier.serve.api import build_routes
from luthier.serve.guard import SECURITY_HEADERS, rules_for
from luthier.serve.server import MAX_HEAD_BYTES, bind
from luthier.serve.wire import MAX_BODY_BYTES

CHAT = b'{"model": "base", "messages": [{"role": "user", "content": "x"}]}'
JSON = {"Content-Type": "application/json"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as found:
        yield found


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    with served(keys={"A": KEY, "B": "another-key-of-length"}) as found:
        yield found


def ask(
    found: Served, path: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None, host: str | None = None
) -> http.client.HTTPResponse:
    """The path and the headers exactly as they are given."""
    connection = http.client.HTTPConnection("127.0.0.1", found.port, timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", host if host is not None else f"127.0.0.1:{found.port}")
    for name, value in (headers or {}).items():
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    response = connection.getresponse()
    response.body = response.read()  # pyright: ignore[reportAttributeAccessIssue]
    connection.close()
    return response


def raw(found: Served, data: bytes, *, wait_s: float = 5.0) -> bytes:
    with socket.create_connection(("127.0.0.1", found.port), timeout=wait_s) as connection:
        connection.sendall(data)
        out = b""
        try:
            while chunk := connection.recv(65536):
                out += chunk
        except TimeoutError:
            pass
        return out


# ---- D4: keys


def routes() -> list[str]:
    service, _ = make_service()
    paths = [re.sub(r"{.*?}", "tuned", route.path) for route in build_routes(service).routes]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/tuned", "/metrics", "/healthz"} == set(paths)
    return paths


@pytest.mark.parametrize("path", [*routes(), "/", "/docs", "/openapi.json", "/unknown", "/v1", "*"])
def test_no_route_answers_without_the_key(locked: Served, path: str) -> None:
    stem = path.lstrip("/")
    paths = {
        path,
        f"//{stem}",
        f"/./{stem}",
        f"/healthz/../{stem}",
        f"/x/../{stem}",
        f"/%2e/{stem}",
        f"/{stem}%00",
        f"/{stem}/",
        f"/{stem}?a=/healthz",
    }
    paths |= {
        path.replace("/v1", "/%76%31"),
        path.replace("/v1", "//v1"),
        path.replace("/v1", "/V1"),
        f"/healthz%2f..%2f{stem}",
        f"/{stem};/healthz",
    }
    keys: list[dict[str, str]] = [
        {}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {KEY[:-1]}"}, {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer "}, {"X-API-Key": KEY},
        {"Authorization": f"Bearer {KEY.upper()}"}, {"Cookie": f"key={KEY}"},
    ]  # fmt: skip
    for target in sorted(paths) if path == "/v1/chat/completions" else [path, f"//{stem}", f"/x/../{stem}"]:
        for method, headers in itertools.product(METHODS, keys):
            if target == "/healthz" and method in ("GET", "HEAD"):
                continue
            found = ask(locked, target, method, CHAT if method == "POST" else None, JSON | headers)
            is_health = target.partition("?")[0] == "/healthz"
            assert found.status == (405 if is_health else 401), (target, method, headers, found.status)
            check_headers(found)


def check_headers(found: http.client.HTTPResponse) -> None:
    for name, value in SECURITY_HEADERS:
        assert found.getheader(name.decode()) == value.decode()
    assert not [name for name, _ in found.getheaders() if name.lower().startswith("access-control") or name.lower() == "server"]


def test_the_key_opens(locked: Served) -> None:
    for key in (KEY, "another-key-of-length"):
        assert ask(locked, "/v1/chat/completions", "POST", CHAT, JSON | {"Authorization": f"Bearer {key}"}).status == 200
    assert ask(locked, "/metrics", headers={"Authorization": f"bearer {KEY}"}).status == 200
    assert ask(locked, "/healthz").status == 200
    found = ask(locked, "/v1/models")
    assert found.getheader("www-authenticate") == "Bearer" and json.loads(found.body)["error"]["code"] == "invalid_api_key"
    twice = (
        f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nAuthorization: Bearer x\r\nConnection: close\r\n\r\n"
    )
    assert raw(locked, twice.encode()).startswith(b"HTTP/1.1 401")


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of one length, through `compare_digest`, all of them whatever the first one says."""
    seen: list[tuple[int, int]] = []
    true = guard.hmac.compare_digest
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: seen.append((len(a), len(b))) or true(a, b))
    keys = [guard.hash_key(key) for key in (KEY, "another-key-of-length", "a-third")]
    guard._check_key([f"Bearer {KEY}"], keys)
    assert seen == [(32, 32)] * 3


def test_an_address_others_can_reach_needs_a_key_and_a_name() -> None:
    everywhere = ".".join(["0"] * 4)
    for host in (everywhere, "::", "192.168.1.5", "10.0.0.1", "::ffff:8.8.8.8"):
        with pytest.raises(ConfigError, match="takes a key"):
            rules_for(host, allowed_hosts=("box",), keys={})
    with pytest.raises(ConfigError, match="by which name"):
        rules_for(everywhere, allowed_hosts=(), keys={"K": KEY})
    for value in (None, "", "short", "with space in the key", "ü" * 20, "line\nbreak-in-the-key"):
        with pytest.raises(ConfigError, match="K") as error:
            rules_for("127.0.0.1", allowed_hosts=(), keys={"K": value})
        assert not value or value not in str(error.value)
    with pytest.raises(ConfigError, match="no address"):
        rules_for("example.com", allowed_hosts=(), keys={"K": KEY})
    rules = rules_for(everywhere, allowed_hosts=("Box.Example",), keys={"K": KEY})
    assert rules.hosts == {"localhost", "127.0.0.1", "::1", "box.example"} and KEY not in repr(rules)
    assert "192.168.1.5" in rules_for("192.168.1.5", allowed_hosts=(), keys={"K": KEY}).hosts


def test_a_port_that_is_taken(server: Served) -> None:
    with pytest.raises(ConfigError) as error:
        bind("127.0.0.1", server.port)
    assert f"--port {server.port + 1}" in error.value.fix


# ---- D5: browsers


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/healthz", "/metrics", "/nothing"])
def test_browsers_are_refused(server: Served, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
        for headers in (
            {"Origin": "https://evil.invalid"},
            {"Origin": "null"},
            {"Origin": f"http://127.0.0.1:{server.port}"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-origin"},
            {"Origin": "https://evil.invalid", "Access-Control-Request-Method": "POST"},
        ):
            found = ask(server, path, method, CHAT if method != "GET" else None, JSON | headers)
            assert (found.status, json.loads(found.body)["error"]["code"]) == (403, "browser_refused")
            check_headers(found)


@pytest.mark.parametrize(
    "host",
    ["evil.invalid", "evil.invalid:8000", "127.0.0.1.evil.invalid", "localhost.evil.invalid", "127.0.0.1@evil.invalid",
     "evil.invalid/127.0.0.1", "", "[::1", "127.0.0.1#evil", "127.0.0.2", "2130706433", "evil.invalid\\@127.0.0.1", "127.0.0.1:x"],
)  # fmt: skip
def test_a_rebound_name_is_refused(server: Served, host: str) -> None:
    found = ask(server, "/v1/models", host=host)
    assert found.status in (400, 421)
    check_headers(found)


def test_names_of_this_machine_are_taken(server: Served) -> None:
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", f"127.0.0.1:{server.port}", "[::1]:8000"):
        assert ask(server, "/v1/models", host=host).status == 200
    assert raw(server, b"GET /v1/models HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400")
    twice = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"
    assert raw(server, twice).startswith(b"HTTP/1.1 4")
    assert raw(server, b"GET http://evil.invalid/v1/models HTTP/1.1\r\nHost: evil.invalid\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 421"
    )


def test_websockets_are_not_spoken(server: Served) -> None:
    for path in ("/v1/chat/completions", "/v1/models", "/ws"):
        headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x" * 22 + "==", "Sec-WebSocket-Version": "13"}
        assert ask(server, path, headers=headers).status in (200, 404, 405)  # an ordinary answer, no 101
        assert ask(server, path, headers=headers | {"Origin": "https://evil.invalid"}).status == 403


# ---- D3: sizes and slowness


def test_caps_answer_at_once_and_before_tokenising(server: Served) -> None:
    base = json.loads(CHAT)
    message = base["messages"][0]
    bodies = [
        {**base, "n": 9}, {**base, "n": 10**9}, {**base, "max_tokens": 10**9}, {**base, "max_completion_tokens": 4097},
        {**base, "logprobs": True, "top_logprobs": 21}, {**base, "stop": ["x"] * 9}, {**base, "stop": "x" * 257},
        {**base, "messages": [message] * 513}, {**base, "messages": [{**message, "content": [{"type": "text", "text": "x"}] * 513}]},
        {**base, "tools": [{"type": "function", "function": {"name": "f"}}] * 65}, {**base, "seed": 2**64}, {**base, "user": "x" * 513},
    ]  # fmt: skip
    taken, slowest = len(server.engine.orders), 0.0
    for body in bodies:
        started = time.perf_counter()
        found = ask(server, "/v1/chat/completions", "POST", json.dumps(body).encode(), JSON)
        slowest = max(slowest, time.perf_counter() - started)
        assert found.status == 400, body
    assert len(server.engine.orders) == taken and slowest < 0.5  # 50 ms is measured in the slow tier, on a quiet machine


def test_bodies_beyond_a_mebibyte(server: Served) -> None:
    big = b'{"model": "base", "messages": [{"role": "user", "content": "' + b"x" * MAX_BODY_BYTES + b'"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    found = raw(server, head + b"Content-Length: %d\r\n\r\n" % len(big) + big)
    assert found.startswith(b"HTTP/1.1 413") and b"body_too_large" in found
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(big[i : i + 65536]), big[i : i + 65536]) for i in range(0, len(big), 65536))
    assert raw(server, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked + b"0\r\n\r\n").startswith(b"HTTP/1.1 413")
    assert raw(server, head + b"Content-Length: 99999999999999999999999\r\n\r\n").startswith(b"HTTP/1.1 4")
    assert raw(server, head + b"Content-Length: -1\r\n\r\n").startswith(b"HTTP/1.1 400")
    both = raw(server, head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert both.startswith(b"HTTP/1.1 400")
    exact = CHAT + b" " * (MAX_BODY_BYTES - len(CHAT))
    assert ask(server, "/v1/chat/completions", "POST", exact, JSON).status == 200


def test_heads_beyond_their_size(server: Served) -> None:
    for data in (
        b"GET /" + b"x" * MAX_HEAD_BYTES * 2,
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * MAX_HEAD_BYTES * 2,
        b"GET /v1/models HTTP/1.1\r\n" + b"A: b\r\n" * MAX_HEAD_BYTES,
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n",
    ):
        found = raw(server, data)
        assert found.startswith(b"HTTP/1.1 400") and b'"code":"invalid_http"' in found and b"nosniff" in found, found[:200]


def test_slow_clients_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_TIMEOUT_S", 0.4)
    with served(body_timeout_s=0.4) as server:
        sockets = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(40)]
        body = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        for number, one in enumerate(sockets):
            one.sendall(b"" if number < 10 else b"GET /v1/mod" if number < 20 else body)
        first = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        sockets[39].sendall(b"")
        again = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        again.sendall(first + b"GET /hea")  # a whole request, and the beginning of another
        started = time.perf_counter()
        assert ask(server, "/v1/chat/completions", "POST", CHAT, JSON).status == 200 and time.perf_counter() - started < 1
        for number, one in enumerate([*sockets, again]):
            found, deadline = b"", time.monotonic() + 4
            try:
                while chunk := one.recv(4096):
                    found += chunk
            except ConnectionResetError:
                pass
            assert time.monotonic() < deadline
            assert (b"408" in found) == (20 <= number < 40), found
            one.close()
        assert ask(server, "/healthz").status == 200


def test_a_client_that_does_not_read_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient(self, **values) -> None:
        true(self, **{**values, "send_timeout_s": 0.3})

    true = guard.Rules.__init__
    monkeypatch.setattr(guard.Rules, "__init__", impatient)
    with served(answers=lambda order: "\N{GRINNING FACE}" * 4000) as server:
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect(("127.0.0.1", server.port))
        body = b'{"model": "base", "n": 8, "stream": true, "messages": [{"role": "user", "content": "x"}]}'
        one.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(body)
            + body
        )
        deadline = time.monotonic() + 8
        while (server.service.dispatcher.num_live or not server.engine.orders) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.service.dispatcher.num_live == 0
        one.close()


def test_more_connections_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 5)
    with served() as server:
        sockets = [socket.create_connection(("127.0.0.1", server.port), timeout=3) for _ in range(5)]
        time.sleep(0.1)
        with pytest.raises((httpx.TransportError, OSError)):
            httpx.get(f"{server.url}/healthz")
        for one in sockets:
            one.close()
        time.sleep(0.1)
        assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_the_process_keeps_no_sockets(server: Served) -> None:
    for _ in range(5):
        raw(server, b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        raw(server, b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert len(os.listdir("/proc/self/fd")) <= before + 2
