"""Packing: how documents become windows of a fixed length, without losing or repeating a token.

`concat` cuts the stream of documents every T tokens; only the last window of a source is not full. `best_fit` never cuts a
document that fits into a window, whichever shards the documents lie in: longer ones give up whole windows, remainders and short
ones go where they leave the least room (`kernels.packing.best_fit`), and windows end in padding. `pad` gives every document
windows of its own.

Concatenated windows are computed from where documents end. The others are looked up in a *window index*, a file that is written once and
mapped into memory, so opening one costs its header whatever it holds. The same file holds any other windows too, such as
those over what an earlier plan has left unread.

A window is a list of pieces, each a part of one document. Pieces are rows of an int64 array [pieces, 5] with the columns
WINDOW, SHARD, DOCUMENT, OFFSET (in the document) and LENGTH, in reading order.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from kernels.packing import best_fit, cut

WINDOW, SHARD, DOCUMENT, OFFSET, LENGTH = range(5)
Packing = Literal["concat", "best_fit", "pad"]
_MAGIC = int.from_bytes(b"gmwindow", "little")
_HEADER = 4  # int64: magic, windows, pieces, tokens


class Concat:
    """Concatenate-and-chunk over the shards of a source.

    Args:
        ends: per shard, the cumulative ends of its documents in tokens (any array with a buffer: memory maps stay on disk).
        length: tokens a window.
        sizes: tokens a shard, where they are known; else the last entries of `ends` are looked at, a page of every shard.
    """

    def __init__(self, ends: Sequence[np.ndarray], length: int, sizes: Sequence[int] | None = None):
        self.ends, self.length = ends, length
        sizes = [int(shard[-1]) if len(shard) else 0 for shard in ends] if sizes is None else sizes
        self.shard_ends = np.cumsum(sizes, dtype=np.int64)
        self.shard_starts = np.concatenate(([0], self.shard_ends))[:-1]
        self.tokens = int(self.shard_ends[-1]) if len(ends) else 0
        self.windows = -(-self.tokens // length)

    def pieces(self, windows: np.ndarray) -> np.ndarray:
        """The pieces of windows: int64 [n] -> int64 [pieces, 5]; WINDOW counts 0..n-1, the place in `windows`."""
        starts = windows * self.length
        stops = np.minimum(starts + self.length, self.tokens)
        first, last = (np.searchsorted(self.shard_ends, at, side="right") for at in (starts, stops - 1))
        found = []
        for shard in np.unique(np.concatenate([first, last, *_between(first, last)])).tolist():
            places = np.flatnonzero((first <= shard) & (last >= shard))
            base = self.shard_starts[shard]
            upto = self.shard_ends[shard] - base
            rows = cut(self.ends[shard], np.maximum(starts[places] - base, 0), np.minimum(stops[places] - base, upto))
            piece = np.empty((len(rows), 5), np.int64)
            piece[:, WINDOW], piece[:, SHARD], piece[:, DOCUMENT:] = places[rows[:, 0]], shard, rows[:, 1:]
            found.append(piece)
        if len(found) == 1:
            return found[0]
        pieces = np.concatenate(found) if found else np.zeros((0, 5), np.int64)
        return pieces[np.argsort(pieces[:, WINDOW], kind="stable")]

    def filled(self, windows: np.ndarray) -> np.ndarray:
        """Tokens in each window: int64 [n] -> int64 [n]."""
        return np.minimum(self.length, self.tokens - windows * self.length)

    def windows_of(self, shard: int, document: int) -> list[int]:
        """The windows that hold a part of a document."""
        base = int(self.shard_starts[shard])
        start = base + (int(self.ends[shard][document - 1]) if document else 0)
        stop = base + int(self.ends[shard][document])
        return list(range(start // self.length, -(-stop // self.length)))


class Indexed:
    """Windows that a file lists (`window_index`), fullest first; opening it reads the header.

    Args:
        data: the file as int64, on disk or in memory.
    """

    def __init__(self, data: np.ndarray, length: int):
        assert len(data) >= _HEADER and int(data[0]) == _MAGIC, "not a window index"
        self.length = length
        self.windows, pieces, self.tokens = (int(value) for value in data[1:_HEADER])
        assert len(data) == _HEADER + self.windows + 2 * pieces, "the window index is cut short"
        self._ends = data[_HEADER : _HEADER + self.windows]
        self._pieces = data[_HEADER + self.windows :].view(np.int32).reshape(pieces, 4)

    def pieces(self, windows: np.ndarray) -> np.ndarray:
        """As `Concat.pieces`."""
        stops = self._ends[windows]
        starts = np.where(windows > 0, self._ends[np.maximum(windows - 1, 0)], 0)
        counts = stops - starts
        places = np.repeat(np.arange(len(windows)), counts)
        pieces = np.empty((len(places), 5), np.int64)
        pieces[:, WINDOW] = places
        pieces[:, SHARD:] = self._pieces[np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(len(places))]
        return pieces

    def filled(self, windows: np.ndarray) -> np.ndarray:
        """Tokens in each window: int64 [n] -> int64 [n]."""
        pieces = self.pieces(windows)
        return np.bincount(pieces[:, WINDOW], weights=pieces[:, LENGTH], minlength=len(windows)).astype(np.int64)

    def windows_of(self, shard: int, document: int) -> list[int]:
        """The windows that hold a part of a document."""
        pieces = np.flatnonzero((self._pieces[:, 0] == shard) & (self._pieces[:, 1] == document))
        return sorted({int(window) for window in np.searchsorted(self._ends, pieces, side="right")})


Windows = Concat | Indexed


def whole_documents(ends: Sequence[np.ndarray]) -> np.ndarray:
    """Every document of the shards as a run to be packed: int64 [documents, 4] of (shard, document, 0, length)."""
    runs = [np.zeros((0, 4), np.int64)]
    for shard, stops in enumerate(ends):
        lengths = np.diff(np.asarray(stops, np.int64), prepend=0)
        rows = np.zeros((len(lengths), 4), np.int64)
        rows[:, 0], rows[:, 1], rows[:, 3] = shard, np.arange(len(lengths)), lengths
        runs.append(rows)
    return np.concatenate(runs)


def unread(windows: Windows, which: np.ndarray) -> np.ndarray:
    """What lies in the windows `which`, as runs to be packed anew; neighbouring pieces of a document become one again."""
    pieces = windows.pieces(which)[:, SHARD:]
    pieces = pieces[np.lexsort((pieces[:, 2], pieces[:, 1], pieces[:, 0]))]
    if not len(pieces):
        return pieces
    joined = (pieces[1:, :2] == pieces[:-1, :2]).all(axis=1) & (pieces[1:, 2] == pieces[:-1, 2] + pieces[:-1, 3])
    begins = np.flatnonzero(np.concatenate(([True], ~joined)))
    runs = pieces[begins]
    runs[:, 3] = np.add.reduceat(pieces[:, 3], begins)
    return runs


def window_index(runs: np.ndarray, length: int, packing: Packing) -> bytes:
    """Pack runs (int64 [n, 4] of shard, document, offset, length) and return the file that `Indexed` reads.

    Little-endian: int64 magic, windows, pieces, tokens; int64 cumulative pieces a window; int32 [pieces, 4] of (shard, document,
    offset, length). Windows are sorted by their tokens, fullest first, which is what the loader's order builds on. Takes some 100 bytes
    of memory a piece while it works.
    """
    lengths = runs[:, 3]
    if packing == "best_fit":
        pieces, owner = best_fit(lengths, length)
    elif packing == "pad":
        pieces, owner = _chop(lengths, length, np.cumsum(-(-lengths // length)) - -(-lengths // length))
    else:
        pieces, owner = _stream(lengths, length)
    windows = int(owner[-1]) + 1 if len(owner) else 0
    counts = np.bincount(owner, minlength=windows)
    fills = np.bincount(owner, weights=pieces[:, 2], minlength=windows)
    rank = np.empty(windows, np.int64)
    order = np.argsort(-fills, kind="stable")
    rank[order] = np.arange(windows)
    pieces = pieces[np.argsort(rank[owner], kind="stable")]
    rows = runs[pieces[:, 0]].copy()
    rows[:, 2] += pieces[:, 1]
    rows[:, 3] = pieces[:, 2]
    assert not len(rows) or rows.max() < 1 << 31, "Megatron's lengths are int32, and so are these"
    header = np.array([_MAGIC, windows, len(rows), int(lengths.sum())])
    return b"".join(array.astype(kind).tobytes() for array, kind in ((header, "<i8"), (np.cumsum(counts[order]), "<i8"), (rows, "<i4")))


def pack_best_fit(lengths: np.ndarray, capacity: int) -> list[list[tuple[int, int, int]]]:
    """Windows as lists of (document, offset, length): `kernels.packing.best_fit` for those who keep their documents in memory."""
    pieces, windows = best_fit(lengths, capacity)
    packed: list[list[tuple[int, int, int]]] = [[] for _ in range(int(windows[-1]) + 1 if len(windows) else 0)]
    for piece, window in zip(pieces.tolist(), windows.tolist(), strict=True):
        packed[window].append(tuple(piece))
    return packed


def _chop(lengths: np.ndarray, length: int, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every run cut every `length` tokens from its own beginning; the windows of run i begin at first[i]."""
    counts = -(-lengths // length)
    owner = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    offsets = number * length
    return np.stack([owner, offsets, np.minimum(length, lengths[owner] - offsets)], axis=1), first[owner] + number


def _stream(lengths: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """All runs one after the other, cut every `length` tokens of the stream."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    edges = np.union1d(starts, np.arange(0, int(ends[-1]) if len(ends) else 0, length))
    edges = edges[edges < (ends[-1] if len(ends) else 0)]
    owner = np.searchsorted(ends, edges, side="right")
    sizes = np.diff(np.append(edges, ends[-1:]))
    return np.stack([owner, edges - starts[owner], sizes], axis=1), edges // length


def _between(first: np.ndarray, last: np.ndarray) -> list[np.ndarray]:
    """Shards that lie wholly inside a window (they are smaller than it)."""
    return [np.arange(a + 1, b) for a, b in zip(first[last > first + 1].tolist(), last[last > first + 1].tolist(), strict=True)]
