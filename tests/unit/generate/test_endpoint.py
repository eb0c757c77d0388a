"""A model behind an address, against a scripted server: what is sent, what is believed, what is repeated, what is given up."""

from __future__ import annotations

import datetime
import json
import random
import re
import threading
from email.utils import format_datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.fake_server import Answer, fake_server

from luthier.core.errors import ConfigError, EndpointError, RunError
from luthier.core.types import Generation, GenerationRequest, Message
from luthier.generate import http_post
from luthier.generate.endpoint import (
    MAX_BACKOFF_S,
    MAX_WAIT_S,
    Endpoint,
    Garbage,
    _asked_wait_s,
    _is_same_model,
    _read_answer,
    ask,
    exchange,
)
from luthier.generate.http_post import check_url
from luthier.generate.store import NoStore
from luthier.store.cache import GenerationCache

SECRET = "sk-not-a-real-key-0123456789"


def _endpoint(url: str, **changes: object) -> Endpoint:
    values = {"url": url, "model": "m", "name": "m at fake", "timeout_s": 5.0, "retries": 2, "backoff_s": 0.01, **changes}
    return Endpoint(**values)  # type: ignore[arg-type]


def _requests(n: int) -> list[GenerationRequest]:
    return [GenerationRequest(item_id=f"i{k}", messages=(Message(role="user", content=f"item {k}"),), max_new_tokens=7) for k in range(n)]


def _ask(endpoint: Endpoint, n: int = 1, **options: object) -> tuple[Generation, ...]:
    return ask(endpoint, _requests(n), **{"store": NoStore(), "on_progress": lambda done, total: None, **options})  # type: ignore[arg-type]


def _echo(request: dict, number: int) -> Answer:
    return Answer(text=f"answer to {request['messages'][-1]['content']}")


def test_answers_come_in_order_with_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    with fake_server(_echo) as server:
        found = _ask(_endpoint(server.url, key_env="MY_KEY"), 9)
    assert [(g.item_id, g.text) for g in found] == [(f"i{k}", f"answer to item {k}") for k in range(9)]
    assert {(g.num_prompt_tokens, g.num_new_tokens, g.num_cached_tokens, g.num_retries, g.served_by) for g in found} == {
        (40, 3, None, 0, "m")
    }
    assert all(g.latency_s > 0 for g in found)
    one = server.seen[0]
    assert one.path == "/v1/chat/completions" and one.headers["Authorization"] == f"Bearer {SECRET}"
    assert one.body["max_tokens"] == 7 and one.body["temperature"] == 0.0 and one.body["stream"] is False


def test_fields_newer_models_want() -> None:
    with fake_server(_echo) as server:
        _ask(_endpoint(server.url, length_field="max_completion_tokens", temperature=None))
    body = server.seen[0].body
    assert body["max_completion_tokens"] == 7 and not {"max_tokens", "temperature"} & set(body)
    assert "Authorization" not in server.seen[0].headers


def test_no_more_at_once_than_allowed() -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def script(request: dict, number: int) -> Answer:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        threading.Event().wait(0.03)
        with lock:
            now[0] -= 1
        return Answer()

    with fake_server(script) as server:
        _ask(_endpoint(server.url, concurrency=3), 12)
    assert most[0] == 3


@pytest.mark.parametrize(
    "fault",
    [
        Answer(status=429, body=b"slow down", headers={"Retry-After": "0"}),
        Answer(status=500, body=b"oh"),
        Answer(status=503),
        Answer(body=b"<html>busy</html>"),
        Answer(body=b"[" * 50_000),
        Answer(body=b"{}"),
        Answer(body=b'{"choices": [{"message": {"content": "ca', announced=400),
        Answer(text=None, body=b'{"choices": [{"message": {"content": 3}}]}'),
    ],
    ids=["429", "500", "503", "html", "nested", "empty", "truncated", "number"],
)
def test_what_may_pass_is_tried_again_and_counted(fault: Answer) -> None:
    with fake_server(lambda request, number: fault if number < 2 else Answer()) as server:
        [found] = _ask(_endpoint(server.url))
    assert (found.text, found.num_retries, len(server.seen)) == ("card", 2, 3)
    with fake_server(lambda request, number: fault) as server, pytest.raises(EndpointError, match="after 2 retries"):
        _ask(_endpoint(server.url))
    assert len(server.seen) == 3


class _Waits(threading.Event):
    """Notes how long it is to be waited for instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return False


def _waits(url: str, key: str, **changes: object) -> list[float]:
    """The waits between the attempts of one request that never succeeds."""
    halt, endpoint = _Waits(), _endpoint(url, **{"retries": 8, "backoff_s": 1.0, **changes})
    with pytest.raises(EndpointError):
        exchange(endpoint, "", "/chat/completions", {}, lambda body: body, key, halt)
    return halt.seconds


def test_waits_double_up_to_a_limit_and_are_spread() -> None:
    """Half of each wait is jitter, from a stream of the request's own: many that failed together do not come back together."""
    with fake_server(lambda request, number: Answer(status=503, body=b"busy")) as server:
        random.seed(3)
        state = random.getstate()
        found = [_waits(server.url, f"request {n}") for n in range(40)]
        assert random.getstate() == state  # nobody else's stream is drawn from
        assert found[0] == _waits(server.url, "request 0") != found[1]
    for attempt in range(8):
        whole, waits = min(MAX_BACKOFF_S, 2.0**attempt), [one[attempt] for one in found]
        assert all(whole / 2 <= wait <= whole for wait in waits)
        quarters = {int(4 * (wait / whole - 0.5) * 2) for wait in waits}
        assert quarters >= {0, 1, 2, 3} and len(set(waits)) == len(waits)  # all over the half, none twice


