"""A batch of documents as columns, tokenized once: what every source of signals reads, and nothing splits a text again.

A *source* is the signals that one file contributes: their names and types, and a function from pages to columns. Whatever several
sources need of a text lives here as a cached property, computed at the first use and shared by all: code points, words, lines, the lower-cased text.
To add signals: write a `Source` in a file of its own and name it in `filters.signals.SOURCES`.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from filters.words import word_pattern

HAS_LETTER, NOT_SYMBOL = 1, 2  # flags of a word: has a letter (category L); has a character that is no punctuation, symbol or control


class Words(NamedTuple):
    """The words of all pages in order. Legend: W words, R pages.

    `rows` [R+1]: page r has words rows[r]..rows[r+1]. `starts`, `ends` [W]: code points of `Pages.codes`; a word's text is
    `pages.texts[r][start - pages.rows[r] : end - pages.rows[r]]`. `hashes` [W]: uint64 of the characters. `flags` [W]: bits above.
    """

    rows: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    hashes: np.ndarray
    flags: np.ndarray


@dataclass(frozen=True)
class Pages:
    """A batch of documents. Legend: R pages, C code points of all of them together.

    `texts` [R] are strings ("" for a missing one), `languages` [R] lid.176 codes ("" if unknown), `scores` [R] their probabilities.
    """

    texts: Sequence[str]
    languages: Sequence[str]
    scores: Sequence[float] = field(default=())

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def rows(self) -> np.ndarray:
        """int64 [R+1]: page r has code points rows[r]..rows[r+1] of `codes`."""
        return np.cumsum([0, *map(len, self.texts)], dtype=np.int64)

    @cached_property
    def codes(self) -> np.ndarray:
        """uint32 [C]: every page's code points, one after the other; lone surrogates are code points too."""
        return np.frombuffer("".join(self.texts).encode("utf-32-le", "surrogatepass"), np.uint32)

    @cached_property
    def lines(self) -> list[list[str]]:
        """Per page: what stands between newlines and is not blank."""
        return [[line for line in text.split("\n") if line and not line.isspace()] for text in self.texts]

    @cached_property
    def lowered(self) -> list[str]:
        return [text.lower() for text in self.texts]

    @cached_property
    def words(self) -> Words:
        rows, starts, ends, hashes, flags = [0], [], [], [], []
        for at, text, language in zip(self.rows[:-1].tolist(), self.texts, self.languages, strict=True):
            for match in word_pattern(language).finditer(text):
                word = match.group()
                starts.append(at + match.start())
                ends.append(at + match.end())
                hashes.append(hash(word) & (1 << 64) - 1)
                flags.append(HAS_LETTER * any(map(str.isalpha, word)) | NOT_SYMBOL * any(unicodedata.category(c)[0] not in "PSC" for c in word))
            rows.append(len(starts))
        return Words(np.array(rows, np.int64), np.array(starts, np.int64), np.array(ends, np.int64), np.array(hashes, np.uint64), np.array(flags, np.uint8))


@dataclass(frozen=True)
class Source:
    """Signals and how they are measured: `measure` gives a column [R] for each name of `types`. Shares are in 0..1, counts are whole numbers."""

    types: Mapping[str, pa.DataType]
    measure: Callable[[Pages], Mapping[str, Sequence[float] | np.ndarray]]


def counts(*names: str) -> dict[str, pa.DataType]:
    return dict.fromkeys(names, pa.int32())


def shares(*names: str) -> dict[str, pa.DataType]:
    return dict.fromkeys(names, pa.float64())
