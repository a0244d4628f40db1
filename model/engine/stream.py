"""Reading along while a sample is written: text that never has to be taken back.

A token may end inside a character, and what looks like text may be the beginning of a stop string; both are held back until they are decided.
Each call decodes only the tokens since the last whole character, so a long answer costs no more a token than a short one.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from model.engine.params import RequestOutput

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from model.engine.slots import Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what tokenizers write for bytes that are no whole character (yet)


@dataclass(frozen=True)
class Delta:
    """What one step added to sample `index` of a request. The texts of a sample's deltas join to its `CompletionOutput.text`, the token ids to its
    `token_ids`. `finish_reason` is set on the last one only; by then `request.output.outputs[index]` is complete."""

    request: Request
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[float] | None = None
    finish_reason: str | None = None
    top_logprobs: list[list[tuple[int, float]]] | None = None


@dataclass(eq=False)
class Request:
    """A prompt handed to the engine. `output` fills up as its samples finish."""

    output: RequestOutput
    sequences: list[Sequence] = field(repr=False)

    @property
    def finished(self) -> bool:
        return all(s.output.finish_reason is not None for s in self.sequences)


class TextReader:
    """Turns a growing list of token ids into pieces of text."""

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.ids: list[int] = []
        self.context = self.read = 0  # ids before `context` are forgotten; those before `read` are in `text`
        self.held = ""  # whole characters that may begin a stop string
        self.sent = 0  # characters given out

    def push(self, ids: list[int]) -> str:
        """Text that is certain after these further tokens."""
        self.ids += ids
        before = self._decode(self.context, self.read)
        now = self._decode(self.context, len(self.ids))
        if len(now) > len(before) and not now.endswith(UNFINISHED):
            self.held += now[len(before):]
            self.context, self.read = self.read, len(self.ids)
        certain = self.held[:len(self.held) - self._undecided()]
        self.held = self.held[len(certain):]
        self.sent += len(certain)
        return certain

    def finish(self, text: str) -> str:
        """The rest of the sample's final text."""
        rest, self.sent = text[self.sent:], len(text)
        return rest

    def _decode(self, first: int, last: int) -> str:
        return self.tokenizer.decode(self.ids[first:last], skip_special_tokens=False)

    def _undecided(self) -> int:
        """Characters at the end of `held` from which a stop string may still grow."""
        return max((size for stop in self.stops for size in range(1, len(stop)) if self.held.endswith(stop[:size])), default=0)
