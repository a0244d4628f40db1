"""The server's routes: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics, /version, and those around the tokenizer (`tokenizing.py`).

    uvicorn.run(create_app(Engine(lm, tokenizer), "tiny"))

A request is checked, counted against the queue (429 beyond it, with Retry-After; what was accepted is answered), and handed to the engine's thread; it
leaves the batch when its client goes away. A server that is told to stop (SIGTERM) takes no new connections and finishes those it has: uvicorn sees to it.
"""
from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from model.engine import Engine
from model.serving.guard import Guard, Limits, error_body, refusal
from model.serving.logprobs import TokenNames
from model.serving.loop import EngineFailure, EngineLoop, Prompt, Ticket
from model.serving.metrics import Metrics
from model.serving.options import Options, StreamOptions
from model.serving.pieces import AnswerReader
from model.serving.replies import Reply
from model.serving.requests import ChatRequest, CompletionRequest, chat_tokens
from model.serving.tokenizing import add_tokenizer_routes

CLIENT_GONE = 499  # nginx's status for it; nobody reads it but the metrics
LONGEST_RETRY = 60  # seconds


class Fault(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | int


class Refusal(BaseModel):
    """OpenAI's error object."""

    error: Fault


ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole answer, or its chunks as events if `stream` asks for them", "content": {"application/json": {}, "text/event-stream": {}}},
    **{status: {"model": Refusal} for status in (400, 401, 404, 413, 429, 503)},
}


def create_app(engine: Engine, name: str = "gristmill", *, limits: Limits | None = None, key: str | None = None) -> FastAPI:
    """The server as an ASGI app; it owns the engine until it shuts down. `name` is what the model answers to, `key` what clients must send."""
    limits = limits or Limits()
    running = EngineLoop(engine)
    metrics, names = Metrics(running), TokenNames(engine.tokenizer, engine.token_texts)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running.start()
        yield
        running.stop()

    app = FastAPI(title="Gristmill", lifespan=lifespan)
    app.add_middleware(Guard, limits=limits, metrics=metrics, key=key)
    _speak_openai(app)

    @app.get("/health", responses={503: {}})
    async def health() -> JSONResponse:
        content = {"status": running.failure or "ok", "running": running.open - running.waiting, "waiting": running.waiting}
        return JSONResponse(content, 503 if running.failure else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/version")
    async def own_version() -> dict[str, str]:
        try:
            return {"version": version("gristmill")}
        except PackageNotFoundError:  # run from a checkout
            return {"version": "unknown"}

    def unknown(model: str | None) -> Response | None:
        """The refusal of a model that is not the one there is."""
        return refusal(f"there is no model {model!r} here, only {name!r}", 404, param="model", code="model_not_found") if model and model != name else None

    served = {"id": name, "object": "model", "created": 0, "owned_by": "gristmill", "max_model_len": engine.max_length}

    @app.get("/v1/models", responses={401: {"model": Refusal}})
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [served]}

    @app.get("/v1/models/{model:path}", response_model=None, responses={status: {"model": Refusal} for status in (401, 404)})
    async def one_model(model: str) -> dict[str, Any] | Response:
        return unknown(model) or served

    add_tokenizer_routes(app, engine, running, unknown, {status: {"model": Refusal} for status in (400, 401, 404, 413)})

    @app.post("/v1/chat/completions", responses=ANSWERS)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        known, thinking = body.tools_shown, body.thinking

        def prompt() -> list[int]:
            return chat_tokens(engine.tokenizer, body.messages, known, body.chat_template_kwargs, thinking=thinking)

        def reader() -> AnswerReader:
            return AnswerReader(thinking=thinking, known=known, one_call=body.parallel_tool_calls is False)

        return await answer(request, body, [prompt], reader)

    @app.post("/v1/completions", responses=ANSWERS)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        echoed: list[str] = []  # of every choice; prompts are made in order, each once

        def prompt(given: Prompt) -> Prompt:
            if body.echo:
                echoed.extend([given if isinstance(given, str) else engine.tokenizer.decode(given, skip_special_tokens=False)] * body.samples)
            return given

        return await answer(request, body, [partial(prompt, given) for given in body.prompts], echoed=echoed)

    async def answer(request: Request, body: Options, prompts: list[Callable[[], Prompt]], reader: Callable[[], AnswerReader] | None = None,
                     echoed: Sequence[str] = ()) -> Response:
        room, samples = engine.max_slots + limits.queue, body.samples * len(prompts)
        if missing := unknown(body.model):
            return missing
        if limits.tokens is not None and (body.max_tokens or 0) > limits.tokens:
            return refusal(f"max_tokens is at most {limits.tokens} here", param="max_tokens")
        if samples > room:
            return refusal(f"n is at most {room} here, times the number of prompts", param="n")
        if running.open + samples > room:
            seconds = math.ceil(running.seconds * (running.waiting + samples) / engine.max_slots)
            return refusal("the queue is full: try again later", 429, headers={"Retry-After": str(min(LONGEST_RETRY, max(1, seconds)))})
        try:
            ticket = running.submit(prompts, body.params(limits.tokens or engine.max_length))
            await ticket.started()
        except ValueError as error:
            return refusal(str(error))
        except EngineFailure as failure:
            return refusal(str(failure), 503)
        metrics.prompt_tokens.inc(ticket.prompt_tokens)
        reply = Reply(model=name, samples=samples, reader=reader, echoed=echoed, silent=body.max_tokens == 0, names=None if body.most_likely is None else names)
        reply.prompt_tokens = ticket.prompt_tokens

        def close() -> None:
            metrics.written_tokens.inc(reply.written_tokens)
            if ticket.left and not running.failure:
                metrics.cancelled.inc()
            running.cancel(ticket)
            metrics.duration.observe(time.monotonic() - ticket.begun)

        chunks = _chunks(ticket, reply, metrics)
        if body.stream:
            return EventStream(_events(chunks, reply, body.stream_options or StreamOptions()), close)
        try:
            return await _whole(request, chunks, reply)
        except EngineFailure as failure:
            return refusal(str(failure), 503)
        finally:
            close()

    return app


