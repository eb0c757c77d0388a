"""Requests made from the server's own OpenAPI schema, right and wrong ones (D6): no 5xx, answers and errors of the promised shape."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance
from tests.fixtures.served import Served, make_service, served

from luthier.serve.api import build_routes

POSTS = ["POST /v1/chat/completions", "POST /v1/completions"]
OPERATIONS = [*POSTS, "GET /v1/models", "GET /v1/models/{model}", "GET /healthz", "GET /metrics"]


def _schema() -> schemathesis.schemas.BaseSchema:
    """The server's own, with the names it serves written in: else nearly every request ends at a model that is not there."""
    found = build_routes(make_service()[0]).openapi()
    for body in ("ChatRequest", "CompletionRequest"):
        found["components"]["schemas"][body]["properties"]["model"] = {"enum": ["tuned", "tuned-prompted", "base"]}
    return schemathesis.openapi.from_dict(found)


SCHEMA = _schema()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(limit=1000) as found:
        yield found


def test_the_schema_names_every_operation() -> None:
    assert sorted(f"{result.ok().method.upper()} {result.ok().path}" for result in SCHEMA.get_all_operations()) == sorted(OPERATIONS)


def _fuzz(server: Served, operation: str, mode: schemathesis.GenerationMode, examples: int) -> set[int]:
    method, path = operation.split()
    seen: set[int] = set()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(case=SCHEMA[path][method].as_strategy(generation_mode=mode))
    def run(case: schemathesis.Case) -> None:
        response = case.call(base_url=server.url)
        seen.add(response.status_code)
        case.validate_response(response, checks=[not_a_server_error, response_schema_conformance])
        assert response.headers["x-content-type-options"] == ["nosniff"]

    run()
    return seen


@pytest.mark.parametrize("operation", OPERATIONS)
def test_right_requests(server: Served, operation: str) -> None:
    seen = _fuzz(server, operation, schemathesis.GenerationMode.POSITIVE, 15)
    assert 200 in seen or "{model}" in operation
    assert seen <= {200, 400, 404}


ASKED: dict[str, dict[str, object]] = {POSTS[0]: {"messages": [{"role": "user", "content": "hello"}]}, POSTS[1]: {"prompt": "hello"}}


@pytest.mark.parametrize("operation", POSTS)
def test_streams_are_of_the_promised_shape(server: Served, operation: str) -> None:
    method, path = operation.split()
    case = SCHEMA[path][method].Case(
        body={"model": "base", "max_tokens": 4, "stream": True, **ASKED[operation]}, media_type="application/json"
    )
    response = case.call(base_url=server.url)
    assert response.status_code == 200 and response.headers["content-type"][0].startswith("text/event-stream")
    case.validate_response(response, checks=[not_a_server_error, response_schema_conformance])


@pytest.mark.parametrize("operation", POSTS)
def test_wrong_requests(server: Served, operation: str) -> None:
    seen = _fuzz(server, operation, schemathesis.GenerationMode.NEGATIVE, 15)
    assert not seen & {200, 500} and seen


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_d6(server: Served, operation: str) -> None:
    _fuzz(server, operation, schemathesis.GenerationMode.POSITIVE, 200)
    if operation.startswith("POST"):
        _fuzz(server, operation, schemathesis.GenerationMode.NEGATIVE, 200)
