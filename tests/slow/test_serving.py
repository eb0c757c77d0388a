"""A served model under load, as a process of its own: the counts of D1, D2, D3 and D8 with a real engine behind them.

    LUTHIER_SOAK_MINUTES=60 python -m pytest tests/slow/test_serving.py -s --timeout 7200     (default: 10 minutes of soak)

With -s each test prints what it measured as one line of JSON. `tests/unit/serve/test_load.py` has the same with a scripted engine.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
from tests.e2e.test_serve import serving, user
from tests.fixtures.tiny_model import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
SOAK_MINUTES = float(os.environ.get("LUTHIER_SOAK_MINUTES", "10"))
MAX_TOKENS = 24
RECURRING = 40
NONCES = 300
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Process:
    url: str
    port: int
    pid: int

    def rss_mb(self) -> float:
        return int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE / 1e6

    def num_fds(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def num_threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def live(self) -> int:
        text = httpx.get(f"http://127.0.0.1:{self.port}/metrics").text
        return int(re.search(r"^luthier_answers_live (\d+)", text, re.MULTILINE)[1])  # type: ignore[index]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    path = make_tiny_model(tmp_path_factory.mktemp("load") / "model")
    with serving(str(path), "--queue", "48", env={"OMP_NUM_THREADS": "1"}) as (process, ready):
        yield Process(ready["url"], int(ready["url"].removesuffix("/v1").rpartition(":")[2]), process.pid)


def _show(name: str, **found: object) -> None:
    print(json.dumps({name: found}), flush=True)


def _ask(number: int, **more: object) -> dict:
    return {"model": "model", "max_tokens": MAX_TOKENS, "messages": user(f"card {number} was not delivered"), **more}


def _card(number: int) -> str:
    """The nonce of a request. Its answer is held to it, so that a piece of another's would show; left alone, a model of random weights
    answers nearly everything alike."""
    return f"{number:05d}{random.Random(number).randbytes(6).hex()}"


def _ask_card(number: int) -> dict:
    schema = {"type": "object", "properties": {"card": {"const": _card(number)}}, "required": ["card"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "card", "schema": schema, "strict": True}}
    return _ask(number, stream=True, max_tokens=64, response_format=form)


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def _stream(client: httpx.AsyncClient, url: str, number: int, rejects: list[float]) -> str:
    """One answer, asked again after a 429."""
    while True:
        started = time.perf_counter()
        async with client.stream("POST", f"{url}/chat/completions", json=_ask_card(number)) as response:
            if response.status_code == 429:
                rejects.append(time.perf_counter() - started)
                assert int(response.headers["retry-after"]) >= 1
                await response.aread()
            else:
                assert response.status_code == 200
                text = (await response.aread()).decode()
                assert text.endswith("data: [DONE]\n\n")
                chunks = [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:-2]]
                assert len({chunk["id"] for chunk in chunks}) == 1
                return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        await asyncio.sleep(0.05)


async def _load(url: str, *, clients: int, requests: int) -> list[float]:
    """Each answer holds its own nonce; how long each refusal took. The nonces recur, see `test_d8_soak`."""
    rejects: list[float] = []
    numbers = iter(range(requests))
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=clients)) as client:

        async def work() -> None:
            for number in (each % NONCES for each in numbers):
                assert json.loads(await _stream(client, url, number, rejects)) == {"card": _card(number)}

        await asyncio.gather(*(work() for _ in range(clients)))
    return rejects


def test_d1_many_clients(server: Process) -> None:
    asyncio.run(_load(server.url, clients=64, requests=NONCES))
    before, fds = server.rss_mb(), server.num_fds()
    started = time.perf_counter()
    rejects = asyncio.run(_load(server.url, clients=64, requests=2000))
    wall_s, after = time.perf_counter() - started, server.rss_mb()
    p99 = _percentile(rejects, 0.99) if rejects else None
    _show("D1", requests=2000, clients=64, wall_s=wall_s, rejects=len(rejects), reject_p99_s=p99, rss_before=before, rss_after=after)
    assert server.live() == 0 and after <= 1.05 * before and server.num_fds() <= fds + 4
    assert p99 is not None and p99 <= 0.1


def test_d2_clients_that_leave(server: Process) -> None:
    draw = random.Random(7)
    fds, threads, before = server.num_fds(), server.num_threads(), server.rss_mb()
    freed: list[float] = []
    for number in range(500):
        content = json.dumps(_ask(number % 100, stream=True, n=draw.choice([1, 2]), max_tokens=400)).encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as one:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            one.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            for _ in range(draw.randrange(1, 12)):
                one.recv(draw.randrange(1, 400))
            if draw.random() < 0.5:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # by RST
        left = time.perf_counter()
        while server.live():
            assert time.perf_counter() - left < 5, "still writing for nobody"
        freed.append(time.perf_counter() - left)
    after = server.rss_mb()
    _show("D2", left=500, freed_p50_s=_percentile(freed, 0.5), freed_max_s=max(freed), rss_before=before, rss_after=after)
    assert _percentile(freed, 0.99) <= 0.5 + 0.1 and server.num_fds() <= fds + 4 and server.num_threads() <= threads + 1


def _seconds(url: str, body: dict, times: int) -> list[float]:
    out: list[float] = []
    with httpx.Client(timeout=30) as client:
        for _ in range(times):
            started = time.perf_counter()
            client.post(f"{url}/chat/completions", json=body)
            out.append(time.perf_counter() - started)
    return out


def test_d3_two_hundred_slow_sockets(server: Process) -> None:
    good = _ask(1, max_tokens=2)
    _seconds(server.url, good, 50)
    quiet: list[float] = []
    busy: list[float] = []
    for _ in range(4):  # in turns: what else runs on the machine must not decide
        quiet += _seconds(server.url, good, 100)
        slow = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(200)]
        for one in slow:
            one.sendall(b"GET /v1/models HTT")
        busy += _seconds(server.url, good, 100)
        for one in slow:
            one.close()
    found = {"quiet_p95_s": _percentile(quiet, 0.95), "busy_p95_s": _percentile(busy, 0.95)}
    _show("D3", sockets=200, **found, quiet_p50_s=_percentile(quiet, 0.5), busy_p50_s=_percentile(busy, 0.5))
    assert found["busy_p95_s"] <= 1.2 * found["quiet_p95_s"] + 0.002


def test_d8_soak(server: Process) -> None:
    """One request a second, of all kinds; memory over the second half must not rise, nor open files.

    The requests recur, seeds too: what was read before is kept up to a limit, and filling that up must not look like a leak.
    """
    statuses: list[int] = []
    seconds: list[float] = []
    memory: list[tuple[float, float]] = []
    fds: list[int] = []
    start = time.monotonic()
    with httpx.Client(timeout=900) as client:  # a machine that is put to sleep for a while is no error of ours
        for number in range(int(60 * SOAK_MINUTES)):
            which, kind = number % RECURRING, number % 4
            more = [{}, {"stream": True}, {"n": 2, "temperature": 1.0, "seed": which}, {"logprobs": True, "top_logprobs": 3}][kind]
            began = time.perf_counter()
            response = client.post(f"{server.url}/chat/completions", json=_ask(which, **more))
            seconds.append(time.perf_counter() - began)
            statuses.append(response.status_code)
            if number % 10 == 0:
                memory.append(((time.monotonic() - start) / 3600, server.rss_mb()))
                fds.append(server.num_fds())
            time.sleep(max(0.0, 1.0 - (time.perf_counter() - began)))
    half = memory[len(memory) // 2 :]
    slope = float(np.polyfit([hour for hour, _ in half], [mb for _, mb in half], 1)[0]) if len(half) > 2 else 0.0
    _show(
        "D8", minutes=SOAK_MINUTES, requests=len(statuses), errors=sum(status != 200 for status in statuses), slope_mb_per_hour=slope,
        rss_first=memory[0][1], rss_last=memory[-1][1], rss_most=max(mb for _, mb in memory), fds=(fds[0], max(fds), fds[-1]),
        p50_s=_percentile(seconds, 0.5), p99_s=_percentile(seconds, 0.99),
    )  # fmt: skip
    assert set(statuses) == {200}
    assert fds[-1] <= fds[0] + 2
    assert half[-1][1] - half[0][1] <= max(1.0, SOAK_MINUTES / 60)  # a slope of few minutes is mostly noise: the rise itself counts
