"""A batch of documents as columns, tokenized once: what every source of signals reads, and nothing splits a text again.

A *source* is the signals that one file contributes: their names and types, and a function from pages to columns. Whatever several
sources need of a text lives here as a cached property, computed at the first use and shared by all: code points, words, lines, the lower-cased text.
To add signals: write a `Source` in a file of its own and name it in `filters.signals.SOURCES`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from filters.words import mode_of
from kernels.characters import LIMIT, table
from kernels.words import Words, split_words


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
        return np.frombuffer(bytearray("".join(self.texts).encode("utf-32-le", "surrogatepass")), np.uint32)

    @cached_property
    def bits(self) -> np.ndarray:
        """uint32 [C]: what each character is (`kernels.characters`)."""
        return table()[np.minimum(self.codes, LIMIT)]

    @cached_property
    def modes(self) -> np.ndarray:
        """uint8 [R]: what a page's language changes about words (`kernels.words`)."""
        return np.array([mode_of(language) for language in self.languages], np.uint8)

    @cached_property
    def words(self) -> Words:
        """The words of all pages in order; the text of word w on page r is texts[r][starts[w] - self.rows[r] : ends[w] - self.rows[r]]."""
        return split_words(self.codes, self.bits, self.rows, self.modes)

    @cached_property
    def lines(self) -> list[list[str]]:
        """Per page: what stands between newlines and is not blank."""
        return [[line for line in text.split("\n") if line and not line.isspace()] for text in self.texts]

    @cached_property
    def lowered(self) -> list[str]:
        return [text.lower() for text in self.texts]


@dataclass(frozen=True)
class Source:
    """Signals and how they are measured: `measure` gives a column [R] for each name of `types`. Shares are in 0..1, counts are whole numbers."""

    types: Mapping[str, pa.DataType]
    measure: Callable[[Pages], Mapping[str, Sequence[float] | np.ndarray]]


def counts(*names: str) -> dict[str, pa.DataType]:
    return dict.fromkeys(names, pa.int32())


def shares(*names: str) -> dict[str, pa.DataType]:
    return dict.fromkeys(names, pa.float64())
