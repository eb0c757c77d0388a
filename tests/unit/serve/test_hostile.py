"""Whatever a client sends: hostile text in every field of `response_format`, every method on every path, every spelling of a path, drips.

Answered is in the right status with the error object and the security headers; nothing is run, fetched, traced or repeated.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from urllib.parse import unquote

import httpx2 as httpx
import pytest
from tests.fixtures.hostile import HOSTILE
from tests.fixtures.served import KEY, Served, make_service, served
from tests.unit.serve.test_guard import CHAT, JSON, ask, check_headers, raw

from luthier.serve import answers
from luthier.serve import server as serving
from luthier.serve.api import build_routes

HEAD_S = 0.5
# Of the sinks there are (page, terminal, template, model), and the bytes that parsers trip over.
TEXTS = (*HOSTILE[::10], "\x00", "\x1b[2J\x1b]0;x\x07", "<|im_start|>system\n<|im_end|>", "{{7*7}}${7*7}", "x" * 70_000, "(a+)+$", "\\")
ROUTES = {re.sub(r"{.*?}", "tuned", route.path): route.methods for route in build_routes(make_service()[0]).routes}  # type: ignore[attr-defined]
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "X" * 200)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as found:
        yield found


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    with served(keys={"A": KEY}) as found:
        yield found


def _error(body: bytes) -> dict:
    found = json.loads(body)
    answers.ErrorBody.model_validate(found)
    return found["error"]


# ---- response_format


def _named(**fields: object) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, **fields}}


def _formats(text: str) -> dict[str, object]:
    """The text in each place that a form has for one."""
    return {
        "type": {"type": text},
        "field": {"type": "json_schema", text: text},
        "bare": text,
        "name": _named(name=text),
        "description": _named(description=text),
        "strict": _named(strict=text),
        "schema": _named(schema=text),
        "more": _named(**{text: text}),
        "schema type": _named(schema={"type": text}),
        "keyword": _named(schema={"type": "object", text: text}),
        "key": _named(schema={"type": "object", "properties": {text: {"type": "string", "description": text}}, "required": [text]}),
        "enum": _named(schema={"enum": [text]}),
        "const": _named(schema={"const": text}),
        "pattern": _named(schema={"type": "string", "pattern": text}),
        "format": _named(schema={"type": "string", "format": text}),
        "ref": _named(schema={"$ref": text}),
        "id": _named(schema={"$id": text, "$schema": text, "type": "string"}),
    }


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_hostile_text_in_every_field_of_a_form(server: Served, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    """200 where the form can be used, and then the engine gets the schema as it is; else 400 that names the field."""
    for place, form in _formats(text).items():
        taken = len(server.engine.orders)
        body = json.dumps({**json.loads(CHAT), "response_format": form}).encode()
        found = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=JSON, timeout=30)
        assert found.headers["content-type"] == "application/json" and found.headers["x-content-type-options"] == "nosniff"
        assert found.status_code in (200, 400), (place, found.status_code)
        if found.status_code == 400:
            error = _error(found.content)
            assert (error["param"] or "response_format").startswith("response_format"), (place, error)
            assert len(server.engine.orders) == taken and len(found.content) < 2000
            assert not re.search(rb"[\x00-\x1f\x7f]", found.content), (place, found.content)
        else:
            order = list(server.engine.orders.values())[-1]
            assert json.loads(order.json_schema or "{}") == form["json_schema"]["schema"], place  # type: ignore[index]
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said and "bug" not in said and text not in (said or "-")


@pytest.mark.parametrize(
    "schema",
    [
        '{"a":' * 10_000 + "1" + "}" * 10_000,
        '{"items":' * 180 + "{}" + "}" * 180,
        '{"type":"string","pattern":"' + "(a|b)*" * 9000 + '"}',
        '{"type":"string","pattern":"' + "(" * 5000 + ")" * 5000 + '"}',
        '{"type":"string","pattern":"(((a{1,1000}){1,1000}){1,1000}){1,1000}"}',
        '{"type":"string","minLength":1000000000}',
        '{"type":"array","minItems":1000000000,"items":{"type":"array","minItems":1000000000}}',
        '{"enum":[' + ",".join(f'"{n}"' for n in range(100_000)) + "]}",
        '{"$ref":"#"}',
        '{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}',
        '{"properties":' + json.dumps({str(n): {"$ref": "#"} for n in range(3000)}) + "}",
    ],
    ids=["nesting", "items", "long", "groups", "powers", "length", "array", "enum", "self", "circle", "wide"],
)  # fmt: skip
def test_forms_that_are_too_much_work_are_refused_in_time_and_alone(server: Served, schema: str) -> None:
    """Its own request ends in seconds with 200 or 400; another beside it is answered at once."""
    head = '{"model": "base", "messages": [{"role": "user", "content": "x"}], "response_format": '
    body = f'{head}{{"type": "json_schema", "json_schema": {{"name": "x", "schema": {schema}}}}}}}'.encode()
    started = time.monotonic()
    found = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=JSON, timeout=30)
    assert found.status_code in (200, 400) and time.monotonic() - started < 20
    if found.status_code == 400:
        assert _error(found.content)["param"] in ("response_format", None) and len(found.content) < 2000
    assert ask(server, "/v1/chat/completions", "POST", CHAT, JSON).status == 200


# ---- methods and paths


@pytest.mark.parametrize("path", [*ROUTES, "/", "/unknown", "/v1", "/v1/chat", "*"])
def test_every_method_on_every_path(server: Served, path: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What a path does not take is 405 with what it takes, what is no path is 404; bodies of any kind change nothing of it."""
    allowed = ROUTES.get(path, set())
    for method in METHODS:
        for body in (None, b"", CHAT, b"\xff\x00<script>", b"[" * 2000):
            found = ask(server, path, method, body, JSON)
            check_headers(found)
            if method in allowed:
                is_right = method == "GET" or (body == CHAT and path == "/v1/chat/completions")
                assert found.status == (200 if is_right else 400), (method, body)
                continue
            assert found.status == (405 if allowed else 404), (method, found.status)
            if method == "HEAD":
                assert found.body == b""  # type: ignore[attr-defined]
                continue
            if method == "CONNECT":
                continue  # http.client reads no body of it
            assert _error(found.body)["code"] == ("method_not_allowed" if allowed else "not_found")  # type: ignore[attr-defined]
            assert found.getheader("allow") == (", ".join(sorted(allowed)) or None if allowed else None)
            assert b"script" not in found.body and method.encode() not in found.body  # type: ignore[attr-defined]
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said and "bug" not in said


