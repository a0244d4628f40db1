"""Any OpenAI-compatible server as a writer: vLLM's, SGLang's, `gristmill serve`, or a paid one.

Requests run concurrently, at most `concurrency` at a time, one HTTP request a sample (servers disagree about `n`, and a seed is then
that of one sample). What may pass (429, 5xx, broken connections) is retried with growing pauses, honouring Retry-After; what
cannot (other 4xx) is a UserError at once. Thinking that a server splits off as `reasoning_content` (or `reasoning`) is put back, so that
a sample reads as the in-repo engine's would; from `gristmill serve` in float32 the n = 1 samples are the very same.
"""
from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import httpx

from generators.engines.interface import NO_THINKING, Conversation, EngineRecipe, Request, Sample, SamplingRecipe
from pipelines.errors import UserError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds


class OpenAIWriter:
    """Chat completions over HTTP. `transport` replaces the network in tests."""

    def __init__(self, recipe: EngineRecipe, transport: httpx.AsyncBaseTransport | None = None) -> None:
        assert recipe.url is not None
        self.recipe, self.transport = recipe, transport
        self.name = f"{recipe.name or recipe.model}@{recipe.revision or 'served'}"

    def generate(self, conversations: Sequence[Conversation], requests: Sequence[Request], sampling: SamplingRecipe) -> list[list[Sample]]:
        return asyncio.run(self._generate(conversations, requests, sampling))

    async def _generate(self, conversations: Sequence[Conversation], requests: Sequence[Request], sampling: SamplingRecipe) -> list[list[Sample]]:
        key = os.environ.get(self.recipe.api_key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        gate = asyncio.Semaphore(self.recipe.concurrency)
        async with httpx.AsyncClient(base_url=self.recipe.url.rstrip("/"), headers=headers, timeout=self.recipe.timeout,
                                     transport=self.transport) as client:
            async with asyncio.TaskGroup() as group:
                tasks = [[group.create_task(_guarded(self._one(client, gate, conversation, request.seed + k, sampling))) for k in range(request.n)]
                         for conversation, request in zip(conversations, requests)]
        results = [[task.result() for task in row] for row in tasks]
        for row in results:
            for result in row:
                if isinstance(result, UserError):
                    raise result
        return results

    async def _one(self, client: httpx.AsyncClient, gate: asyncio.Semaphore, conversation: Conversation, seed: int,
                   sampling: SamplingRecipe) -> Sample:
        body: dict[str, Any] = {
            "model": self.recipe.model, "messages": [dict(m) for m in conversation], "seed": seed % (1 << 63),
            "temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_tokens,
            "chat_template_kwargs": {"enable_thinking": sampling.thinking},
        }
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if sampling.thinking_budget is not None:
            body["thinking_token_budget"] = sampling.thinking_budget
        async with gate:
            for attempt in range(self.recipe.retries + 1):
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt)
                try:
                    reply = await client.post("/chat/completions", json=body)
                except httpx.TransportError as error:
                    fault = f"{type(error).__name__} {error}".strip()
                else:
                    if reply.is_success:
                        return _read(reply, self.recipe.url, sampling.thinking)
                    fault = f"HTTP {reply.status_code}: {' '.join(reply.text.split())[:200]}"
                    if reply.status_code != 429 and reply.status_code < 500:
                        raise UserError(f"{self.recipe.url} refuses the request: {fault}")
                    pause = max(pause, _retry_after(reply))
                if attempt < self.recipe.retries:
                    await asyncio.sleep(min(pause, _LONGEST_PAUSE))
            raise UserError(f"{self.recipe.url} does not answer after {self.recipe.retries + 1} attempts: {fault}")


async def _guarded(request) -> Sample | UserError:
    """A refused request must reach the caller as itself, not inside a task group's ExceptionGroup."""
    try:
        return await request
    except UserError as error:
        return error


def _read(reply: httpx.Response, url: str | None, thinking: bool) -> Sample:
    try:
        data = reply.json()
        choice = data["choices"][0]
        message = choice["message"]
        content = message.get("content")
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        tokens = int((data.get("usage") or {}).get("completion_tokens") or 0)
        finish = choice.get("finish_reason") or "stop"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise UserError(f"{url} sent something other than a chat completion: {reply.text[:200]!r}") from None
    if reasoning:  # no content at all: it ended while thinking
        text = reasoning if content is None else f"<think>\n{reasoning.strip()}\n</think>\n{content.strip()}"
    else:
        text = ("" if thinking or (content or "").startswith("<think>") else NO_THINKING) + (content or "")
    return Sample(text, finish, tokens)


def _retry_after(reply: httpx.Response) -> float:
    try:
        return float(reply.headers.get("retry-after", 0))
    except ValueError:  # the other allowed form is a date; our own pause serves
        return 0.0
