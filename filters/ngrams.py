"""Repetition among n-grams of word ids, in numba: the two counts Gopher's rules need.

Both follow the published filter's definitions exactly; only the n-grams are 64-bit hashes instead of strings. With at
most 10^5 n-grams a document the chance of one collision is below 10^-9.
"""

import numba
import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment (Steele et al. 2014)


@numba.njit(cache=True)
def _mix(x: np.uint64) -> np.uint64:
    """splitmix64's finalizer: a bijection on 64 bits with full avalanche."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True)
def _hash(ids: np.ndarray, start: int, n: int) -> np.uint64:
    h = np.uint64(n)
    for k in range(start, start + n):
        h = _mix(h + _GOLDEN + np.uint64(ids[k]))
    return h if h != np.uint64(0) else _GOLDEN  # 0 marks an empty slot


@numba.njit(cache=True)
def _table_size(count: int) -> int:
    size = 16
    while size < 2 * count:
        size *= 2
    return size


@numba.njit(cache=True)
def top_ngram_characters(ids: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters (words joined by one space) covered by the most frequent n-gram: its length times its count.

    Among equally frequent n-grams the one seen first counts, as with Python's `Counter.most_common`.
    """
    grams = len(ids) - n + 1
    if grams < 1:
        return 0
    size = _table_size(grams)
    keys, counts, firsts = np.zeros(size, np.uint64), np.zeros(size, np.int64), np.zeros(size, np.int64)
    mask = np.uint64(size - 1)
    best_count, best_first = 0, 0
    for i in range(grams):
        h = _hash(ids, i, n)
        slot = h & mask
        while keys[slot] != h and keys[slot] != np.uint64(0):
            slot = (slot + np.uint64(1)) & mask
        if keys[slot] == np.uint64(0):
            keys[slot], firsts[slot] = h, i
        counts[slot] += 1
    for slot in range(size):
        if counts[slot] > best_count or (counts[slot] == best_count and firsts[slot] < best_first):
            best_count, best_first = counts[slot], firsts[slot]
    return (lengths[best_first : best_first + n].sum() + n - 1) * best_count


@numba.njit(cache=True)
def duplicate_ngram_characters(ids: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters (words joined without spaces) in repeated n-grams; a repeated n-gram is stepped over as a whole."""
    grams = len(ids) - n + 1
    if grams < 1:
        return 0
    size = _table_size(grams)
    keys = np.zeros(size, np.uint64)
    mask = np.uint64(size - 1)
    characters, i = 0, 0
    while i < grams:
        h = _hash(ids, i, n)
        slot = h & mask
        while keys[slot] != h and keys[slot] != np.uint64(0):
            slot = (slot + np.uint64(1)) & mask
        if keys[slot] == h:
            characters += lengths[i : i + n].sum()
            i += n
        else:
            keys[slot] = h
            i += 1
    return characters
