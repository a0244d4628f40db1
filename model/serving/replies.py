"""OpenAI's JSON around what the engine writes. A whole answer is its stream joined, so the two cannot differ."""
from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from model.engine import Delta
from model.engine.stream import UNFINISHED
from model.serving.pieces import AnswerReader

Entry = tuple[int, float, list[tuple[int, float]]]  # (token, its log-probability, the most likely ones with theirs)


@dataclass
class Choice:
    """One sample of one prompt, as far as it is written."""

    reader: AnswerReader | None  # a chat's; None for a completion, whose text is one field
    text: dict[str, str] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[Entry] = field(default_factory=list)
    shown: int = 0  # characters of the tokens in `logprobs`
    finish_reason: str | None = None


class Reply:
    """One request's answer, a chat's or a completion's, fed delta by delta. `reader` makes what takes a chat's text apart; `most_likely` is how many
    alternatives each token is shown with (None: no log-probabilities, and no use of `token_texts`)."""

    def __init__(self, *, model: str, samples: int, token_texts: list[str], most_likely: int | None,
                 reader: Callable[[], AnswerReader] | None = None) -> None:
        self.chatting, self.token_texts, self.most_likely = reader is not None, token_texts, most_likely
        self.head = {"id": f"{'chatcmpl' if reader else 'cmpl'}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.choices = [Choice(reader() if reader else None) for _ in range(samples)]
        self.prompt_tokens = self.written_tokens = 0

    def echo(self, index: int, prompt: str) -> dict[str, Any]:
        """A completion's choice begins with its prompt; the chunk that says so."""
        self.choices[index].text["text"] = prompt
        return self._chunk([{"index": index, "text": prompt, "logprobs": None, "finish_reason": None}])

    def take(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """Remember what a choice's sample wrote; the chunks it makes in a stream (none while everything it brings is held back)."""
        choice, last = self.choices[index], delta.finish_reason is not None
        self.written_tokens += len(delta.token_ids)
        first = not (choice.text or choice.calls or choice.logprobs)
        brought: dict[str, Any] = {}
        for name, piece in choice.reader.push(delta.text, last=last) if choice.reader else [("text", delta.text)]:
            if name == "tool_calls":
                brought.setdefault(name, []).append({"index": len(choice.calls), **piece})
                choice.calls.append(piece)
            else:
                brought[name] = brought.get(name, "") + piece
                choice.text[name] = choice.text.get(name, "") + piece
        logprobs = None
        if self.most_likely is not None and delta.logprobs:
            entries = list(zip(delta.token_ids, delta.logprobs, delta.top_logprobs or [[]] * len(delta.token_ids)))
            logprobs = self._logprobs(entries, choice.shown)
            choice.logprobs += entries
            choice.shown += sum(len(self.token_texts[token]) for token in delta.token_ids)
        choice.finish_reason = "tool_calls" if choice.calls and delta.finish_reason == "stop" else delta.finish_reason
        if not (any(brought.values()) or logprobs or last):
            return []
        content = {"delta": ({"role": "assistant"} if first else {}) | brought} if self.chatting else {"text": brought["text"]}
        return [self._chunk([{"index": index, **content, "logprobs": logprobs, "finish_reason": choice.finish_reason}])]

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
            logprobs = None if self.most_likely is None else self._logprobs(choice.logprobs, 0)
            choices.append({"index": index, **content, "logprobs": logprobs, "finish_reason": choice.finish_reason})
        return {**self.head, "object": "chat.completion" if self.chatting else "text_completion", "choices": choices, "usage": self.usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk" if self.chatting else "text_completion", "choices": choices}

    def _logprobs(self, entries: list[Entry], offset: int) -> dict[str, Any]:
        """Under the model itself, before temperature and truncation; `offset`: characters of the tokens before."""
        texts = self.token_texts
        if self.chatting:
            return {"content": [{**_shown(texts[token], value), "top_logprobs": [_shown(texts[other], other_value) for other, other_value in top]}
                                for token, value, top in entries]}
        offsets = []
        for token, _, _ in entries:
            offsets.append(offset)
            offset += len(texts[token])
        return {"tokens": [texts[token] for token, _, _ in entries], "token_logprobs": [value for _, value, _ in entries],
                "top_logprobs": [{texts[other]: other_value for other, other_value in reversed(top)} for _, _, top in entries] if self.most_likely else None,
                "text_offset": offsets}


def _shown(text: str, value: float) -> dict[str, Any]:
    """A token that is part of a character has no bytes of its own to show."""
    return {"token": text, "logprob": value, "bytes": None if UNFINISHED in text else list(text.encode())}
