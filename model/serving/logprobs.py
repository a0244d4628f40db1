"""Log-probabilities as OpenAI's two endpoints show them. They are the model's own, before temperature and truncation."""
from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from model.engine.stream import UNFINISHED

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Likely = list[tuple[int, float]]  # tokens and their log-probabilities, best first


class Scored(NamedTuple):
    """A token in its place: `offset` is where in its choice's text it begins (the character it is a part of, if it is no whole one). A prompt's first
    token has no log-probability."""

    token: int
    logprob: float | None
    most_likely: Likely | None
    offset: int


class TokenNames:
    """What each token of a vocabulary says by itself: `texts`, and `bytes` too, for it may be a part of a character."""

    def __init__(self, tokenizer: Tokenizer, texts: list[str]) -> None:
        self.texts, table = texts, _byte_of_character()
        self.bytes = [text.encode() for text in texts]
        for token in (token for token, text in enumerate(texts) if UNFINISHED in text):
            name = tokenizer.id_to_token(token) or ""
            if all(character in table for character in name):
                self.bytes[token] = bytes(table[character] for character in name)

    def chat(self, scored: list[Scored]) -> dict[str, Any]:
        return {"content": [{**self._shown(s.token, s.logprob), "top_logprobs": [self._shown(*likely) for likely in s.most_likely or ()]} for s in scored]}

    def completion(self, scored: list[Scored]) -> dict[str, Any]:
        return {"tokens": [self.texts[s.token] for s in scored], "token_logprobs": [s.logprob for s in scored],
                "top_logprobs": [None if s.logprob is None else self._by_text(s) for s in scored], "text_offset": [s.offset for s in scored]}

    def _by_text(self, scored: Scored) -> dict[str, float]:
        """The most likely tokens, and the one that is there, as OpenAI has it; of tokens that look alike the likelier."""
        shown: dict[str, float] = {}
        for token, value in [*(scored.most_likely or ()), (scored.token, scored.logprob)]:
            shown.setdefault(self.texts[token], value)
        return shown

    def _shown(self, token: int, value: float) -> dict[str, Any]:
        return {"token": self.texts[token], "logprob": value, "bytes": list(self.bytes[token])}


class Offsets:
    """Where the tokens of one growing text begin."""

    def __init__(self, names: TokenNames) -> None:
        self.names, self.read, self.decoder = names, 0, getincrementaldecoder("utf-8")("replace")

    def place(self, tokens: Iterable[int], logprobs: Iterable[float | None], most_likely: Iterable[Likely | None]) -> list[Scored]:
        placed = []
        for token, value, likely in zip(tokens, logprobs, most_likely):
            placed.append(Scored(token, value, likely, self.read))
            self.read += len(self.decoder.decode(self.names.bytes[token]))
        return placed


def _byte_of_character() -> dict[str, int]:
    """How byte-level tokenizers spell bytes (GPT-2's table): printable Latin-1 as itself, the others from U+0100 on, in their order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
