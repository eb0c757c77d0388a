"""A server asked to hold its answers to a form: what is sent, what the probe finds out, what is taken out of the object again."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.fake_server import Answer, FakeServer, fake_server, in_form

from luthier.arms.prompts import Arm, Candidate, zero_shot
from luthier.core.errors import EndpointError
from luthier.core.types import Example, Generation, GenerationRequest, Message
from luthier.evaluate.choice import choose_candidate
from luthier.evaluate.run import Bench, hold_endpoint, measure
from luthier.generate.endpoint import Endpoint, ask
from luthier.generate.form_probe import PROMPT
from luthier.generate.server_form import (
    FREE,
    MAX_CHARS,
    MAX_KEYS,
    MAX_LONG_SET,
    MAX_LONG_SET_CHARS,
    MAX_VALUES,
    WRAPPER_TOKENS,
    form_of,
    held_words,
)
from luthier.metrics.catalogue import Scored

LABELS = ("card", "money", "close")
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "kind": {"enum": ["card", None, True]},
            "amount": {"type": ["null", "number"]},
            "code": {"type": ["integer", "string"]},
            "open": {"type": "boolean"},
        },
        "required": ["kind", "amount", "code", "open"],
        "additionalProperties": False,
    }
)
ITEMS = tuple(
    Example(id=f"i{n}", path="t", line=n, kind="instruct", input=f"item {n}", response="card" if n % 2 else "money") for n in range(6)
)


class _Memory(dict[str, Generation]):
    def put(self, key: str, generation: Generation) -> None:
        self[key] = generation


def _bench(store: _Memory | None = None, **form: object) -> Bench:
    return Bench(
        score=lambda item, text: Scored(values={"exact": float(text == item.response)}, note=""), metric="exact", max_new_tokens=5, stop="",
        batch=4, store=_Memory() if store is None else store, clusters={}, on_progress=lambda label, done, total: None,
        should_stop=lambda: False, **{"choices": LABELS, **form},
    )  # type: ignore[arg-type]  # fmt: skip


def _endpoint(server: FakeServer, **more: object) -> Endpoint:
    return Endpoint(url=server.url, model="m", name="m at fake", concurrency=1, retries=1, backoff_s=0.01, **more)  # type: ignore[arg-type]


def _measured(server: FakeServer, bench: Bench):
    arm = Arm(name="a", family="prompt", model="base", description="", candidates=(Candidate(params={}, build=zero_shot, prompt_chars=1),))
    model = hold_endpoint(_endpoint(server), bench)
    return measure(arm, choose_candidate(arm, ITEMS[:2], model, bench), ITEMS, model, bench, model_name="m at fake")


def _strict_problems(schema: dict) -> list[str]:
    """OpenAI's rules for a strict schema, written down a second time."""
    found = []
    if schema.get("type") != "object":
        found.append("the root is no object")

    def walk(part: dict, place: str) -> None:
        extra = set(part) - {"type", "properties", "required", "additionalProperties", "enum", "anyOf"}
        if extra:
            found.append(f"{place}: {extra}")
        if "type" not in part and "anyOf" not in part:
            found.append(f"{place}: no type")
        if part.get("type") == "object":
            if part.get("additionalProperties") is not False or part["required"] != list(part["properties"]):
                found.append(f"{place}: open object")
            for key, one in part["properties"].items():
                walk(one, f"{place}.{key}")
        elif "array" in part.get("type", ()):
            found.append(f"{place}: no items")
        for one in part.get("anyOf", ()):
            walk(one, f"{place}|")

    walk(schema, "$")
    return found


# ---- the form


def test_labels_become_an_object_and_come_out_of_it() -> None:
    form = form_of(LABELS, "")
    field = form.field
    assert field["type"] == "json_schema" and field["json_schema"]["strict"] is True  # type: ignore[index]
    schema = field["json_schema"]["schema"]  # type: ignore[index]
    assert not _strict_problems(schema)
    assert schema["properties"] == {"answer": {"type": "string", "enum": list(LABELS)}}
    assert form.unwrap('{"answer": "card"}') == "card" == form.unwrap('{\n  "answer": "card"\n}')
    for broken in ('{"answer": "ca', '{"answer": 3}', '{"answer": "card", "x": 1}', '{"kind": "card"}', "card", "", "[" * 50_000):
        assert form.unwrap(broken) == broken and not form.is_kept_by(broken)
    assert form.unwrap('{"answer": "cheese"}') == "cheese" and not form.is_kept_by('{"answer": "cheese"}')