def test_jitter_comes_on_top_of_the_wait_the_server_asks_for() -> None:
    with fake_server(lambda request, number: Answer(status=429, body=b"slow", headers={"Retry-After": "7"})) as server:
        waits = _waits(server.url, "request 0", retries=3)
    assert all(7 + whole / 2 <= wait <= 7 + whole for wait, whole in zip(waits, (1, 2, 4), strict=True))


def test_the_wait_the_server_asks_for_is_kept() -> None:
    with fake_server(lambda request, number: Answer(status=429, headers={"Retry-After": "1"}) if number == 0 else Answer()) as server:
        started = datetime.datetime.now(tz=datetime.UTC)
        [found] = _ask(_endpoint(server.url))
    assert (datetime.datetime.now(tz=datetime.UTC) - started).total_seconds() >= 1.0
    assert found.latency_s < 0.9  # of the attempt that succeeded


def test_too_long_a_wait_fails_at_once() -> None:
    with (
        fake_server(lambda request, number: Answer(status=429, headers={"Retry-After": "3600"})) as server,
        pytest.raises(EndpointError, match="asks to wait 3,600 s"),
    ):
        _ask(_endpoint(server.url))
    assert len(server.seen) == 1


def test_retry_after_as_a_date_or_nonsense() -> None:
    later = datetime.datetime.now(tz=datetime.UTC) + datetime.timedelta(seconds=30)
    assert 28 < _asked_wait_s(format_datetime(later, usegmt=True)) <= 30
    assert _asked_wait_s(format_datetime(later - datetime.timedelta(hours=1))) == 0.0
    for nonsense in ("", "soon", "-5", "1e9", "²", "9" * 40):
        assert _asked_wait_s(nonsense) == 0.0
    assert _asked_wait_s("121") > MAX_WAIT_S


@pytest.mark.parametrize("answer", [Answer(sleep_s=3.0), Answer(drip_s=0.05)], ids=["silent", "a byte now and then"])
def test_a_slow_server_is_given_up(answer: Answer) -> None:
    with fake_server(lambda request, number: answer) as server, pytest.raises(EndpointError, match=r"no whole answer within 0\.3 s"):
        _ask(_endpoint(server.url, timeout_s=0.3, retries=0))


def test_nobody_listens() -> None:
    with fake_server(_echo) as server:
        url = server.url
    with pytest.raises(EndpointError, match="no answer: ConnectionRefusedError"):
        _ask(_endpoint(url, retries=1))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(status=401, body=b"Incorrect API key"), "401.*endpoint-key-env"),
        (Answer(status=404, body=b"no such model"), "404: no such model"),
        (Answer(status=307, headers={"Location": "http://127.0.0.1:9/"}), "another address, which is refused"),
        (Answer(status=400, body=b"Unsupported parameter: use 'max_completion_tokens'"), "length_field=max_completion_tokens"),
        (Answer(model="another"), "asked for 'm', and 'another' answered"),
        (Answer(body=b"x" * (2 << 20)), "more than 1,048,576 bytes"),
    ],
    ids=["no key", "no model", "redirect", "parameter", "wrong model", "huge"],
)
def test_what_will_not_pass_is_given_up_at_once(answer: Answer, reason: str) -> None:
    with fake_server(lambda request, number: answer) as server, pytest.raises(EndpointError) as caught:
        _ask(_endpoint(server.url))
    assert len(server.seen) == 1
    assert re.search(reason, str(caught.value), re.DOTALL), str(caught.value)


def test_a_key_that_comes_back_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    with (
        fake_server(lambda request, number: Answer(status=401, body=f"bad key {SECRET}!".encode())) as server,
        pytest.raises(EndpointError) as caught,
    ):
        _ask(_endpoint(server.url, key_env="MY_KEY"))
    assert SECRET not in str(caught.value) and "bad key [key]!" in str(caught.value)


