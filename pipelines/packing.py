"""Packing: how documents become windows of a fixed length, without losing or repeating a token.

`concat` cuts the stream of documents every T tokens; only the last window of a source is not full. `best_fit` never cuts a
document that fits into a window: longer ones give up whole windows, remainders and short ones go where they fit best
(best-fit decreasing, Ding et al. 2024, "Fewer Truncations Improve Language Modeling"), and windows end in padding.

A window is a list of pieces, each a part of one document. Pieces are rows of an int64 array [pieces, 5] with the columns
WINDOW, SHARD, DOCUMENT, OFFSET (in the document) and LENGTH, in reading order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

WINDOW, SHARD, DOCUMENT, OFFSET, LENGTH = range(5)


class Concat:
    """Concatenate-and-chunk over the shards of a source.

    Args:
        ends: per shard, the cumulative ends of its documents in tokens (any array with a buffer: memory maps stay on disk).
        length: tokens a window.
    """

    def __init__(self, ends: Sequence[np.ndarray], length: int):
        self.ends, self.length = ends, length
        self.shard_ends = np.cumsum([int(shard[-1]) if len(shard) else 0 for shard in ends], dtype=np.int64)
        self.tokens = int(self.shard_ends[-1]) if len(ends) else 0
        self.windows = -(-self.tokens // length)

    def pieces(self, windows: np.ndarray) -> np.ndarray:
        """The pieces of windows: int64 [n] -> int64 [pieces, 5]; WINDOW counts 0..n-1, the place in `windows`."""
        rows: list[np.ndarray] = []
        for place, window in enumerate(windows.tolist()):
            start, stop = window * self.length, min((window + 1) * self.length, self.tokens)
            shard = int(np.searchsorted(self.shard_ends, start, side="right"))
            while start < stop:
                base = int(self.shard_ends[shard - 1]) if shard else 0
                until = min(stop, int(self.shard_ends[shard]))
                if until > start:
                    rows.append(self._run(place, shard, start - base, until - base))
                start, shard = until, shard + 1
        return np.concatenate(rows) if rows else np.zeros((0, 5), np.int64)

    def filled(self, windows: np.ndarray) -> np.ndarray:
        """Tokens in each window: int64 [n] -> int64 [n]."""
        return np.minimum(self.length, self.tokens - windows * self.length)

    def windows_of(self, shard: int, document: int) -> list[int]:
        """The windows that hold a part of a document."""
        base = int(self.shard_ends[shard - 1]) if shard else 0
        start = base + (int(self.ends[shard][document - 1]) if document else 0)
        stop = base + int(self.ends[shard][document])
        return list(range(start // self.length, -(-stop // self.length)))

    def _run(self, place: int, shard: int, start: int, stop: int) -> np.ndarray:
        """The documents under tokens [start, stop) of a shard."""
        ends = self.ends[shard]
        # u64 needles: numpy would otherwise convert the whole memory map to a common type first.
        first, last = np.searchsorted(ends, np.array([start, stop - 1], ends.dtype), side="right")
        edges = np.empty(last - first + 2, np.int64)
        edges[0], edges[-1] = start, stop
        edges[1:-1] = ends[first:last]
        piece = np.empty((len(edges) - 1, 5), np.int64)
        piece[:, WINDOW], piece[:, SHARD] = place, shard
        piece[:, DOCUMENT] = np.arange(first, last + 1)
        piece[:, OFFSET] = 0
        piece[0, OFFSET] = start - (int(ends[first - 1]) if first else 0)
        piece[:, LENGTH] = np.diff(edges)
        return piece


class BestFit:
    """Best-fit windows as planned by `pack_best_fit` and stored a shard; opening costs nothing but the header.

    Args:
        packs: per shard, the int64 array that `write_pack` wrote.
    """

    def __init__(self, packs: Sequence[np.ndarray], length: int):
        self.length = length
        self.shards = [_open_pack(pack) for pack in packs]
        self.shard_ends = np.cumsum([len(shard.window_ends) for shard in self.shards], dtype=np.int64)
        self.windows = int(self.shard_ends[-1]) if self.shards else 0
        self.tokens = sum(int(shard.token_ends[-1]) if len(shard.token_ends) else 0 for shard in self.shards)

    def pieces(self, windows: np.ndarray) -> np.ndarray:
        """As `Concat.pieces`."""
        rows = []
        for place, (shard, window) in enumerate(zip(*self._locate(windows), strict=True)):
            pack = self.shards[shard]
            first, last = int(pack.window_ends[window - 1]) if window else 0, int(pack.window_ends[window])
            piece = np.empty((last - first, 5), np.int64)
            piece[:, WINDOW], piece[:, SHARD] = place, shard
            piece[:, DOCUMENT:] = pack.pieces[first:last]
            rows.append(piece)
        return np.concatenate(rows) if rows else np.zeros((0, 5), np.int64)

    def filled(self, windows: np.ndarray) -> np.ndarray:
        """Tokens in each window: int64 [n] -> int64 [n]."""
        shards, locals_ = self._locate(windows)
        filled = np.empty(len(windows), np.int64)
        for shard in np.unique(shards):
            here = shards == shard
            ends, places = self.shards[shard].token_ends, locals_[here]
            filled[here] = ends[places] - np.where(places > 0, ends[places - 1], 0)
        return filled

    def windows_of(self, shard: int, document: int) -> list[int]:
        """The windows that hold a part of a document."""
        base = int(self.shard_ends[shard - 1]) if shard else 0
        pieces = np.flatnonzero(self.shards[shard].pieces[:, 0] == document)
        windows = np.searchsorted(self.shards[shard].window_ends, pieces, side="right")
        return sorted({base + int(window) for window in windows})

    def _locate(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shards = np.searchsorted(self.shard_ends, windows, side="right")
        starts = np.concatenate(([0], self.shard_ends[:-1]))
        return shards, windows - starts[shards]


def pack_best_fit(lengths: np.ndarray, capacity: int) -> list[list[tuple[int, int, int]]]:
    """Windows of pieces (document, offset, length) for documents of `lengths` tokens.

    Documents of at most `capacity` tokens stay whole. Time O(n log n), memory O(n); ties go to the earlier document and the
    youngest window, so equal lengths give equal windows.
    """
    windows: list[list[tuple[int, int, int]]] = []
    remainders: list[tuple[int, int, int]] = []
    for document, length in enumerate(np.asarray(lengths).tolist()):
        offset = 0
        while length - offset >= capacity:
            windows.append([(document, offset, capacity)])
            offset += capacity
        if offset < length:
            remainders.append((document, offset, length - offset))
    remainders.sort(key=lambda piece: -piece[2])  # stable
    room: list[list[int]] = [[] for _ in range(capacity + 1)]  # windows by the tokens they have room for
    open_rooms = 0  # bit r is set while some window has room for r tokens
    for piece in remainders:
        fits = open_rooms >> piece[2]
        if fits:
            space = piece[2] + (fits & -fits).bit_length() - 1
            window = room[space].pop()
            if not room[space]:
                open_rooms &= ~(1 << space)
            windows[window].append(piece)
        else:
            space, window = capacity, len(windows)
            windows.append([piece])
        left = space - piece[2]
        room[left].append(window)
        open_rooms |= 1 << left if left else 0
    return windows


def write_pack(file: BinaryIO, windows: Sequence[Sequence[tuple[int, int, int]]]) -> None:
    """Write windows as little-endian int64: windows, pieces, then cumulative pieces and tokens a window, then the pieces."""
    pieces = np.array([piece for window in windows for piece in window], np.int64).reshape(-1, 3)
    counts = np.array([len(window) for window in windows], np.int64)
    tokens = np.array([sum(piece[2] for piece in window) for window in windows], np.int64)
    for array in (np.array([len(windows), len(pieces)]), np.cumsum(counts), np.cumsum(tokens), pieces):
        file.write(np.ascontiguousarray(array).astype("<i8").tobytes())


@dataclass(frozen=True)
class _Pack:
    window_ends: np.ndarray
    token_ends: np.ndarray
    pieces: np.ndarray


def _open_pack(data: np.ndarray) -> _Pack:
    windows, pieces = int(data[0]), int(data[1])
    assert len(data) == 2 + 2 * windows + 3 * pieces, "the pack is cut short"
    body = data[2:]
    return _Pack(body[:windows], body[windows : 2 * windows], body[2 * windows :].reshape(pieces, 3))
