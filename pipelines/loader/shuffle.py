"""The order of one pass over a source's windows: a shuffle that keeps every short stretch like the whole."""

import hashlib
import math

import numpy as np

from kernels.feistel import Permutation

STRATA = 64  # at most; of n windows at most sqrt(n), so that a stratum is worth shuffling. A power of two
_STEP, _TURN = 7, 23  # round r visits strata in the order of (2 * 7r + 1) * place + 23r: odd factors are invertible


class Shuffle:
    """The order of one pass over n windows, and its inverse, a point at a time. Draws come in rounds; a round takes one window of every
    stratum, in an order of its own.

    Strata are consecutive windows. In a window index these are windows of like fill, so a source's tokens a step hardly vary, and its
    share is met after packing in every stretch of training and not only on average. Within a stratum the order is a Feistel
    permutation, turned by an offset of its own. Windows that do not fill a round are taken evenly from everywhere and come last.
    """

    def __init__(self, n: int, *key: int | str):
        self.n, self.strata = n, min(STRATA, 1 << max(math.isqrt(n), 1).bit_length() - 1)
        self.rounds, left = divmod(n, self.strata)
        self.whole = n - left
        self._inside, self._last = Permutation(self.rounds, *key, "strata"), Permutation(left, *key, "left over")
        self._order = Permutation(self.strata, *key, "order").take(np.arange(self.strata))
        self._place = np.argsort(self._order)
        seeds = np.frombuffer(hashlib.shake_256(repr(key).encode()).digest(8 * self.strata), "<u8")
        self._offsets = (seeds % np.uint64(max(self.rounds, 1))).astype(np.int64)
        self._left = (2 * np.arange(left) + 1) * n // (2 * max(left, 1))
        self._skips = self._left - np.arange(left)  # how many of the others lie before each

    def take(self, draws: np.ndarray) -> np.ndarray:
        """The windows that come at `draws`: int64 [m] in [0, n) -> int64 [m]."""
        windows = np.empty_like(draws)
        early = draws < self.whole
        turn, place = np.divmod(draws[early], self.strata)
        stratum = self._order[(place * (2 * _STEP * turn + 1) + turn * _TURN) % self.strata]
        others = stratum * self.rounds + (self._inside.take(turn) + self._offsets[stratum]) % max(self.rounds, 1)
        windows[early] = others + np.searchsorted(self._skips, others, side="right")
        if not early.all():
            windows[~early] = self._left[self._last.take(draws[~early] - self.whole)]
        return windows

    def inverse(self, window: int) -> int:
        """When a window comes: `s.inverse(s.take([i])[0]) == i`."""
        before = int(np.searchsorted(self._left, window))
        if before < len(self._left) and self._left[before] == window:
            return self.whole + self._last.inverse(before)
        stratum, element = divmod(window - before, self.rounds)
        turn = self._inside.inverse((element - int(self._offsets[stratum])) % self.rounds)
        place = (int(self._place[stratum]) - turn * _TURN) * pow(2 * _STEP * turn + 1, -1, self.strata) % self.strata
        return turn * self.strata + place