@pytest.mark.parametrize("value", [None, "", f"{SECRET}\n", "sk-ä"])
def test_no_usable_key_sends_nothing_and_says_nothing_of_it(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with fake_server(_echo) as server, pytest.raises(EndpointError, match="MY_KEY") as caught:
        _ask(_endpoint(server.url, key_env="MY_KEY"))
    assert not server.seen and SECRET not in str(caught.value)


def test_paid_answers_survive_a_failure_and_are_not_asked_again(tmp_path: Path) -> None:
    def script(request: dict, number: int) -> Answer:
        return Answer(status=400, body=b"no") if request["messages"][-1]["content"] == "item 5" else _echo(request, number)

    path = tmp_path / "generations.jsonl"
    with fake_server(script) as server, pytest.raises(EndpointError, match="400: no"):
        _ask(_endpoint(server.url, concurrency=1), 9, store=GenerationCache(path))
        assert len(server.seen) == 6  # what was still waiting was not sent
        with fake_server(_echo) as healthy:
            endpoint = _endpoint(server.url, concurrency=1)
            kept = GenerationCache(path)
            assert len(kept) == 5
            del healthy
            with pytest.raises(EndpointError):
                _ask(endpoint, 9, store=kept)
        assert len(server.seen) == 7  # item 5 alone


def test_a_full_disk_ends_the_paying() -> None:
    class Full(NoStore):
        def put(self, key: str, generation: Generation) -> None:
            raise RunError("the disk is full")

    with fake_server(_echo) as server, pytest.raises(RunError, match="full"):
        _ask(_endpoint(server.url, concurrency=1), 200, store=Full())
    assert len(server.seen) < 150


def test_stored_answers_need_no_server_and_no_key(tmp_path: Path) -> None:
    with fake_server(_echo) as server:
        endpoint = _endpoint(server.url)
        first = _ask(endpoint, 4, store=GenerationCache(tmp_path / "g.jsonl"))
    again = _ask(Endpoint(**{**_fields(endpoint), "key_env": "GONE"}), 4, store=GenerationCache(tmp_path / "g.jsonl"))
    assert again == first


def _fields(endpoint: Endpoint) -> dict:
    return {name: getattr(endpoint, name) for name in Endpoint.__slots__}


def test_equal_questions_are_paid_once() -> None:
    [one] = _requests(1)
    with fake_server(_echo) as server:
        found = ask(_endpoint(server.url), [one, one, one], store=NoStore(), on_progress=lambda done, total: None)
    assert len(server.seen) == 1 and len(found) == 3


def test_stopping_keeps_what_is_on_its_way(tmp_path: Path) -> None:
    stop = threading.Event()

    def script(request: dict, number: int) -> Answer:
        if number >= 2:
            stop.set()
        return Answer(sleep_s=0.05)

    path = tmp_path / "g.jsonl"
    with fake_server(script) as server, pytest.raises(KeyboardInterrupt):
        _ask(_endpoint(server.url, concurrency=2), 200, store=GenerationCache(path), should_stop=stop.is_set)
    assert len(GenerationCache(path)) == len(server.seen) < 200


def test_tokens_nobody_counted_are_not_zero() -> None:
    with fake_server(lambda request, number: Answer(usage=None)) as server:
        [found] = _ask(_endpoint(server.url))
    assert (found.num_prompt_tokens, found.num_new_tokens) == (None, None)


@pytest.mark.parametrize(
    ("asked", "served", "same"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", False),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku-20241022", True),
        ("llama3.2", "llama3.2:latest", True),
        ("gemini-2.0-flash", "models/gemini-2.0-flash", True),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct", True),
        ("a", "b", False),
    ],
)
def test_dated_names_are_the_model_they_stand_for(asked: str, served: str, same: bool) -> None:
    assert _is_same_model(asked, served) is same


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/v1", "ftp://127.0.0.1/", "example.com/v1", "https://", "https://user:pw@example.com/v1", "https://example.com/v1?key=x",
        "https://example.com/v1#x", "https://example.com:99999/", "https://exa mple.com/", "http://127.0.0.1.example.com/", "http://[::1", "https://é.com",
    ],
)  # fmt: skip
def test_addresses_that_must_not_be_used(url: str) -> None:
    with pytest.raises(ConfigError, match=r"endpoint\.url"):
        check_url(url)


@pytest.mark.parametrize("url", ["https://api.openai.com/v1", "http://localhost:11434/v1", "http://127.0.0.5:8000", "http://[::1]:8000/v1"])
def test_addresses_that_may(url: str) -> None:
    assert check_url(url).hostname


KEYS = ["choices", "message", "content", "usage", "model", "prompt_tokens", "refusal"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=20,
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_a_server_says_is_an_answer_or_a_known_error(body: bytes) -> None:
    [request] = _requests(1)
    try:
        found = _read_answer(_endpoint("http://127.0.0.1:1/"), request, body)
    except (Garbage, EndpointError):
        return
    found.text.encode("utf-8")
    assert all(n is None or n >= 0 for n in (found.num_prompt_tokens, found.num_cached_tokens, found.num_new_tokens))


def test_half_characters_are_replaced() -> None:
    [request] = _requests(1)
    body = rb'{"choices": [{"message": {"content": "a\ud800b\ud83d\ude00"}}]}'
    assert _read_answer(_endpoint("http://127.0.0.1:1/"), request, body).text == "a\ufffdb\U0001f600"


def test_the_answer_limit_is_the_documented_one() -> None:
    assert http_post.MAX_BODY_BYTES == 1_048_576
