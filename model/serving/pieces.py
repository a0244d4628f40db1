"""A chat's answer taken apart while it is written: thinking, content, calls of tools. What is given out is never taken back."""
from __future__ import annotations

from collections.abc import Sequence

from model import chat, tools
from model.serving.calls import CallReader, Piece


class AnswerReader:
    """`reasoning_content` until </think> (with thinking on), then `content`, out of which calls are taken if there are tools: pieces of those two kinds, and a
    `CallReader`'s."""

    def __init__(self, *, thinking: bool = False, known: Sequence[tools.Tool] = (), one_call: bool = False) -> None:
        self.thinking, self.held, self.at_start = thinking, "", False
        self.calls = CallReader(known, one_call) if known else None

    def push(self, text: str, ended: str | None) -> list[Piece]:
        """What is certain after this further text; what may yet become </think> or a call is held back, unless the answer has `ended` (for that reason)."""
        pieces: list[Piece] = []
        if self.thinking:
            self.held += text
            reasoning, closed, text = self.held.partition(chat.END_THINK)
            undecided = 0 if closed or ended else max(size for size in range(len(chat.END_THINK)) if reasoning.endswith(chat.END_THINK[:size]))
            self.held = reasoning[len(reasoning) - undecided:]
            pieces.append(("reasoning_content", reasoning[:len(reasoning) - undecided]))
            self.thinking = not closed
            self.at_start = bool(closed)
        if self.at_start:  # the line breaks between </think> and the answer belong to neither
            text = text.lstrip("\n")
            self.at_start = not text
        pieces += self.calls.push(text, ended) if self.calls else [("content", text)]
        return [piece for piece in pieces if piece[1]]
