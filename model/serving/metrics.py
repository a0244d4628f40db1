"""What the server counts, for Prometheus. Names follow its conventions: a prefix, base units, `_total` on counters."""
from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from model.serving.loop import EngineLoop

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Of one server: a registry of its own, so that several may live in a process."""

    def __init__(self, running: EngineLoop) -> None:
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.answers = Counter("gristmill_http_responses_total", "Answers by route and status.", ["route", "status"], **own)
        self.prompt_tokens = Counter("gristmill_prompt_tokens_total", "Tokens of prompts accepted.", **own)
        self.written_tokens = Counter("gristmill_generated_tokens_total", "Tokens written.", **own)
        self.cancelled = Counter("gristmill_cancelled_requests_total", "Requests whose client went away before the end.", **own)
        self.first_token = Histogram("gristmill_time_to_first_token_seconds", "From a request's arrival to its first token.", buckets=_SECONDS, **own)
        self.duration = Histogram("gristmill_request_seconds", "From a request's arrival to its last token.", buckets=_SECONDS, **own)
        for name, text, value in (
            ("gristmill_running_samples", "Samples in the batch.", lambda: running.open - running.waiting),
            ("gristmill_waiting_samples", "Samples waiting for a slot.", lambda: running.waiting),
            ("gristmill_engine_up", "1 while the engine works.", lambda: running.failure is None),
        ):
            Gauge(name, text, **own).set_function(value)

    def answered(self, route: Any, status: int) -> None:
        """`route` is the one that matched, None if none did: paths that clients make up must not become labels."""
        self.answers.labels(getattr(route, "path", "none"), str(status)).inc()

    def page(self) -> bytes:
        return generate_latest(self.registry)
