"""What clients get: the reference shapes through the official client and byte by byte, and errors that say what to change."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import openai
import pytest
from tests.fixtures.hostile import HOSTILE
from tests.fixtures.served import CONTEXT, Served, served

from luthier.core.errors import EngineEnded
from luthier.serve import answers, dispatch


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def post(server: Served, body: object, path: str = "chat/completions") -> httpx.Response:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    return httpx.post(f"{server.url}/v1/{path}", content=content, headers={"content-type": "application/json"})


def last_order(server: Served):
    return server.engine.orders[max(server.engine.orders)]


# ---- answers


def test_models(server: Served, client: openai.OpenAI) -> None:
    listed = [model.id for model in client.models.list()]
    assert listed == ["tuned", "tuned-prompted", "base"]
    assert client.models.retrieve("tuned").owned_by == "luthier"
    answers.ModelList.model_validate(httpx.get(f"{server.url}/v1/models").json())
    prompted = httpx.get(f"{server.url}/v1/models/tuned-prompted").json()
    assert prompted["prompt"] == {"system": "Be brief.", "instruction": "Say it."} and prompted["root"] == "tuned"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("tunde")
    assert error.value.code == "model_not_found" and "did you mean tuned?" in error.value.message


def test_a_chat_answer_is_of_the_reference_shape(server: Served, client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="tuned", messages=user("hello"), temperature=0.5, top_p=0.9, seed=7)
    assert (done.choices[0].message.content, done.choices[0].finish_reason, done.usage.completion_tokens) == ("hello", "stop", 5)
    sampling = last_order(server).sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, last_order(server).voice) == (0.5, 0.9, 7, "tuned")
    raw = post(server, {"model": "base", "messages": user("hi")}).json()
    answers.ChatCompletion.model_validate(raw)
    assert {k: v for k, v in raw.items() if k not in ("id", "created")} == {
        "object": "chat.completion",
        "model": "base",
        "system_fingerprint": "fp_test",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "hi", "refusal": None}, "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "prompt_tokens_details": {"cached_tokens": 0}},
    }


def test_a_client_that_says_nothing_of_it_gets_the_likeliest_answer(server: Served, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="base", messages=user("hi"))
    assert last_order(server).sampling.temperature == 0.0 and last_order(server).max_new_tokens is None


def test_a_stream_byte_by_byte(server: Served) -> None:
    body = {"model": "base", "messages": user("hi"), "stream": True, "stream_options": {"include_usage": True}}
    found = post(server, body)
    assert found.headers["content-type"].startswith("text/event-stream")
    events = found.text.split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]" and all(event.startswith("data: ") for event in events[:-1])
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    head = {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert all(set(chunk) == head and chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    none = {"logprobs": None, "finish_reason": None}
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": {"role": "assistant", "content": "", "refusal": None}, **none}],
        [{"index": 0, "delta": {"content": "h"}, **none}],
        [{"index": 0, "delta": {"content": "i"}, **none}],
        [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}],
        [],
    ]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4 and chunks[-1]["usage"]["completion_tokens"] == 2


def test_without_include_usage_no_chunk_has_usage(server: Served) -> None:
    found = post(server, {"model": "base", "messages": user("hi"), "stream": True})
    assert '"usage"' not in found.text and '"choices":[]' not in found.text


def test_streams_through_the_client(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="tuned", messages=user("ab"), n=3, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    texts = ["".join(c.choices[0].delta.content or "" for c in chunks if c.choices and c.choices[0].index == i) for i in range(3)]
    assert texts == ["ab"] * 3 and chunks[-1].usage.completion_tokens == 6 and chunks[-1].choices == []
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"] * 3


def test_choices_draw_from_streams_of_their_own(server: Served, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="base", messages=user("x"), n=4, seed=11, temperature=1.0)
    seeds = [order.sampling.seed for order in list(server.engine.orders.values())[-4:]]
    assert seeds[0] == 11 and len(set(seeds)) == 4
    client.chat.completions.create(model="base", messages=user("x"), n=4, seed=11, temperature=1.0)
    assert [order.sampling.seed for order in list(server.engine.orders.values())[-4:]] == seeds
    client.chat.completions.create(model="base", messages=user("x"), temperature=1.0)
    first = last_order(server).sampling.seed
    client.chat.completions.create(model="base", messages=user("x"), temperature=1.0)
    assert last_order(server).sampling.seed != first


def test_logprobs(client: openai.OpenAI, server: Served) -> None:
    done = client.chat.completions.create(model="base", messages=user("é"), logprobs=True, top_logprobs=1)
    [token] = done.choices[0].logprobs.content
    assert (token.token, token.bytes, token.logprob, token.top_logprobs[0].token) == ("é", [195, 169], -0.5, "é")
    chunks = list(client.chat.completions.create(model="base", messages=user("ab"), logprobs=True, stream=True))
    assert [c.choices[0].logprobs.content[0].token for c in chunks if c.choices[0].logprobs] == ["a", "b"]
    text = client.completions.create(model="base", prompt="ab", logprobs=1)
    assert text.choices[0].logprobs.tokens == ["a", "b"] and text.choices[0].logprobs.text_offset == [0, 1]
    assert text.choices[0].logprobs.top_logprobs == [{"a": -0.5}, {"b": -0.5}]
    assert post(server, {"model": "base", "messages": user("a"), "top_logprobs": 1}).json()["error"]["param"] == "top_logprobs"


def test_stop_length_and_format_reach_the_engine(server: Served, client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="base", messages=user("one, two"), stop=[",", ";"])
    assert done.choices[0].message.content == "one" and last_order(server).stop == (",", ";")
    done = client.chat.completions.create(model="base", messages=user("one"), max_completion_tokens=2)
    assert done.choices[0].finish_reason == "length" and done.choices[0].message.content == "on"
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    client.chat.completions.create(model="base", messages=user("{}"), response_format=form)
    assert json.loads(last_order(server).json_schema) == schema
    client.chat.completions.create(model="base", messages=user("{}"), response_format={"type": "json_object"})
    assert json.loads(last_order(server).json_schema) == {"type": "object"}


def test_schemas_that_cannot_be_used_never_reach_the_engine(server: Served, client: openai.OpenAI) -> None:
    taken = len(server.engine.orders)
    explosion = {"allOf": [{"anyOf": [{"type": "string", "pattern": "a" * i}, {"type": "integer"}]} for i in range(1, 40)]}
    for schema in ({"type": "nonsense"}, {"$ref": "http://evil.invalid/x.json"}, {"$ref": "file:///etc/passwd"}, explosion):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        started = time.perf_counter()
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(model="base", messages=user("{}"), response_format=form, stream=True)
        assert error.value.param == "response_format" and "root:" not in error.value.message and time.perf_counter() - started < 8
    assert len(server.engine.orders) == taken


def test_what_the_engine_refuses_has_the_right_status_in_a_stream_too(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(model="base", messages=user("x"), stop="REFUSE", stream=stream)
        assert error.value.param == "stop" and "cannot be done (try: something else)" in error.value.message


def test_tools_reach_the_template(server: Served, client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}
    client.chat.completions.create(model="base", messages=user("x"), tools=[tool])
    assert json.loads(last_order(server).tools) == [tool]
    client.chat.completions.create(model="base", messages=user("x"), tools=[tool], tool_choice="none")
    assert last_order(server).tools == ""


def test_messages_reach_the_model_as_they_are_sent(server: Served, client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    talk = [{"role": "developer", "content": "S"}, *user("q"), {"role": "assistant", "content": "r"}, {"role": "user", "content": parts}]
    client.chat.completions.create(model="tuned", messages=talk)
    assert [(m.role, m.content) for m in last_order(server).messages] == [
        ("system", "S"),
        ("user", "q"),
        ("assistant", "r"),
        ("user", "a\nb"),
    ]


def test_the_prompted_name_puts_the_prompt_of_the_rows_in_front(server: Served, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="tuned-prompted", messages=user("q"))
    assert [(m.role, m.content) for m in last_order(server).messages] == [("system", "Be brief."), ("user", "Say it.\n\nq")]
    assert last_order(server).voice == "tuned"
    client.chat.completions.create(model="tuned-prompted", messages=[{"role": "system", "content": "mine"}, *user("q")])
    assert [m.content for m in last_order(server).messages] == ["mine", "Say it.\n\nq"]


def test_completions_take_text_and_tokens(server: Served, client: openai.OpenAI) -> None:
    assert client.completions.create(model="base", prompt="<|im_end|>x").choices[0].text == "<|im_end|>x"
    assert last_order(server).text == "<|im_end|>x" and last_order(server).max_new_tokens == 16
    assert client.completions.create(model="base", prompt=["one"]).choices[0].text == "one"
    for ids in ([65, 66], [[65, 66]]):
        assert client.completions.create(model="base", prompt=ids).choices[0].text == "AB"
    text = "".join(c.choices[0].text for c in client.completions.create(model="base", prompt="abc", stream=True))
    assert text == "abc"
    raw = post(server, {"model": "base", "prompt": "ab"}, "completions").json()
    answers.TextCompletion.model_validate(raw)
    assert post(server, {"model": "tuned-prompted", "prompt": "x"}, "completions").json()["error"]["param"] == "model"


# ---- errors

CHAT = {"model": "base", "messages": [{"role": "user", "content": "x"}]}
WRONG = [
    ("{", 400, None, "invalid_json"),
    (b"\xff\xfe{}", 400, None, "invalid_json"),
    ('{"model": "base", "model": NaN}', 400, None, "invalid_json"),
    ('{"temperature": Infinity}', 400, None, "invalid_json"),
    ('{"a":' * 5000 + "1" + "}" * 5000, 400, None, "invalid_json"),
    ('{"model": "base", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, None, "invalid_json"),
    ("[]", 400, None, "invalid_value"),
    ({"model": "base"}, 400, "messages", "missing_required_parameter"),
    ({**CHAT, "model": ""}, 400, "model", "invalid_value"),
    ({**CHAT, "model": "nobody"}, 404, "model", "model_not_found"),
    ({**CHAT, "temprature": 1}, 400, "temprature", "unknown_parameter"),
    ({**CHAT, "messages": []}, 400, "messages", "invalid_value"),
    ({**CHAT, "messages": user("x") * 513}, 400, "messages", "invalid_value"),
    ({**CHAT, "messages": [{"role": "root", "content": "x"}]}, 400, "messages[0].role", "invalid_value"),
    ({**CHAT, "messages": [{"role": "user", "content": None}]}, 400, "messages[0].content", "invalid_value"),
    ({**CHAT, "messages": [{"role": "user"}]}, 400, "messages[0].content", "missing_required_parameter"),
    (
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]},
        400,
        "messages[0].content[0].type",
        "invalid_value",
    ),
    ({**CHAT, "messages": [{"role": "user", "content": "x", "name": "bob"}]}, 400, "messages[0].name", "invalid_value"),
    ({**CHAT, "n": 0}, 400, "n", "invalid_value"),
    ({**CHAT, "n": 9}, 400, "n", "invalid_value"),
    ({**CHAT, "n": True}, 400, "n", "invalid_value"),
    ({**CHAT, "n": "1"}, 400, "n", "invalid_value"),
    ({**CHAT, "n": 1.5}, 400, "n", "invalid_value"),
    ({**CHAT, "max_tokens": 0}, 400, "max_tokens", "invalid_value"),
    ({**CHAT, "max_tokens": CONTEXT + 1}, 400, "max_tokens", "context_length_exceeded"),
    ({**CHAT, "max_tokens": CONTEXT}, 400, "messages", "context_length_exceeded"),
    ({**CHAT, "max_tokens": 10**30}, 400, "max_tokens", "invalid_value"),
    ({**CHAT, "max_tokens": 5, "max_completion_tokens": 5}, 400, "max_tokens", "invalid_value"),
    ({**CHAT, "messages": user("x" * CONTEXT)}, 400, "messages", "context_length_exceeded"),
    ({**CHAT, "stop": ["x"] * 9}, 400, "stop", "invalid_value"),
    ({**CHAT, "stop": "x" * 257}, 400, "stop", "invalid_value"),
    ({**CHAT, "stop": ""}, 400, "stop", "invalid_value"),
    ({**CHAT, "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "invalid_value"),
    ({**CHAT, "temperature": 2.1}, 400, "temperature", "invalid_value"),
    ({**CHAT, "top_p": 0}, 400, "top_p", "invalid_value"),
    ({**CHAT, "frequency_penalty": 1}, 400, "frequency_penalty", "unsupported_parameter"),
    ({**CHAT, "logit_bias": {"5": 1}}, 400, "logit_bias", "unsupported_parameter"),
    ({**CHAT, "store": True}, 400, "store", "unsupported_parameter"),
    ({**CHAT, "tool_choice": "required"}, 400, "tool_choice", "invalid_value"),
    ({**CHAT, "response_format": {"type": "xml"}}, 400, "response_format.type", "invalid_value"),
    ({**CHAT, "response_format": {"type": "json_schema"}}, 400, "response_format.json_schema", "missing_required_parameter"),
    ({**CHAT, "user": "x" * 513}, 400, "user", "invalid_value"),
    ({**CHAT, "metadata": {str(i): "x" for i in range(17)}}, 400, "metadata", "invalid_value"),
    ({**CHAT, "stream": "yes"}, 400, "stream", "invalid_value"),
]


@pytest.mark.parametrize(("body", "status", "param", "code"), WRONG)
def test_wrong_bodies(server: Served, body: object, status: int, param: str | None, code: str) -> None:
    taken = len(server.engine.orders)
    found = post(server, body)
    error = found.json()["error"]
    answers.ErrorBody.model_validate(found.json())
    assert (found.status_code, error["param"], error["code"]) == (status, param, code), error["message"]
    assert len(error["message"]) < 501 and len(server.engine.orders) == taken


def test_values_are_not_sent_back(server: Served) -> None:
    for field in ("model", "messages", "temperature", "stop", "n", "user", "tools", "response_format", "frequency_penalty"):
        for value in ("PLANTED" * 3, {"PLANTED": 1}, ["PLANTED"], {"type": "PLANTED"}):
            found = post(server, {**CHAT, field: value})
            if found.status_code >= 400:
                assert "PLANTED" not in found.text.replace("tools[0].PLANTED", ""), (field, value, found.text)


def test_the_media_type_must_be_json(server: Served) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        found = httpx.post(f"{server.url}/v1/chat/completions", content=json.dumps(CHAT), headers={"content-type": kind})
        assert (found.status_code, found.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_paths_and_methods_that_are_not_there(server: Served) -> None:
    assert httpx.get(f"{server.url}/v1/nothing").json()["error"]["code"] == "not_found"
    for path in ("docs", "redoc", "openapi.json", "", "v1", "v1/chat/completions/"):
        assert httpx.request("POST", f"{server.url}/{path}").status_code == 404
    found = httpx.get(f"{server.url}/v1/chat/completions")
    assert (found.status_code, found.json()["error"]["code"], found.headers["allow"]) == (405, "method_not_allowed", "POST")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_strings_in_every_field(server: Served, text: str) -> None:
    """Answers are JSON or SSE whose text is exactly what was sent; errors hold none of it unescaped, and nothing is 5xx."""
    can_encode = all(not 0xD800 <= ord(c) <= 0xDFFF for c in text)
    done = post(server, {"model": "base", "messages": user(text)})
    assert done.status_code == (200 if can_encode else 400)
    if can_encode:
        assert done.json()["choices"][0]["message"]["content"] == text and done.headers["content-type"] == "application/json"
        stream = post(server, {"model": "base", "messages": user(text), "stream": True})
        chunks = [json.loads(event.removeprefix("data: ")) for event in stream.text.split("\n\n")[:-2]]
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
        assert post(server, {"model": "base", "prompt": text}, "completions").json()["choices"][0]["text"] in (text, text[:16])
    tool = {"type": "function", "function": {"name": "f", "description": text, "parameters": {text: text}}}
    fields = {"model": text, "user": text, "stop": text, "tools": [tool], "tool_choice": text, "metadata": {text: text}, text: text}
    for field, value in fields.items():
        found = post(server, {**CHAT, field: value})
        assert found.status_code in (200, 400, 404) and found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["content-type"] == "application/json" and json.loads(found.content)
    assert httpx.get(f"{server.url}/v1/models/{text.encode('utf-8', 'replace').hex()}").status_code == 404


# ---- what goes wrong inside


def test_a_bug_takes_its_requests_and_no_more(server: Served, capfd: pytest.CaptureFixture[str]) -> None:
    server.engine.fail_next_step = ZeroDivisionError("a secret prompt")
    found = post(server, CHAT)
    assert (found.status_code, found.json()["error"]["code"]) == (500, "internal_error")
    assert post(server, CHAT).status_code == 200 and server.service.dispatcher.num_live == 0
    logged = capfd.readouterr().err
    assert "ZeroDivisionError at served.py:" in logged and "secret" not in logged and "secret" not in found.text


def test_an_engine_that_has_ended_is_told_from_a_bug(capfd: pytest.CaptureFixture[str]) -> None:
    with served(step_s=0.05) as server:
        waiting = ThreadPoolExecutor(2)
        under_way = [waiting.submit(post, server, {**CHAT, "messages": user("x" * 300)}) for _ in range(2)]
        deadline = time.monotonic() + 5
        while server.service.dispatcher.num_live < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        server.engine.fail_next_step = EngineEnded("the device is lost", where="the engine", fix="start again")
        lost = [one.result(timeout=10) for one in under_way]
        for found in (*lost, post(server, CHAT), post(server, {"model": "base", "prompt": "x"}, "completions")):
            assert (found.status_code, found.json()["error"]["code"]) == (503, "engine_stopped")
        assert httpx.get(f"{server.url}/healthz").status_code == 503 and httpx.get(f"{server.url}/v1/models").status_code == 200
        assert server.service.dispatcher.num_live == 0
        waiting.shutdown()
    assert "the device is lost" in capfd.readouterr().err


def test_a_bug_while_giving_up_does_not_stop_the_engine(server: Served, capfd: pytest.CaptureFixture[str]) -> None:
    server.engine.fail_next_cancel = True
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json={**CHAT, "messages": user("x" * 3000), "stream": True}) as stream:
        next(stream.iter_raw())
    deadline = time.monotonic() + 2
    while server.engine.fail_next_cancel and time.monotonic() < deadline:
        time.sleep(0.01)
    assert post(server, CHAT).status_code == 200 and httpx.get(f"{server.url}/healthz").status_code == 200
    assert "secret" not in capfd.readouterr().err and server.service.dispatcher.num_live == 0


def test_a_full_queue_says_when_to_come_back() -> None:
    with served(limit=2, step_s=0.02) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        stream = client.chat.completions.create(model="base", messages=user("x" * 200), n=2, stream=True)
        next(iter(stream))
        started = time.perf_counter()
        with pytest.raises(openai.RateLimitError) as error:
            client.chat.completions.create(model="base", messages=user("x"))
        assert time.perf_counter() - started < 0.5
        assert error.value.code == "queue_full" and 1 <= int(error.value.response.headers["retry-after"]) <= 60
        stream.close()
        deadline = time.monotonic() + 2
        while server.service.dispatcher.num_live and time.monotonic() < deadline:
            time.sleep(0.01)
        assert client.chat.completions.create(model="base", messages=user("x")).choices[0].message.content == "x"
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="base", messages=user("x"), n=3)


def test_a_client_that_waits_no_longer_frees_its_place() -> None:
    with served(step_s=0.02) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0, timeout=0.3)
        with client, pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="base", messages=user("x" * 500))
        deadline = time.monotonic() + 2
        while (server.service.dispatcher.num_live or not server.engine.idle) and time.monotonic() < deadline:
            time.sleep(0.01)  # the place is given back first, the engine hears of it at its next step
        assert server.service.dispatcher.num_live == 0 and server.engine.idle and server.service.metrics.cancelled == 1


def test_a_quiet_stream_is_kept_open_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "PING_S", 0.05)
    with served(step_s=0.3) as server:
        found = post(server, {"model": "base", "messages": user("a"), "stream": True})
        assert ": ping\n\n" in found.text and found.text.endswith("data: [DONE]\n\n")


def test_the_end_of_the_server_is_an_event_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.serve.server.DRAIN_S", 0.5)
    with served(step_s=0.05) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        short, long = (client.chat.completions.create(model="base", messages=user(text), stream=True) for text in ("ab", "x" * 1000))
        threading.Timer(0.1, server.stop).start()
        assert "".join(chunk.choices[0].delta.content or "" for chunk in short) == "ab"
        with pytest.raises(openai.APIError) as error:
            list(long)
        assert error.value.code == "server_shutting_down"


def test_metrics_count_what_was_done_and_take_no_names_from_clients(server: Served) -> None:
    httpx.get(f"{server.url}/v1/models/{'x' * 50}")
    httpx.request("BREW", f"{server.url}/pot")
    text = httpx.get(f"{server.url}/metrics").text
    assert 'luthier_requests_total{route="/v1/models/{model}",method="GET",status="404"}' in text
    assert 'luthier_requests_total{route="other",method="other",status="404"} ' in text
    assert "xxx" not in text and "BREW" not in text and "luthier_answers_live 0" in text
    for line in text.splitlines():
        assert line.startswith("# ") or float(line.rpartition(" ")[2]) >= 0
