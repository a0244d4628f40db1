"""OpenAI's JSON around what the engine writes. A whole answer is its stream joined, so the two cannot differ."""
from __future__ import annotations

import time
import uuid
from typing import Any

from model import chat
from model.engine import Delta

Pieces = list[tuple[str, str]]  # (field of OpenAI's delta, text)


class ThinkingSplitter:
    """Parts a chat answer as it grows: `reasoning_content` until </think>, then `content`. With thinking off everything is content."""

    def __init__(self, thinking: bool) -> None:
        self.thinking, self.held, self.at_start = thinking, "", False

    def push(self, text: str, *, last: bool) -> Pieces:
        """What is certain after this further text; what may yet become </think> is held back unless this is the `last`."""
        pieces: Pieces = []
        if self.thinking:
            self.held += text
            reasoning, closed, text = self.held.partition(chat.END_THINK)
            undecided = 0 if closed or last else max(size for size in range(len(chat.END_THINK)) if reasoning.endswith(chat.END_THINK[:size]))
            self.held = reasoning[len(reasoning) - undecided:]
            pieces.append(("reasoning_content", reasoning[:len(reasoning) - undecided]))
            self.thinking = not closed
            self.at_start = bool(closed)
        if self.at_start:  # the line breaks between </think> and the answer belong to neither
            text = text.lstrip("\n")
            self.at_start = not text
        return [*pieces, ("content", text)]


class Reply:
    """One request's answer, a chat's or a completion's, fed delta by delta."""

    def __init__(self, *, chatting: bool, model: str, samples: int, thinking: bool, token_texts: list[str] | None) -> None:
        self.chatting, self.token_texts = chatting, token_texts
        self.head = {"id": f"{'chatcmpl' if chatting else 'cmpl'}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.splitters = [ThinkingSplitter(thinking) for _ in range(samples)]
        self.choices: list[dict[str, Any]] = [{"index": index, "finish_reason": None, "text": {}, "logprobs": []} for index in range(samples)]
        self.prompt_tokens = self.written_tokens = 0

    def take(self, delta: Delta) -> list[dict[str, Any]]:
        """Remember a delta; the chunks it makes in a stream (none while everything it brings is held back)."""
        choice, last = self.choices[delta.index], delta.finish_reason is not None
        self.written_tokens += len(delta.token_ids)
        pieces = self.splitters[delta.index].push(delta.text, last=last) if self.chatting else [("text", delta.text)]
        pieces = [(field, text) for field, text in pieces if text]
        first = not choice["text"] and not choice["logprobs"]
        for field, text in pieces:
            choice["text"][field] = choice["text"].get(field, "") + text
        logprobs = None
        if self.token_texts is not None and delta.logprobs:
            entries = [(self.token_texts[token], value) for token, value in zip(delta.token_ids, delta.logprobs)]
            choice["logprobs"] += entries
            logprobs = self._logprobs(entries)
        choice["finish_reason"] = delta.finish_reason
        if not (pieces or logprobs or last):
            return []
        if self.chatting:
            content: dict[str, Any] = {"delta": ({"role": "assistant"} if first else {}) | dict(pieces)}
        else:
            content = {"text": "".join(text for _, text in pieces)}
        return [self._chunk([{"index": delta.index, **content, "logprobs": logprobs, "finish_reason": delta.finish_reason}])]

    def usage_chunk(self) -> dict[str, Any]:
        return self._chunk([]) | {"usage": self.usage()}

    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.written_tokens, "total_tokens": self.prompt_tokens + self.written_tokens}

    def whole(self) -> dict[str, Any]:
        choices = []
        for choice in self.choices:
            text = choice["text"]
            if self.chatting:
                content = {"message": {"role": "assistant", "content": text.get("content", ""), "reasoning_content": text.get("reasoning_content")}}
            else:
                content = {"text": text.get("text", "")}
            logprobs = self._logprobs(choice["logprobs"]) if self.token_texts is not None else None
            choices.append({"index": choice["index"], **content, "logprobs": logprobs, "finish_reason": choice["finish_reason"]})
        return {**self.head, "object": "chat.completion" if self.chatting else "text_completion", "choices": choices, "usage": self.usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk" if self.chatting else "text_completion", "choices": choices}

    def _logprobs(self, entries: list[tuple[str, float]]) -> dict[str, Any]:
        """Of the chosen tokens, under the model itself. A token that is part of a character has no bytes of its own to show."""
        if self.chatting:
            return {"content": [{"token": text, "logprob": value, "bytes": None, "top_logprobs": []} for text, value in entries]}
        return {"tokens": [text for text, _ in entries], "token_logprobs": [value for _, value in entries], "top_logprobs": None, "text_offset": []}