async def _chunks(ticket: Ticket, reply: Reply, metrics: Metrics) -> AsyncIterator[dict[str, Any]]:
    first = True
    async for index, delta in ticket.deltas():
        if first:
            metrics.first_token.observe(time.monotonic() - ticket.begun)
            first = False
        for chunk in reply.take(index, delta):
            yield chunk


async def _whole(request: Request, chunks: AsyncIterator[dict[str, Any]], reply: Reply) -> Response:
    """The complete answer, unless the client leaves first: all it can still send is its disconnect."""

    async def exhaust() -> None:
        async for _ in chunks:
            pass

    writing, gone = asyncio.create_task(exhaust()), asyncio.create_task(request.receive())
    try:
        await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not writing.done():
            return Response(status_code=CLIENT_GONE)
        await writing
        return JSONResponse(reply.whole())
    finally:
        writing.cancel()
        gone.cancel()


async def _events(chunks: AsyncIterator[dict[str, Any]], reply: Reply, asked: StreamOptions) -> AsyncIterator[str]:
    try:
        async for chunk in chunks:
            usage = {"usage": reply.usage() if asked.continuous_usage_stats else None} if asked.include_usage or asked.continuous_usage_stats else {}
            yield f"data: {json.dumps(chunk | usage)}\n\n"
        if asked.include_usage:
            yield f"data: {json.dumps(reply.usage_chunk())}\n\n"
        yield "data: [DONE]\n\n"
    except EngineFailure as failure:
        yield f"data: {json.dumps(error_body(str(failure), 503))}\n\n"


class EventStream(StreamingResponse):
    """Server-sent events; `close` is called when they end, however they end."""

    def __init__(self, events: AsyncIterator[str], close: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self.close = close

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.close()


def _speak_openai(app: FastAPI) -> None:
    """Every refusal is OpenAI's error object, with 400 where FastAPI would say 422; the OpenAPI page says so too."""

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        deepest = max(error.errors(), key=lambda found: len(found["loc"]))  # where a field takes several types, the one that fitted best
        where = ".".join(str(step) for step in deepest["loc"] if step != "body") or "body"
        return refusal(f"{where}: {deepest['msg']}", param=where.encode("utf-8", "replace").decode())

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return refusal(str(error.detail), error.status_code, headers=dict(error.headers or {}))

    generate = app.openapi

    def openapi() -> dict[str, Any]:
        page = generate()
        for path in page["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return page

    app.openapi = openapi  # type: ignore[method-assign]
