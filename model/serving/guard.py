"""What is refused before a request is read, and how a refusal looks.

A plain ASGI layer, so that streams and disconnects pass through it untouched: the API key (but for what probes, scrapers and readers of the API's page ask),
the size of the body, and a count of answers by status.
"""
from __future__ import annotations

import hmac
import json
import re
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from model.serving.metrics import Metrics

OPEN = {"/health", "/metrics", "/version", "/openapi.json", "/docs", "/redoc"}
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """body_bytes: of a request. tokens: new ones a sample may ask for (None: what the engine's length leaves room for). queue: samples that may wait for a
    slot; beyond that 429."""

    body_bytes: int = 4 << 20
    tokens: int | None = None
    queue: int = 256

    def __post_init__(self) -> None:
        if self.body_bytes < 1 or self.queue < 0 or (self.tokens is not None and self.tokens < 1):
            raise ValueError(f"limits must be positive: {self}")


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object. `message` may quote what a client sent, so what UTF-8 cannot hold is replaced."""
    clean = message.encode("utf-8", "replace").decode()
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": clean, "type": kind, "param": param, "code": code or status}}


def refusal(message: str, status: int = 400, *, param: str | None = None, code: str | None = None, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(error_body(message, status, param, code)), status, headers, "application/json")


class Guard:
    """Wraps the app. `key` None lets everybody in."""

    def __init__(self, app: Any, *, limits: Limits, metrics: Metrics, key: str | None) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.authorization = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def counted(message: dict) -> None:
            if message["type"] == "http.response.start":
                self.metrics.answered(scope.get("route"), message["status"])
            await send(message)

        refused = self._refuse(scope["path"], dict(scope["headers"]))
        if refused is not None:
            return await refused(scope, receive, counted)
        received = 0

        async def limited() -> dict:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limits.body_bytes:
                raise HTTPException(413, self._too_large())
            return message

        await self.app(scope, limited, counted)

    def _refuse(self, path: str, headers: dict[bytes, bytes]) -> Response | None:
        if self.authorization is not None and path not in OPEN and not hmac.compare_digest(headers.get(b"authorization", b""), self.authorization):
            return refusal("the API key is missing or wrong", 401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if not re.fullmatch(rb"\d{1,18}", length):
            return refusal("content-length is not a number")
        return refusal(self._too_large(), 413, headers={"Connection": "close"}) if int(length) > self.limits.body_bytes else None

    def _too_large(self) -> str:
        return f"the body exceeds {self.limits.body_bytes} bytes"
