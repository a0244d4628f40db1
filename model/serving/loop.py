"""The thread that owns the engine, and how the event loop talks to it.

Jobs (start a request, cancel one) arrive through a queue that is drained between two steps: a lock held while stepping would starve whoever wants to hand
one over. What a step wrote goes back in one wake-up of the event loop, however many clients read along. Everything that touches the engine or its
tokenizer runs on this thread, so neither needs a lock.
"""
from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import TypeVar

from model.engine import Delta, Engine, Request, SamplingParams


class EngineFailure(Exception):
    """The engine broke; nothing can be answered any more."""


Prompt = str | list[int]
T = TypeVar("T")


class Ticket:
    """What one client asked for: n samples of each of its prompts, each prompt a request to the engine. Deltas come until every sample has ended, with the
    number of the choice they belong to (the samples of the first prompt, then of the second). `requests` are there once `started`."""

    def __init__(self, params: SamplingParams, prompts: int) -> None:
        self.params, self.left = params, params.n * prompts
        self.requests: list[Request] = []
        self.begun = time.monotonic()
        self.news: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()

    @property
    def prompt_tokens(self) -> int:
        return sum(len(request.output.prompt_token_ids) for request in self.requests)

    async def started(self) -> None:
        """Returns when the engine has taken the requests. Raises its ValueError if one cannot be run, EngineFailure if the engine is broken."""
        first = await self.news.get()
        if first is not None:
            raise first

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        while self.left:
            news = await self.news.get()
            if isinstance(news, Exception):
                raise news
            self.left -= news.finish_reason is not None
            yield self.requests.index(news.request) * self.params.n + news.index, news


class EngineLoop:
    """Owns `engine` from `start` to `stop`. `open` counts samples handed over and not ended: what the engine holds, running or waiting."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.open = 0
        self.seconds = 1.0  # a request's usual duration, a moving average: what Retry-After is reckoned from
        self.failure: str | None = None
        self.inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.tickets: dict[Request, Ticket] = {}
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self.events = asyncio.get_running_loop()
        self.thread.start()

    def stop(self) -> None:
        self.inbox.put(None)
        self.thread.join()

    @property
    def waiting(self) -> int:
        return max(0, self.open - self.engine.max_slots)

    def submit(self, prompts: list[Callable[[], Prompt]], params: SamplingParams) -> Ticket:
        """Hand over a request; its prompts are made on the engine's thread, where the tokenizer lives."""
        ticket = Ticket(params, len(prompts))
        self.open += ticket.left
        self.inbox.put(lambda: self._begin(ticket, prompts))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Stop what is not finished; its slots are free before the next step."""
        if ticket.left:
            self.inbox.put(lambda: self._drop(ticket))

    async def call(self, job: Callable[[], T]) -> T:
        """What a job returns (or raises) that is done on the engine's thread, between two steps: whatever needs the tokenizer."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(job())
            except Exception as error:
                done.set_exception(error)

        self.inbox.put(run)
        return await asyncio.shield(asyncio.wrap_future(done))

    # ---- on the engine's thread

    def _run(self) -> None:
        while True:
            while not self.inbox.empty() or not self.engine.busy or self.failure:
                job = self.inbox.get()
                if job is None:
                    return
                job()
            try:
                deltas = self.engine.step()
            except Exception as error:  # every client must hear of it; /health says so from then on
                self.failure = f"{type(error).__name__}: {error}"
                self._send([(ticket, EngineFailure(self.failure)) for ticket in dict.fromkeys(self.tickets.values())])
                self.tickets.clear()
                continue
            self._send([(self.tickets[delta.request], delta) for delta in deltas if delta.request in self.tickets])
            for delta in deltas:
                if delta.request.finished:
                    self.tickets.pop(delta.request, None)

    def _begin(self, ticket: Ticket, prompts: list[Callable[[], Prompt]]) -> None:
        if self.failure:
            return self._send([(ticket, EngineFailure(self.failure))])
        try:
            for prompt in prompts:
                ticket.requests.append(self.engine.submit(prompt(), ticket.params))
        except Exception as error:  # what is no ValueError is a fault of ours, but of this request alone: the thread must live
            self._drop(ticket)
            return self._send([(ticket, error if isinstance(error, ValueError) else EngineFailure(f"{type(error).__name__}: {error}"))])
        self.tickets |= dict.fromkeys(ticket.requests, ticket)
        self._send([(ticket, None)])

    def _drop(self, ticket: Ticket) -> None:
        for request in ticket.requests:
            self.engine.cancel(request)

    def _send(self, news: list[tuple[Ticket, Delta | Exception | None]]) -> None:
        if news and not self.events.is_closed():
            self.events.call_soon_threadsafe(self._deliver, news)

    # ---- on the event loop

    def _deliver(self, news: list[tuple[Ticket, Delta | Exception | None]]) -> None:
        for ticket, item in news:
            if isinstance(item, Exception):
                self.open -= ticket.left
            elif item is not None and item.finish_reason is not None:
                self.open -= 1
                if item.finish_reason != "abort":
                    self.seconds += 0.1 * (time.monotonic() - ticket.begun - self.seconds)
            ticket.news.put_nowait(item)
