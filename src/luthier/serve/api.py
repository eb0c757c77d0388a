"""The routes: what a request asks for becomes answers of the engine, whole or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from fastapi import FastAPI, Request
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from luthier.serve import answers
from luthier.serve.forms import CHAT, TEXT, Form, Json, sse
from luthier.serve.guard import Guard, Rules, log_bug
from luthier.serve.problems import Problem, as_bytes, internal_problem, problem_of
from luthier.serve.service import Asked, Service, asked_of_chat, asked_of_completion
from luthier.serve.wire import ChatRequest, CompletionRequest
from luthier.serve.writing import Answer, open_answer

JSON = "application/json"
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.ErrorBody} for status in (400, 401, 403, 404, 405, 408, 413, 415, 421, 429, 500, 503)
}
CLIENT_LEFT = 499  # never sent: nobody is there

_B = TypeVar("_B", bound=BaseModel)


def build_app(service: Service, rules: Rules) -> ASGIApp:
    """The application, guarded and counted."""
    return Guard(build_routes(service), rules, service.metrics.count)


def build_routes(service: Service) -> FastAPI:
    """The application without its guard. Its OpenAPI schema is what the tests are generated from; it is not served."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        del app
        service.dispatcher.start()
        yield
        await service.dispatcher.stop()

    app = FastAPI(
        title="Luthier", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, responses=PROBLEMS
    )
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    _add_answers(app, service)
    _add_facts(app, service)
    _describe_bodies(app)
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    # Of a stream, OpenAPI 3.1 describes one event.
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    stream: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": event}}}}

    @app.post("/v1/chat/completions", response_model=answers.ChatCompletion, responses=stream, openapi_extra=_body(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        body = await _read(request, ChatRequest)
        return await _respond(service, request, asked_of_chat(service, body), CHAT, body.stream or False)

    @app.post("/v1/completions", response_model=answers.TextCompletion, responses=stream, openapi_extra=_body(CompletionRequest))
    async def completions(request: Request) -> Response:
        body = await _read(request, CompletionRequest)
        return await _respond(service, request, asked_of_completion(service, body), TEXT, body.stream or False)

    del chat_completions, completions


def _add_facts(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", response_model=answers.ModelList)
    async def models() -> Response:
        return _json(200, {"object": "list", "data": [service.entry(offer) for offer in service.offers]})

    @app.get("/v1/models/{model:path}", response_model=answers.ModelEntry)
    async def model(model: str) -> Response:
        return _json(200, service.entry(service.find(model)))

    @app.get("/healthz", response_model=answers.Health)
    async def healthz() -> Response:
        if service.dispatcher.is_draining:
            raise Problem(503, "server_shutting_down", "the server is shutting down")
        if not service.dispatcher.is_alive:
            raise Problem(503, "engine_stopped", "the engine has stopped")
        return _json(200, {"status": "ok"})

    @app.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def metrics() -> Response:
        text = service.metrics.render(live=service.dispatcher.num_live, limit=service.dispatcher.limit)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    del models, model, healthz, metrics


async def _read(request: Request, model: type[_B]) -> _B:
    """The body, checked field by field. Raises Problem."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:  # also what a web page may send without being asked for leave
        raise Problem(415, "unsupported_media_type", f"the body must be sent as Content-Type: {JSON}")
    raw = await request.body()
    try:
        body: object = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise Problem(400, "invalid_json", f"the body is not JSON: {error}") from error
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise problem_of(error, body, model) from error


async def _respond(service: Service, request: Request, asked: Asked, form: Form, is_stream: bool) -> Response:
    answer = await open_answer(service, asked, form)
    if is_stream:
        return _EventStream(service, answer)
    writing = asyncio.ensure_future(answer.whole())
    leaving = asyncio.ensure_future(_client_left(request))
    try:
        await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not writing.done():
            service.metrics.cancelled += 1
            return Response(status_code=CLIENT_LEFT)
        return _json(200, writing.result())
    finally:
        service.dispatcher.leave(answer.answering)
        for task in (writing, leaving):
            task.cancel()
        await asyncio.gather(writing, leaving, return_exceptions=True)


async def _client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    """An answer as server-sent events. Its places are given back however it ends, even before its first byte.

    Starlette's own class with twenty lines more, rather than sse-starlette, which replaces uvicorn's exit handler for the whole process
    and ends streams by its own clock: here a stream ends with its answer, its client, or the server's drain.
    """

    def __init__(self, service: Service, answer: Answer) -> None:
        super().__init__(self._events(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self._service = service
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if not self._answer.answering.is_whole:
                self._service.metrics.cancelled += 1
            self._service.dispatcher.leave(self._answer.answering)

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            async for event in self._answer.events():
                yield event
        except Problem as problem:  # the status is sent already; clients look for this object in the stream
            yield sse(as_bytes(problem.body()))


def _json(status: int, body: Json) -> Response:
    return Response(as_bytes(body), status_code=status, media_type=JSON)


async def _on_problem(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, Problem)
    return Response(as_bytes(error.body()), status_code=error.status, media_type=JSON, headers=error.headers())


async def _on_http(request: Request, error: Exception) -> Response:
    """What the router refuses."""
    assert isinstance(error, HTTPException)
    code, message = {
        404: ("not_found", "there is no such path; see /v1/models, /v1/chat/completions, /v1/completions"),
        405: ("method_not_allowed", "this path does not take this method"),
    }.get(error.status_code, ("invalid_request", "the request cannot be read"))
    answer = await _on_problem(request, Problem(error.status_code, code, message))
    answer.headers.update({name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"})
    return answer


async def _on_bug(request: Request, error: Exception) -> Response:
    log_bug(error)
    return await _on_problem(request, internal_problem())


def _body(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}


def _describe_bodies(app: FastAPI) -> None:
    """Put the bodies, which are read by hand, into the OpenAPI schema."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, schemas = models_json_schema(
                [(ChatRequest, "validation"), (CompletionRequest, "validation")], ref_template="#/components/schemas/{model}"
            )
            described = describe()
            described["components"]["schemas"] |= cast("dict[str, Any]", schemas["$defs"])
        return describe()

    app.openapi = openapi
