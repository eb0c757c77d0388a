"""Many clients at once (D1), clients that leave (D2): no mixed streams, no places lost, a full queue that answers at once."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import threading
import time

import httpx2 as httpx
import pytest
from tests.fixtures.served import Served, served

from luthier.core.types import Order


def _nonce_answer(order: Order) -> str:
    """The nonce of the request, over and over: a stream that holds a character of another shows it."""
    return order.messages[-1].content * 5


async def _one(client: httpx.AsyncClient, url: str, nonce: str, rejects: list[float]) -> int:
    """Stream one answer, again after a 429; how often it was refused."""
    body = {"model": "tuned", "stream": True, "messages": [{"role": "user", "content": nonce}]}
    for attempt in range(10_000):
        started = time.perf_counter()
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            if response.status_code == 429:
                rejects.append(time.perf_counter() - started)
                assert int(response.headers["retry-after"]) >= 1
                await response.aread()
            else:
                assert response.status_code == 200
                text = (await response.aread()).decode()
                chunks = [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:-2]]
                assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == nonce * 5
                assert len({chunk["id"] for chunk in chunks}) == 1 and text.endswith("data: [DONE]\n\n")
                return attempt
        await asyncio.sleep(0.02)
    raise AssertionError("never admitted")


async def _load(url: str, *, clients: int, requests: int) -> list[float]:
    rejects: list[float] = []
    numbers = iter(range(requests))
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=clients)) as client:

        async def work() -> None:
            for number in numbers:
                await _one(client, url, f"<{number:05d}{random.Random(number).randbytes(6).hex()}>", rejects)

        await asyncio.gather(*(work() for _ in range(clients)))
    return rejects


def _check_load(server: Served, *, clients: int, requests: int) -> list[float]:
    rejects = asyncio.run(_load(server.url, clients=clients, requests=requests))
    assert server.service.dispatcher.num_live == 0 and server.engine.idle and not server.service.dispatcher._open
    statuses = {dict(labels)["status"] for labels in server.service.metrics.requests}
    assert statuses <= {"200", "429"} and len(server.engine.orders) == requests
    return rejects


def test_streams_of_many_clients_do_not_mix() -> None:
    with served(limit=12, max_active=8, step_s=0.001, answers=_nonce_answer) as server:
        rejects = _check_load(server, clients=16, requests=100)
        assert rejects and server.service.metrics.refused == len(rejects)
        assert sorted(rejects)[len(rejects) // 2] < 0.1


def _leave_at_random(server: Served, times: int) -> None:
    draw = random.Random(5)
    for number in range(times):
        body = {"model": "base", "stream": number % 3 != 0, "n": draw.choice([1, 2]), "messages": [{"role": "user", "content": "x" * 3000}]}
        content = json.dumps(body).encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as one:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            one.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            if body["stream"]:
                for _ in range(draw.randrange(1, 6)):
                    one.recv(200)
            else:
                time.sleep(draw.random() * 0.05)
            if draw.random() < 0.5:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # by RST
        left = time.monotonic()
        while server.service.dispatcher.num_live or not server.engine.idle:
            assert time.monotonic() - left < 0.5 + 4 * server.engine.step_s, f"still writing for nobody ({number})"
            time.sleep(0.002)
    assert len(server.engine.orders) == len(server.engine.cancelled) > 0
    assert not server.service.dispatcher._tickets and not server.service.dispatcher._open


def test_an_answer_nobody_waits_for_is_given_up() -> None:
    with served(step_s=0.005) as server:
        _leave_at_random(server, 20)
        threads = [thread.name for thread in threading.enumerate()]
        assert threads.count("engine") == 1
        assert httpx.get(f"{server.url}/healthz").status_code == 200


@pytest.mark.slow
def test_d2() -> None:
    with served(step_s=0.005) as server:
        before = len(os.listdir("/proc/self/fd"))
        _leave_at_random(server, 500)
        assert len(os.listdir("/proc/self/fd")) <= before + 4


@pytest.mark.slow
def test_d3_at_once_with_two_hundred_slow_sockets() -> None:
    bad = {"model": "base", "n": 9, "messages": [{"role": "user", "content": "x"}]}
    good = {**bad, "n": 1}

    def seconds(url: str, body: dict, times: int) -> list[float]:
        out = []
        with httpx.Client() as client:
            for _ in range(times):
                started = time.perf_counter()
                client.post(f"{url}/v1/chat/completions", json=body)
                out.append(time.perf_counter() - started)
        return sorted(out)

    with served() as server:
        seconds(server.url, good, 50)
        quiet = seconds(server.url, good, 300)
        assert seconds(server.url, bad, 40)[-1] <= 0.05
        slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
        for one in slow:
            one.sendall(b"GET /v1/models HTT")
        busy = seconds(server.url, good, 300)
        for one in slow:
            one.close()
        assert busy[284] <= 1.2 * quiet[284] + 0.001, (busy[284], quiet[284])
