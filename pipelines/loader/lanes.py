"""Reading a lane: sequence numbers become windows, pass after pass, each pass in an order of its own."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from pipelines.loader.shuffle import Shuffle
from pipelines.mixture.plan import Lane
from pipelines.packing import WINDOW, Concat, Windows

_OPEN_SHUFFLES = 4  # passes whose shuffle is kept: a batch touches one or two


class LaneReader:
    """The sequences of a lane. Arrays of sequence numbers are int64 [n].

    Args:
        passes: the windows of what was left unread, if any, and of everything, as `Lane.passes` has them.
    """

    def __init__(self, lane: Lane, passes: list[Windows]):
        self.lane, self.passes = lane, passes
        self.firsts = np.cumsum([0, *(windows.windows for windows in passes)]).tolist()
        self._shuffle = lru_cache(maxsize=_OPEN_SHUFFLES)(self._make_shuffle)

    def pieces(self, sequences: np.ndarray) -> np.ndarray:
        """As `Windows.pieces`, WINDOW being the place in `sequences`."""
        found = []
        for places, number, windows in self._located(sequences):
            pieces = self._pass(number).pieces(windows)
            pieces[:, WINDOW] = places[pieces[:, WINDOW]]
            found.append(pieces)
        return found[0] if len(found) == 1 else _in_order(np.concatenate(found))

    def tokens(self, first: int, last: int) -> int:
        """Tokens in sequences [first, last). Whole passes and concatenated windows cost nothing; others are looked up."""
        total = 0
        while first < last:
            number, start, windows = self._pass_at(first)
            upto = min(last, start + windows.windows)
            if upto - first == windows.windows:
                total += windows.tokens
            elif isinstance(windows, Concat):  # only the last window may not be full
                end = windows.windows - 1
                total += (upto - first) * windows.length
                if first <= start + self._shuffle(number).inverse(end) < upto:
                    total -= windows.length - int(windows.filled(np.array([end]))[0])
            else:
                total += int(windows.filled(self._shuffle(number).take(np.arange(first - start, upto - start))).sum())
            first = upto
        return total

    def remaining(self, read: int) -> tuple[Windows, np.ndarray] | None:
        """The windows that the pass after `read` sequences has left; None if it has just begun or is over."""
        number, start, windows = self._pass_at(read)
        if read == start and number >= len(self.passes) - 1:
            return None
        return windows, self._shuffle(number).take(np.arange(read - start, windows.windows))

    def sequences_of(self, shard: int, document: int, first: int, last: int) -> Iterator[tuple[int, int]]:
        """(pass, sequence) of every sequence in [first, last) that holds a part of a document."""
        while first < last:
            number, start, windows = self._pass_at(first)
            upto = min(last, start + windows.windows)
            for window in windows.windows_of(shard, document):
                sequence = start + self._shuffle(number).inverse(window)
                if first <= sequence < upto:
                    yield number, sequence
            first = upto

    def _located(self, sequences: np.ndarray) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """(places in `sequences`, pass, windows), a pass at a time."""
        whole = self.passes[-1].windows
        numbers = len(self.passes) - 1 + (sequences - self.firsts[-2]) // whole
        if len(self.passes) > 1:
            numbers = np.where(sequences < self.firsts[-2], 0, numbers)
        low, high = int(numbers.min()), int(numbers.max())
        for number in range(low, high + 1):
            places = np.flatnonzero(numbers == number)
            yield places, number, self._shuffle(number).take(sequences[places] - self._start(number))

    def _pass_at(self, sequence: int) -> tuple[int, int, Windows]:
        number = 0
        if sequence >= self.firsts[-2]:
            number = len(self.passes) - 1 + (sequence - self.firsts[-2]) // self.passes[-1].windows
        return number, self._start(number), self._pass(number)

    def _start(self, number: int) -> int:
        over = number - (len(self.passes) - 1)
        return self.firsts[number] if over <= 0 else self.firsts[-2] + over * self.passes[-1].windows

    def _pass(self, number: int) -> Windows:
        return self.passes[min(number, len(self.passes) - 1)]

    def _make_shuffle(self, number: int) -> Shuffle:
        return Shuffle(self._pass(number).windows, self.lane.seed, "source", self.lane.source, self.lane.key, number)


def _in_order(pieces: np.ndarray) -> np.ndarray:
    return pieces[np.argsort(pieces[:, WINDOW], kind="stable")]
