"""OpenAI's JSON around what the engine writes. A whole answer is its stream joined, so the two cannot differ."""
from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

from model.engine import Delta
from model.serving.logprobs import Offsets, Scored, TokenNames
from model.serving.pieces import AnswerReader


@dataclass
class Choice:
    """One sample of one prompt, as far as it is written."""

    reader: AnswerReader | None  # a chat's; None for a completion, whose text is one field
    offsets: Offsets | None  # if log-probabilities are shown
    text: dict[str, str] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def untouched(self) -> bool:
        return not (self.text or self.calls or self.scored)


class Reply:
    """One request's answer, a chat's or a completion's, fed delta by delta.

    reader: makes what takes a chat's text apart. names: of the tokens, if log-probabilities are shown. echoed: for each choice its prompt's text, which it
    begins with (and the prompt's log-probabilities, if any are shown). silent: nothing but that was asked for (OpenAI's max_tokens 0): what is written is
    dropped, for the engine always writes a token."""

    def __init__(self, *, model: str, samples: int, names: TokenNames | None = None, reader: Callable[[], AnswerReader] | None = None,
                 echoed: Sequence[str] = (), silent: bool = False) -> None:
        self.chatting, self.names, self.echoed, self.silent = reader is not None, names, echoed, silent
        self.head = {"id": f"{'chatcmpl' if reader else 'cmpl'}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.choices = [Choice(reader() if reader else None, Offsets(names) if names else None) for _ in range(samples)]
        self.prompt_tokens = self.written_tokens = 0

    def take(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """Remember what a choice's sample wrote; the chunks it makes in a stream (none while everything it brings is held back)."""
        if self.silent:
            delta = replace(delta, text="", token_ids=[], finish_reason=delta.finish_reason and "length")
        choice, ended, text, prompt = self.choices[index], delta.finish_reason, delta.text, delta.request.output
        first, scored = choice.untouched, []
        if first and self.echoed:
            text = self.echoed[index] + text
            if self.names:
                scored += choice.offsets.place(prompt.prompt_token_ids, prompt.prompt_logprobs, prompt.prompt_top_logprobs or repeat(None))
        if self.names:
            scored += choice.offsets.place(delta.token_ids, delta.logprobs or (), delta.top_logprobs or repeat(None))
        self.written_tokens += len(delta.token_ids)
        brought: dict[str, Any] = {}
        for kind, piece in choice.reader.push(text, ended) if choice.reader else [("text", text)]:
            if kind in ("call", "arguments"):
                self._call(choice.calls, brought.setdefault("tool_calls", []), kind, piece)
            else:
                brought[kind] = brought.get(kind, "") + piece
                choice.text[kind] = choice.text.get(kind, "") + piece
        choice.scored += scored
        choice.finish_reason = "tool_calls" if choice.calls and ended == "stop" else ended
        if not (any(brought.values()) or scored or ended):
            return []
        content = {"delta": ({"role": "assistant"} if first else {}) | brought} if self.chatting else {"text": brought["text"]}
        return [self._chunk([{"index": index, **content, "logprobs": self._logprobs(scored) if scored else None, "finish_reason": choice.finish_reason}])]

    @staticmethod
    def _call(calls: list[dict[str, Any]], brought: list[dict[str, Any]], kind: str, piece: str) -> None:
        """A call begun, or a piece of the last one's arguments."""
        if kind == "call":
            calls.append({"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": {"name": piece, "arguments": ""}})
            brought.append({"index": len(calls) - 1, **calls[-1], "function": {"name": piece, "arguments": ""}})
        else:
            calls[-1]["function"]["arguments"] += piece
            if not brought:
                brought.append({"index": len(calls) - 1, "function": {"arguments": ""}})
            brought[-1]["function"]["arguments"] += piece

    def usage_chunk(self) -> dict[str, Any]:
        return self._chunk([]) | {"usage": self.usage()}

    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.written_tokens, "total_tokens": self.prompt_tokens + self.written_tokens}

    def whole(self) -> dict[str, Any]:
        choices = []
        for index, choice in enumerate(self.choices):
            if self.chatting:
                silent = choice.calls or choice.reader.thinking  # nothing was said, rather than nothing at length
                message = {"role": "assistant", "content": choice.text.get("content", None if silent else ""),
                           "reasoning_content": choice.text.get("reasoning_content")}
                content: dict[str, Any] = {"message": message | ({"tool_calls": choice.calls} if choice.calls else {})}
            else:
                content = {"text": choice.text.get("text", "")}
            logprobs = self._logprobs(choice.scored) if self.names else None
            choices.append({"index": index, **content, "logprobs": logprobs, "finish_reason": choice.finish_reason})
        return {**self.head, "object": "chat.completion" if self.chatting else "text_completion", "choices": choices, "usage": self.usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk" if self.chatting else "text_completion", "choices": choices}

    def _logprobs(self, scored: list[Scored]) -> dict[str, Any]:
        return self.names.chat(scored) if self.chatting else self.names.completion(scored)
