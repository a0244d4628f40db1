"""What a request asks for and what it gets back. The names are vLLM's, so that code written for one engine reads on the other."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one prompt is continued.

    n: samples drawn. temperature 0 is greedy. top_k 0 or -1 and top_p 1 switch truncation off (top_k is applied first, then top_p).
    max_tokens: new tokens at most (the engine's max_length also ends a sample). stop: strings that end a sample and are cut off.
    stop_token_ids: tokens that end it, beside the engine's own (</s>, <|im_end|>), which `ignore_eos` switches off.
    seed: sample k of a request draws from the stream (seed, k), whatever else is in the batch; None takes a stream of the engine's.
    logprobs: also return the log-probability of each chosen token under the model itself (temperature 1, nothing truncated).
    top_logprobs: and those of so many most likely tokens in its place.
    prompt_logprobs: also score the prompt, its tokens (0) and so many most likely ones in their places; None does not.
    thinking_budget: thinking tokens (counted from <think>) after which thinking is closed at the next newline, and in any case
    `thinking_grace` tokens later; None leaves the model alone.
    min_tokens: as many are written before one of those may end it. logit_bias: token -> what is added to its logit. allowed_token_ids: no others are written.
    frequency_penalty and presence_penalty: taken off a token's logit for each time, and once, that it was written; repetition_penalty: what logits of tokens
    written or in the prompt are divided by (multiplied, below 0). min_p: tokens less likely than this share of the likeliest are left out.
    regex or json_schema: the whole sample matches it (unless max_tokens cuts it short)."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] | list[str] | str = ()
    stop_token_ids: tuple[int, ...] | list[int] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: int | None = None
    min_tokens: int = 0
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | list[int] | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_p: float = 0.0
    thinking_budget: int | None = None
    thinking_grace: int = 32
    regex: str | None = None
    json_schema: dict[str, Any] | str | None = None

    def __post_init__(self) -> None:
        checks = (
            (self.n >= 1, f"n must be at least 1, not {self.n}"),
            (self.temperature >= 0, f"temperature must be 0 (greedy) or more, not {self.temperature}"),
            (0 < self.top_p <= 1, f"top_p must be in (0, 1], not {self.top_p}"),
            (self.top_k >= -1, f"top_k must be -1 or 0 (off) or more, not {self.top_k}"),
            (self.max_tokens >= 1, f"max_tokens must be at least 1, not {self.max_tokens}"),
            (self.thinking_budget is None or self.thinking_budget >= 0, f"thinking_budget must be 0 or more, not {self.thinking_budget}"),
            (self.top_logprobs >= 0, f"top_logprobs must be 0 (none) or more, not {self.top_logprobs}"),
            (self.prompt_logprobs is None or self.prompt_logprobs >= 0, f"prompt_logprobs must be 0 or more, not {self.prompt_logprobs}"),
            (self.regex is None or self.json_schema is None, "give regex or json_schema, not both"),
            (0 <= self.min_tokens <= self.max_tokens, f"min_tokens must be between 0 and max_tokens {self.max_tokens}, not {self.min_tokens}"),
            (self.allowed_token_ids is None or len(self.allowed_token_ids) > 0, "allowed_token_ids must not be empty"),
            (all(map(math.isfinite, (self.logit_bias or {}).values())), "logit_bias must be finite"),
            (all(-2 <= p <= 2 for p in (self.frequency_penalty, self.presence_penalty)), "frequency_penalty and presence_penalty must lie in [-2, 2]"),
            (0 < self.repetition_penalty < math.inf, f"repetition_penalty must be above 0, not {self.repetition_penalty}"),
            (0 <= self.min_p <= 1, f"min_p must be in [0, 1], not {self.min_p}"),
            ((self.regex is None and self.json_schema is None) or (not self.min_tokens and self.allowed_token_ids is None),
             "min_tokens and allowed_token_ids do not go with a grammar, which says itself what may come and where it ends"),
            (self.thinking_grace >= 0, f"thinking_grace must be 0 or more, not {self.thinking_grace}"),
        )
        for ok, message in checks:
            if not ok:
                raise ValueError(message)
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        if "" in self.stop:
            raise ValueError("stop strings must not be empty")


@dataclass
class CompletionOutput:
    """One sample. text leaves out the stop token or stop string; token_ids keeps the stop token. finish_reason: "stop", "length"
    or "abort". top_logprobs: for each token, (token, log-probability) of the most likely ones, best first. forced_positions: the tokens a
    thinking budget put in the model's mouth. weights_versions: for each token, how often the engine's weights
    had been swapped when it was written (`Engine.swap_weights`)."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None
    top_logprobs: list[list[tuple[int, float]]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    forced_positions: list[int] = field(default_factory=list)
    weights_versions: list[int] = field(default_factory=list)


@dataclass
class RequestOutput:
    """All samples of one prompt, in order of k. prompt_logprobs, if asked for: each of its tokens' log-probability given those before it, None for the
    first; prompt_top_logprobs: the most likely tokens in its place, best first. Both are complete once the first sample begins."""

    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt: str | None = None
    prompt_logprobs: list[float | None] | None = None
    prompt_top_logprobs: list[list[tuple[int, float]] | None] | None = None