def test_a_learnt_schema_becomes_a_strict_one_with_the_same_answers() -> None:
    form = form_of((), SCHEMA)
    properties = json.loads(form.schema)["properties"]
    assert not _strict_problems(json.loads(form.schema)) and list(properties) == ["kind", "amount", "code", "open"]
    assert properties["amount"] == {"type": ["null", "number"]}
    assert {json.dumps(one) for one in properties["kind"]["anyOf"]} == {
        '{"type": "boolean", "enum": [true]}', '{"type": "string", "enum": ["card"]}', '{"type": "null", "enum": [null]}'
    }  # fmt: skip
    good = {"kind": None, "amount": 3, "code": "x", "open": False}
    assert form.is_kept_by(json.dumps(good)) and form.unwrap(json.dumps(good)) == json.dumps(good)
    for key, value in (("kind", "CARD"), ("kind", 1), ("kind", False), ("amount", "3"), ("code", 1.5), ("code", None), ("open", 0)):
        assert not form.is_kept_by(json.dumps({**good, key: value})), (key, value)
    assert not form.is_kept_by(json.dumps({**good, "more": 1})) and not form.is_kept_by('{"kind": null}')


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    properties=st.dictionaries(
        st.text(max_size=8),
        st.one_of(
            st.lists(st.sampled_from(["string", "integer", "number", "boolean", "null"]), min_size=1, unique=True).map(
                lambda t: {"type": t}
            ),
            st.sampled_from(["string", "boolean", "null"]).map(lambda t: {"type": t}),
            st.lists(st.text(max_size=5) | st.booleans() | st.none(), min_size=1, max_size=5).map(lambda v: {"enum": v}),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_every_schema_that_is_sent_keeps_the_strict_rules(properties: dict) -> None:
    form = form_of(
        (), json.dumps({"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False})
    )
    assert form.schema and not _strict_problems(json.loads(form.schema))


@pytest.mark.parametrize(
    ("choices", "properties", "reason"),
    [
        ((), {"lines": {"type": "array"}}, "'lines' are lists or objects"),
        ((), {"x": {"type": "string"}, "who": {"type": ["null", "object"]}}, "'who' are lists or objects"),
        (tuple(f"l{n}" for n in range(MAX_VALUES + 1)), {}, "1,001 labels"),
        (tuple(f"{n:061d}" for n in range(MAX_LONG_SET + 1)), {}, f"more than {MAX_LONG_SET_CHARS:,} characters"),
        ((), {f"{n:040d}": {"type": "string"} for n in range(MAX_CHARS // 40 + 1)}, "120,000 characters"),
        ((), {str(n): {"type": "string"} for n in range(MAX_KEYS + 1)}, "5,000 keys"),
    ],
    ids=["list", "object", "labels", "long labels", "characters", "keys"],
)  # fmt: skip
def test_what_no_strict_schema_can_say_is_not_sent(choices: tuple[str, ...], properties: dict, reason: str) -> None:
    form = form_of(choices, json.dumps({"properties": properties}) if properties else "")
    assert not form.schema and reason in form.why_not
    with fake_server(lambda request, number: Answer()) as server:
        bench = _bench(choices=choices, json_schema=json.dumps({"properties": properties}) if properties else "")
        found = _measured(server, bench)
    assert reason in found.params["answers"] and found.params["answers"].startswith("free: ")
    assert not any("response_format" in one.body for one in server.seen)
    assert form_of(tuple(f"{n:059d}" for n in range(MAX_LONG_SET)), "").schema  # the limits themselves are allowed
    assert form_of(tuple(f"l{n}" for n in range(MAX_VALUES)), "").schema


def test_nothing_to_hold_to_asks_nothing() -> None:
    assert form_of((), "") is FREE
    with fake_server(lambda request, number: Answer()) as server:
        bench = _bench(choices=())
        assert hold_endpoint(_endpoint(server), bench) == _endpoint(server)
        assert "answers" not in _measured(server, bench).params
    assert not any("response_format" in one.body or one.body["messages"][-1]["content"] == PROMPT for one in server.seen)


# ---- the probe


def test_a_server_that_holds_is_asked_to_and_its_answers_are_taken_out() -> None:
    with fake_server(lambda request, number: Answer(text=in_form(request, "card"))) as server:
        found = _measured(server, _bench())
    assert found.params["answers"] == "held to the 3 labels by the server (response_format)"
    assert [item.text for item in found.items] == ["card"] * 6 and sum(item.values["exact"] or 0 for item in found.items) == 3
    probe, *others = server.seen
    assert probe.body["messages"] == [{"role": "user", "content": PROMPT}] and len(others) == 6
    assert all(one.body["response_format"] == form_of(LABELS, "").field for one in server.seen)
    assert {one.body["max_tokens"] for one in others} == {5 + WRAPPER_TOKENS}  # the object around the label is not of the answer's length


def test_a_schema_is_held_to_and_answers_that_break_it_are_counted_and_scored_as_they_are() -> None:
    schema = json.dumps({"properties": {"kind": {"enum": ["card", "money"]}}})

    def script(request: dict, number: int) -> Answer:
        return Answer(text='{"kind":"card"}') if number != 2 else Answer(text='{"kind":"ca', finish="length")

    with fake_server(script) as server:
        found = _measured(server, _bench(choices=(), json_schema=schema))
    expected = "held to the JSON schema of the training answers by the server (response_format); 1 of 6 answers broke it"
    assert found.params["answers"] == expected
    assert sorted(item.text for item in found.items)[0] == '{"kind":"ca' and {one.body["max_tokens"] for one in server.seen[1:]} == {5}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."),
        (400, "schéma non pris en charge"),
        (422, "Extra inputs are not permitted"),
        (500, 'response_format type must be one of "text" or "json_object", but got: json_schema'),
        (501, "not implemented: response_format"),
    ],
)
def test_a_refusal_is_found_out_once_recorded_and_no_failure(status: int, said: str) -> None:
    def script(request: dict, number: int) -> Answer:
        return Answer(status=status, body=said.encode()) if "response_format" in request else Answer(text="card")

    with fake_server(script) as server:
        found = _measured(server, _bench())
    assert found.failed is None and len(found.items) == 6
    assert found.params["answers"].startswith(f"free: the endpoint refuses response_format (status {status}: {said[:20]}")
    assert sum("response_format" in one.body for one in server.seen) == 1 and len(server.seen) == 2 + 6


@pytest.mark.parametrize("wrote", ["hello", '"hello"', '{"text": "hello"}', '```json\n{"answer": "card"}\n```', '{"answer": "hello"}', ""])
def test_a_server_that_takes_the_field_and_ignores_it_is_found_out(wrote: str) -> None:
    with fake_server(lambda request, number: Answer(text=wrote if number == 0 else "card")) as server:
        found = _measured(server, _bench())
    assert found.failed is None and "free: the endpoint ignores response_format" in found.params["answers"]
    assert repr(wrote) in found.params["answers"] and sum("response_format" in one.body for one in server.seen) == 1


def test_a_label_that_an_unheld_server_would_write_too_does_not_pass_for_held() -> None:
    with fake_server(lambda request, number: Answer(text="hello")) as server:
        assert not hold_endpoint(_endpoint(server), _bench(choices=("hello", "bye"))).holds


def test_a_probe_that_is_cut_off_inside_an_object_was_held() -> None:
    with fake_server(lambda request, number: Answer(text='{"amount": 3333333333', finish="length")) as server:
        assert hold_endpoint(_endpoint(server), _bench(choices=(), json_schema=SCHEMA)).holds


@pytest.mark.parametrize("status", [400, 401, 404, 429, 503])
def test_what_else_a_server_refuses_is_not_taken_for_the_form(status: int) -> None:
    with fake_server(lambda request, number: Answer(status=status, body=b"no")) as server, pytest.raises(EndpointError, match=str(status)):
        hold_endpoint(_endpoint(server), _bench())


def test_what_was_found_out_is_kept_and_needs_no_server() -> None:
    scripts: list[Callable[[dict, int], Answer]] = [
        lambda request, number: Answer(text=in_form(request, "card")),
        lambda request, number: Answer(text="hello"),
        lambda request, number: Answer(status=400, body=b"no") if "response_format" in request else Answer(),
    ]
    for script in scripts:
        store = _Memory()
        with fake_server(script) as server:
            first = hold_endpoint(_endpoint(server), _bench(store))
            num = len(server.seen)
            assert hold_endpoint(_endpoint(server, key_env="GONE"), _bench(store)) == Endpoint(**{
                **{name: getattr(first, name) for name in Endpoint.__slots__}, "key_env": "GONE"
            })  # fmt: skip
            assert len(server.seen) == num
            hold_endpoint(_endpoint(server), _bench(store, choices=("other", "labels")))  # another form is another question
            assert len(server.seen) > num


def test_held_and_free_answers_are_kept_apart() -> None:
    store = _Memory()
    request = GenerationRequest(item_id="i", messages=(Message(role="user", content="x"),), max_new_tokens=5, choices=LABELS)
    with fake_server(lambda request, number: Answer(text=in_form(request, "card" if "response_format" in request else "cards"))) as server:
        for holds, text in ((False, "cards"), (True, "card"), (False, "cards")):
            [found] = ask(_endpoint(server, holds=holds), [request], store=store, on_progress=lambda done, total: None)
            assert found.text == text
    assert len(server.seen) == 2 == len(store)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["answer", "kind", "amount", "x"]), inner, max_size=4),
    max_leaves=10,
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(text=st.text(max_size=60) | JSON.map(json.dumps))
def test_whatever_is_written_is_taken_as_an_answer(text: str) -> None:
    for form in (form_of(LABELS, ""), form_of((), SCHEMA)):
        answer = form.unwrap(text)
        assert answer == text or form.labels
        assert not form.is_kept_by(text) or form.is_answer(answer)
        words = held_words(form, "", [answer])
        assert words.endswith("broke it") is not form.is_answer(answer)