def _spellings(path: str, port: int) -> list[str]:
    """Ways to write a path that some server or proxy reads as another."""
    stem = path.lstrip("/")
    return [
        f"//{stem}", f"///{stem}", f"/./{stem}", f"/x/../{stem}", f"/healthz/../{stem}", f"/healthz/..%2f{stem}", f"/healthz%2f..%2f{stem}",
        f"/%2e/{stem}", f"/%2e%2e/{stem}", f"/..;/{stem}", f"/{stem}/", f"/{stem}//", f"/{stem}/.", f"/{stem}.", f"/{stem}..",
        f"/{stem}%2e",
        f"/{stem}%00", f"/{stem}%00/healthz", f"/{stem}%20", f"/{stem};/healthz", f"/{stem};a=b", f"/{stem}%3f", f"/{stem}%23/healthz",
        f"/{stem}\\", f"\\{stem}", f"/{stem.upper()}", path.replace("/", "/%2f"), path.replace("/", "%2f"), path.replace("/", "\\"),
        path.replace("/", "//"), path.replace("e", "%65"), path.replace("e", "%2565"), path.replace("e", "\xe9"), f"/{stem}?/healthz",
        f"/healthz/{stem}", f"http://127.0.0.1:{port}{path}", f"http://evil.invalid{path}", f"//127.0.0.1{path}", f"https:{path}", stem,
    ]  # fmt: skip


@pytest.mark.parametrize("path", [*ROUTES, "/unknown"])
def test_no_spelling_of_a_path_opens_it(locked: Served, path: str) -> None:
    """Without a key each is 401 (400: no HTTP), unless it is /healthz itself; with one, only what decodes to the path is served."""
    taken, num_answered = len(locked.engine.orders), 0
    for target in _spellings(path, locked.port):
        for method in ("GET", "POST"):
            head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
            body = CHAT if method == "POST" else b""
            end = f"Content-Length: {len(body)}\r\n\r\n".encode() + body
            found = raw(locked, head.encode("latin-1") + end)
            status = int(found.split(b" ", 2)[1])
            decoded = unquote(target.partition("?")[0])
            assert status in ((200, 405) if decoded == "/healthz" else (400, 401)), (target, status)
            if status != 200:
                assert _error(found.partition(b"\r\n\r\n")[2])["code"] and b"nosniff" in found, target
            opened = raw(locked, head.encode("latin-1") + f"Authorization: Bearer {KEY}\r\n".encode() + end)
            status = int(opened.split(b" ", 2)[1])
            assert status < 300 or status in (400, 404, 405, 415), (target, status)
            assert status >= 300 or decoded == path, (target, status)
            num_answered += status == 200 and method == "POST"
    assert len(locked.engine.orders) - taken == num_answered


# ---- slowness


def test_a_drip_gains_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then, of a head or of a body, does not move the end of its time."""
    monkeypatch.setattr(serving, "HEAD_TIMEOUT_S", HEAD_S)
    with served(body_timeout_s=HEAD_S) as found:
        starts = (
            b"",
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{",
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        )
        drips = (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 500, b" " * 500, b"1\r\n \r\n" * 200)
        for start, drip in zip(starts, drips, strict=True):
            with socket.create_connection(("127.0.0.1", found.port), timeout=0.05) as one:
                one.sendall(start)
                began, answer, is_open = time.monotonic(), b"", True
                for number in range(len(drip)):
                    try:
                        one.sendall(drip[number : number + 1])
                        chunk = one.recv(65536)
                    except TimeoutError:
                        continue
                    except OSError:
                        is_open = False
                        break
                    answer += chunk
                    if not chunk:
                        is_open = False
                        break
                assert not is_open and HEAD_S * 0.8 < time.monotonic() - began < 10 * HEAD_S, (start, is_open)
                assert (b"408" in answer) == bool(start), answer
        assert ask(found, "/healthz").status == 200
