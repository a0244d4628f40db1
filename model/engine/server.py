"""An OpenAI-compatible server over the engine: /v1/chat/completions, /v1/completions, /v1/models, /health.

One thread owns the engine and steps it while anybody waits; requests join the running batch between two steps and leave it when
their client goes away. Whoever reads a stream gets text as whole characters, thinking as `reasoning_content`.

    uvicorn.run(create_app(Engine(lm, tokenizer), model="tiny"))
"""
from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from model import chat
from model.engine.engine import Engine
from model.engine.params import SamplingParams
from model.engine.scheduler import Sequence


class _Options(BaseModel):
    """What both endpoints take. Unknown fields are ignored, as clients send many that mean nothing here."""

    model_config = ConfigDict(extra="ignore")
    model: str = ""
    n: int = Field(1, ge=1, le=128)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    max_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool = False
    thinking_token_budget: int | None = Field(None, ge=0)

    def params(self, default_tokens: int) -> SamplingParams:
        return SamplingParams(n=self.n, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, max_tokens=self.max_tokens or default_tokens,
                              stop=self.stop or (), seed=self.seed, thinking_budget=self.thinking_token_budget)


class _Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str = ""
    reasoning_content: str | None = None


class ChatRequest(_Options):
    messages: list[_Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    chat_template_kwargs: dict[str, Any] = {}


class CompletionRequest(_Options):
    prompt: str | list[int]


class _Loop:
    """The thread that owns the engine. Sequences arrive through a queue, drained between two steps (a lock held while stepping would
    starve whoever wants to hand one over); their news go back through asyncio queues."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.scheduler = engine, engine.scheduler
        self.inbox: queue.SimpleQueue[_Listener | None] = queue.SimpleQueue()
        self.listeners: dict[int, _Listener] = {}
        self.failure = ""
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def submit(self, sequences: list[Sequence], news: asyncio.Queue) -> None:
        """Start sequences; `news` gets (sequence, token ids so far, finished) after each step that changed it."""
        for sequence in sequences:
            self.inbox.put(_Listener(sequence, news, asyncio.get_running_loop()))

    def stop(self) -> None:
        self.inbox.put(None)
        self.thread.join()

    def _run(self) -> None:
        self.engine.lm.eval()
        while True:
            while not self.inbox.empty() or not self.scheduler.busy:
                arrived = self.inbox.get()
                if arrived is None:
                    return
                self.listeners[id(arrived.sequence)] = arrived
                if self.failure:
                    self._tell([arrived.sequence])
                else:
                    self.scheduler.add(arrived.sequence)
            try:
                done = self.scheduler.step()
            except Exception as error:  # every client must hear of it; /health says so from then on
                self.failure = f"{type(error).__name__}: {error}"
                done = [listener.sequence for listener in self.listeners.values()]
                self.scheduler.waiting.clear()
                self.scheduler.running.clear()
            self._tell(done)

    def _tell(self, done: list[Sequence]) -> None:
        finished = {id(s) for s in done}
        for key, listener in list(self.listeners.items()):
            sequence = listener.sequence
            if key in finished:
                del self.listeners[key]
                listener.send((sequence, sequence.output.token_ids, True))
            elif sequence.slot >= 0 and sequence.stream:
                listener.send((sequence, self.scheduler.text_ids(sequence), False))


@dataclass(frozen=True, eq=False)
class _Listener:
    sequence: Sequence
    news: asyncio.Queue
    loop: asyncio.AbstractEventLoop

    def send(self, item: tuple[Sequence, list[int], bool]) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.news.put_nowait, item)


def create_app(engine: Engine, model: str = "gristmill") -> FastAPI:
    """The server as an ASGI app; it owns the engine until it shuts down. `model` is the name it answers to."""
    running = _Loop(engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running.thread.start()
        yield
        running.stop()

    app = FastAPI(title="Gristmill", lifespan=lifespan)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Any, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _refusal(f"{'.'.join(str(step) for step in first['loc'] if step != 'body') or 'body'}: {first['msg']}")

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": running.failure or "ok", "running": len(engine.scheduler.running), "waiting": len(engine.scheduler.waiting)},
                            status_code=503 if running.failure else 200)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": model, "object": "model", "owned_by": "gristmill", "max_model_len": engine.max_length}]}

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest) -> Any:
        thinking = bool(body.chat_template_kwargs.get("enable_thinking", True))
        prompt = chat.encode_prompt(engine.tokenizer, [m.model_dump(exclude_none=True) for m in body.messages], enable_thinking=thinking)
        if body.max_completion_tokens is not None:
            body.max_tokens = body.max_completion_tokens
        return await _answer(running, body, prompt, model, "chat.completion", thinking)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest) -> Any:
        return await _answer(running, body, body.prompt, model, "text_completion", False)

    return app


def _refusal(message: str, status: int = 400) -> JSONResponse:
    return JSONResponse(_error(message, status), status_code=status)


def _error(message: str, status: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error" if status == 400 else "server_error", "code": status}}


async def _answer(running: _Loop, body: _Options, prompt: str | list[int], model: str, kind: str, thinking: bool) -> Any:
    engine = running.engine
    if running.failure:
        return _refusal(running.failure, 503)
    try:
        sequences = engine.request(prompt, body.params(engine.max_length))
    except ValueError as error:
        return _refusal(str(error))
    for sequence in sequences:
        sequence.stream = body.stream
    news: asyncio.Queue = asyncio.Queue()
    running.submit(sequences, news)
    shape = _Shape(engine, kind, model, thinking)
    if body.stream:
        return StreamingResponse(_stream(running, sequences, news, shape), media_type="text/event-stream")
    try:
        for _ in sequences:
            await news.get()
    finally:
        _abandon(sequences)
    if running.failure:
        return _refusal(running.failure, 503)
    engine.write_texts(sequences)
    return shape.whole(sequences)


async def _stream(running: _Loop, sequences: list[Sequence], news: asyncio.Queue, shape: _Shape) -> AsyncIterator[str]:
    sent = {id(s): 0 for s in sequences}
    left = len(sequences)
    try:
        while left:
            sequence, ids, finished = await news.get()
            if finished:
                left -= 1
                if running.failure:
                    yield f"data: {json.dumps(_error(running.failure, 503))}\n\n"
                    continue
                running.engine.write_texts([sequence])
                text = sequence.output.text
            else:
                text = running.engine.tokenizer.decode(ids, skip_special_tokens=False)
                # hold back an unfinished character, tag or stop string: what was sent cannot be taken back
                text = text.rstrip("\N{REPLACEMENT CHARACTER}")
                text = text[:len(text) - shape.held_back(sequence, text)]
            old = sent[id(sequence)]
            if len(text) > old or finished:
                sent[id(sequence)] = max(old, len(text))
                for delta in shape.deltas(sequence, text, old, finished):
                    yield f"data: {json.dumps(delta)}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        _abandon(sequences)


def _abandon(sequences: list[Sequence]) -> None:
    for sequence in sequences:
        sequence.aborted = sequence.output.finish_reason is None  # the client went away: free the slots


class _Shape:
    """OpenAI's JSON around samples."""

    def __init__(self, engine: Engine, kind: str, model: str, thinking: bool) -> None:
        self.engine, self.kind, self.model, self.thinking = engine, kind, model, thinking

    def whole(self, sequences: list[Sequence]) -> dict[str, Any]:
        choices = []
        for s in sequences:
            if self.kind == "text_completion":
                choice: dict[str, Any] = {"text": s.output.text}
            else:
                reasoning, content = self._split(s.output.text)
                choice = {"message": {"role": "assistant", "content": content.strip(), "reasoning_content": reasoning.strip() or None}}
            choices.append({"index": s.output.index, "finish_reason": s.output.finish_reason, **choice})
        prompt, written = len(sequences[0].prompt_ids), sum(len(s.output.token_ids) for s in sequences)
        usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
        return {"id": self._id(sequences[0]), "object": self.kind, "created": 0, "model": self.model, "choices": choices, "usage": usage}

    def deltas(self, s: Sequence, text: str, old: int, finished: bool) -> Iterator[dict[str, Any]]:
        """What `text` adds to its first `old` characters, in OpenAI's chunks."""
        if self.kind == "text_completion":
            parts = [{"text": text[old:]}]
        else:
            before, now = self._split(text[:old]), self._split(text)
            parts = [{"delta": {name: new}} for name, seen, all_ in zip(("reasoning_content", "content"), before, now) if (new := all_[len(seen):])]
        if finished and not parts:
            parts = [{"delta": {}}]
        for position, part in enumerate(parts):
            reason = s.output.finish_reason if finished and position == len(parts) - 1 else None
            yield {"id": self._id(s), "object": self.kind + (".chunk" if self.kind.startswith("chat") else ""), "created": 0, "model": self.model,
                   "choices": [{"index": s.output.index, "finish_reason": reason, **part}]}

    def held_back(self, s: Sequence, text: str) -> int:
        """Characters at the end that may be the beginning of </think> or of a stop string."""
        markers = (chat.END_THINK, *s.params.stop)
        return max(size for marker in markers for size in range(len(marker)) if text.endswith(marker[:size]))

    def _split(self, text: str) -> tuple[str, str]:
        """(reasoning, content): with thinking on, everything is reasoning until </think>."""
        if not self.thinking:
            return "", text
        reasoning, closed, content = text.partition(chat.END_THINK)
        return reasoning, content.lstrip("\n") if closed else ""

    def _id(self, s: Sequence) -> str:
        return f"{'chatcmpl' if self.kind.startswith('chat') else 'cmpl'}-{s.seed % (1 << 64):016x}"
