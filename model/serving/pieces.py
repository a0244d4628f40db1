"""A chat's answer taken apart while it is written: thinking, content, calls of tools. What is given out is never taken back."""
from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from model import chat, tools

Piece = tuple[str, Any]  # (field of OpenAI's delta, text; or, for tool_calls, one call)


class AnswerReader:
    """`reasoning_content` until </think> (with thinking on), then `content`, out of which `tool_calls` are taken if there are tools."""

    def __init__(self, *, thinking: bool = False, known: Sequence[tools.Tool] = (), one_call: bool = False) -> None:
        self.thinking, self.held, self.at_start = thinking, "", False
        self.calls = CallReader(known, one_call) if known else None

    def push(self, text: str, *, last: bool) -> list[Piece]:
        """What is certain after this further text; what may yet become </think> or a call is held back unless this is the `last`."""
        pieces: list[Piece] = []
        if self.thinking:
            self.held += text
            reasoning, closed, text = self.held.partition(chat.END_THINK)
            undecided = 0 if closed or last else _begun(reasoning, chat.END_THINK)
            self.held = reasoning[len(reasoning) - undecided:]
            pieces.append(("reasoning_content", reasoning[:len(reasoning) - undecided]))
            self.thinking = not closed
            self.at_start = bool(closed)
        if self.at_start:  # the line breaks between </think> and the answer belong to neither
            text = text.lstrip("\n")
            self.at_start = not text
        pieces += self.calls.push(text, last=last) if self.calls else [("content", text)]
        return [piece for piece in pieces if piece[1]]


class CallReader:
    """Takes calls out of content. A call is given out whole; one that is never closed, or calls nothing there is, stays content. The white space before
    a call belongs to nobody."""

    def __init__(self, known: Sequence[tools.Tool], one_call: bool = False) -> None:
        self.known, self.one_call, self.held, self.count = known, one_call, "", 0

    def push(self, text: str, *, last: bool) -> Iterator[Piece]:
        self.held += text
        while not (self.one_call and self.count):
            content, begun, rest = self.held.partition(tools.CALL)
            end = tools.END_OF_CALL.search(rest) if tools.END_CALL in rest else None
            if not end:
                break
            self.held = rest[end.end():]
            called = tools.read(rest[:end.start()], self.known)
            if called is None:
                yield "content", content + begun + rest[:end.end()]
            else:
                yield "content", content.rstrip()
                yield "tool_calls", {"id": f"call_{uuid.uuid4().hex}", "type": "function",
                                     "function": {"name": called[0], "arguments": json.dumps(called[1], ensure_ascii=False)}}
                self.count += 1
        else:
            self.held = ""  # one call was asked for, and made
            return
        if last:
            certain = "" if self.count and self.held.isspace() else self.held
        else:
            certain = content[:len(content) - (0 if begun else _begun(content, tools.CALL))].rstrip()
        self.held = self.held[len(certain):]
        yield "content", certain


def _begun(text: str, mark: str) -> int:
    """Characters at the end of `text` that the mark may begin with."""
    return max(size for size in range(len(mark)) if text.endswith(mark[:size]))
