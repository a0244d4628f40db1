"""A shuffle without memory: a keyed permutation of [0, n) computed a point at a time.

A loader that shuffles with an array needs O(n) memory and O(n) time at every restart. A Feistel network is a bijection
whatever its round function, so the i-th element of a shuffled order is a few multiplications away, and its inverse says
just as cheaply where an element went.

The domain is a grid of a x a cells with a = ceil(sqrt(n)) (the generalised Feistel cipher of Black and Rogaway, "Ciphers
with Arbitrary Finite Domains", CT-RSA 2002): half-rounds add a hash of one coordinate to the other, modulo a. The grid
has at most 2*sqrt(n) + 1 cells too many; a point that lands on one is sent through again until it falls inside
(cycle walking), on average hardly more than once.

The round function is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014; constants of Stafford's Mix13).
"""

import hashlib
import math

import numpy as np
from numba import njit

ROUNDS = 6  # half-rounds; 4 are provably pseudorandom for ideal round functions (Luby and Rackoff 1988), 2 more for small n
LIMIT = 1 << 62  # a*a must fit into uint64 with room to spare

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


class Permutation:
    """The permutation of [0, n) named by `key`: any tuple of integers and strings, such as (seed, source, epoch).

    Raises:
        ValueError: n is negative or above 2**62.
    """

    def __init__(self, n: int, *key: int | str):
        if not 0 <= n <= LIMIT:
            raise ValueError(f"a permutation of {n} elements: n must lie between 0 and 2**62")
        self.n = n
        self.side = math.isqrt(max(n - 1, 0)) + 1  # ceil(sqrt(n)) for n >= 1
        digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * ROUNDS).digest()
        self.keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS)]
        self._keys = np.array(self.keys, np.uint64)

    def __getitem__(self, index: int) -> int:
        """Where `index` goes: the readable reference."""
        self._check(index)
        while True:
            left, right = divmod(index, self.side)
            for turn, key in enumerate(self.keys):
                if turn % 2 == 0:
                    left = (left + _mix(right ^ key)) % self.side
                else:
                    right = (right + _mix(left ^ key)) % self.side
            index = left * self.side + right
            if index < self.n:
                return index

    def inverse(self, index: int) -> int:
        """Where `index` came from: `p.inverse(p[i]) == i`."""
        self._check(index)
        while True:
            left, right = divmod(index, self.side)
            for turn, key in reversed(list(enumerate(self.keys))):
                if turn % 2 == 0:
                    left = (left - _mix(right ^ key)) % self.side
                else:
                    right = (right - _mix(left ^ key)) % self.side
            index = left * self.side + right
            if index < self.n:
                return index

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Many points at once: int64 [...] -> int64 [...], equal to `[p[i] for i in indices]`, compiled.

        A batch asks for a few hundred points; with numpy's array operations their fixed costs were most of the time.
        """
        points = np.array(indices, dtype=np.int64)
        if points.size and (points.min() < 0 or points.max() >= self.n):
            raise ValueError(f"indices must lie in [0, {self.n})")
        _walk(points.reshape(-1).view(np.uint64), np.uint64(self.n), np.uint64(self.side), self._keys)
        return points

    def _check(self, index: int) -> None:
        if not 0 <= index < self.n:
            raise ValueError(f"index {index} is outside [0, {self.n})")


def _mix(value: int) -> int:
    value = (value + _GAMMA) & _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


@njit(cache=True, nogil=True)
def _walk(points, n, side, keys):
    """`Permutation.__getitem__` over an array, in place. All arithmetic is in uint64, whose wrapping is the modulus wanted."""
    for place in range(points.size):
        index = points[place]
        while True:
            left, right = index // side, index % side
            for turn in range(keys.size):
                # The hash is reduced before it is added: Python's integers do not wrap, uint64 would.
                if turn % 2 == 0:
                    left = (left + _mix_word(right ^ keys[turn]) % side) % side
                else:
                    right = (right + _mix_word(left ^ keys[turn]) % side) % side
            index = left * side + right
            if index < n:
                break
        points[place] = index


@njit(inline="always")
def _mix_word(value):
    value = value + np.uint64(_GAMMA)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_MIX_1)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_MIX_2)
    return value ^ (value >> np.uint64(31))
