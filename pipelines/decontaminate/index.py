"""The n-grams to look for: every distinct benchmark item, less what is too ordinary to be evidence.

Two kinds of n-grams are left out here, because the items alone tell: those of more than `common_items` items (templates), and those in
which every word is frequent among the items ("which of the following statements is not true", "1, 2, 3, 4, ..."). What is
ordinary in *documents* is told later, by counting them (`verdict`).

The index is the only thing every process holds whole. It grows with the benchmarks, not with the data: 20 bytes an n-gram of an item.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from kernels.ngrams import Normalisation, gram_filter, hash_ngrams, words_of
from pipelines.arrow_files import read_arrow, write_arrow
from pipelines.benchmark_items import read_items
from pipelines.decontaminate.recipe import DecontaminateRecipe
from pipelines.stage import PartOutput

ITEM_CHARACTERS = 300  # of an item's text kept to be shown
FREQUENT_ITEMS = 50  # a word of fewer items than this is never ordinary: small benchmarks have no statistics
WORDS = Normalisation(fold_digits=False, loose=True)
_LIGATURES = {"\ufb00": b"ff\0", "\ufb01": b"fi\0", "\ufb02": b"fl\0", "\ufb03": b"ffi", "\ufb04": b"ffl", "\ufb05": b"st\0", "\ufb06": b"st\0"}


def expand_ligatures(data: bytes) -> bytes:
    """UTF-8 with the Latin ligatures (PDF text is full of them) spelt out, every other byte in its place: a loose normalisation drops the NULs."""
    if b"\xef\xac" in data:
        for ligature, letters in _LIGATURES.items():
            data = data.replace(ligature.encode(), letters)
    return data


# ----------------------------------------------------------------------------------------------------------------- write


def write_index(payload: dict, recipe: DecontaminateRecipe, output: PartOutput) -> None:
    """`items.arrow` (id, text) and `grams.arrow` (length, gram, item), sorted by all three."""
    ids: list[str] = []
    texts: list[str] = []
    seen: set[bytes] = set()
    items = short = 0
    for uri in payload["against"]:
        for item in read_items(uri, recipe.formats):
            items += 1
            text = expand_ligatures(item.text.encode(errors="replace")).decode()
            units, _, _ = words_of(text, recipe.normalisation)
            if units.size < recipe.min_units:
                short += 1
            elif (key := units.tobytes()) not in seen:  # the same question again (one row a choice, a second split) is one item, not a common phrase
                seen.add(key)
                ids.append(item.id)
                texts.append(text)
    frequent = _frequent_words(texts, recipe.ordinary_words)
    columns = [(np.empty(0, np.int32), np.empty(0, np.uint64), np.empty(0, np.int64))]
    ordinary = 0
    for number, text in enumerate(texts):
        length, grams, specific = _grams_of(text, frequent, recipe)
        ordinary += int((~specific).sum())
        kept = np.unique(grams[specific])
        columns.append((np.full(kept.size, length, np.int32), kept, np.full(kept.size, number, np.int64)))
    length, gram, item = (np.concatenate(arrays) for arrays in zip(*columns, strict=True))
    order = np.lexsort((item, gram, length))
    length, gram, item = length[order], gram[order], item[order]
    sharers = np.diff(np.append(np.flatnonzero(_begins(length, gram)), gram.size))
    keep = np.repeat(sharers <= recipe.common_items, sharers)
    write_arrow(output, "grams.arrow", {"length": length[keep], "gram": gram[keep], "item": item[keep]})
    write_arrow(output, "items.arrow", {"id": pa.array(ids, pa.string()), "text": pa.array([text[:ITEM_CHARACTERS] for text in texts], pa.string())})
    indexed = int(np.unique(item[keep]).size)
    output.count(items=items, items_short=short, items_repeated=items - short - len(ids), items_ordinary=len(ids) - indexed, items_indexed=indexed)
    output.count(grams=int(sharers.size), grams_common=int((sharers > recipe.common_items).sum()), grams_ordinary=ordinary)


def _frequent_words(texts: Sequence[str], share: float) -> np.ndarray:
    """Hashes uint64, sorted, of the words found in at least `share` of the items (and in FREQUENT_ITEMS); none for a share of 0."""
    if not share or not texts:
        return np.empty(0, np.uint64)
    words, counts = np.unique(np.concatenate([np.unique(words_of(text, WORDS)[0]) for text in texts]), return_counts=True)
    return words[counts >= max(FREQUENT_ITEMS, share * len(texts))]


def _grams_of(text: str, frequent: np.ndarray, recipe: DecontaminateRecipe) -> tuple[int, np.ndarray, np.ndarray]:
    """(n of the n-grams, their hashes uint64 [G], which of them hold a word that is not frequent bool [G])."""
    units, starts, ends = words_of(text, recipe.normalisation)
    length = units.size if recipe.n is None else min(recipe.n, units.size)
    grams = np.empty(units.size, np.uint64)
    count = hash_ngrams(units, units.size, length, grams)
    chosen = np.unique(np.append(np.arange(0, count, recipe.stride), count - 1))  # the last too: the item's end is looked for like its beginning
    specific = np.ones(chosen.size, bool)
    if frequent.size:
        words, word_starts, word_ends = words_of(text, WORDS)
        rare = ~np.isin(words, frequent)
        begun = np.searchsorted(word_starts[rare], starts[chosen], side="left")
        ended = np.searchsorted(word_ends[rare], ends[chosen + length - 1], side="right")
        specific = ended > begun
    return length, grams[chosen], specific


def _begins(length: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Where a run of equal (length, gram) begins: bool [G]."""
    same = (gram[1:] == gram[:-1]) & (length[1:] == length[:-1])
    return np.concatenate((np.ones(min(1, gram.size), bool), ~same))


# ------------------------------------------------------------------------------------------------------------------ read


class Grams(NamedTuple):
    """The n-grams of one length, to look up in documents."""

    length: int
    grams: np.ndarray  # uint64, sorted, distinct
    bitmap: np.ndarray
    first: int  # number of grams[0] among the distinct n-grams of all lengths


class Index(NamedTuple):
    """Distinct n-grams are numbered over all lengths; number g belongs to items[bounds[g]:bounds[g + 1]]."""

    by_length: list[Grams]
    bounds: np.ndarray  # int64 [G + 1]
    items: np.ndarray  # int64 [pairs]
    ids: list[str]
    texts: list[str]

    @property
    def size(self) -> int:
        return self.bounds.size - 1


@functools.lru_cache(maxsize=2)  # once a process, not once a part
def load_index(files: tuple[str, ...], digest: str) -> Index:
    """The index as `write_index` left it; `digest` tells one file of that name from another."""
    tables = {uri.rpartition("/")[2]: read_arrow(uri) for uri in files}
    length, gram, item = (tables["grams.arrow"][name].to_numpy() for name in ("length", "gram", "item"))
    starts = np.flatnonzero(_begins(length, gram))
    lengths, grams = length[starts], gram[starts]
    by_length = []
    for one in np.unique(lengths):
        here = np.flatnonzero(lengths == one)
        by_length.append(Grams(int(one), grams[here], gram_filter(grams[here]), int(here[0])))
    names = tables["items.arrow"]
    return Index(by_length, np.append(starts, gram.size), item, names["id"].to_pylist(), names["text"].to_pylist())
