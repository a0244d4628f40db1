"""Repetition among n-grams of words over a whole batch: the two counts that Gopher's rules need.

Both follow the published filter's definitions exactly; only, n-grams are the same if their 64-bit hashes are. With 10^5 n-grams a document, one in
10^9 documents would be misjudged. The hash of a run of words is a difference of prefix polynomials, so it costs the same for every n.
"""

import numba
import numpy as np
from numba import uint64

from kernels.words import Words

TOP, DUPLICATE = (2, 3, 4), (5, 6, 7, 8, 9, 10)  # Rae et al. 2021, table A1
LONGEST = 1 << 21  # words of a text that are looked at, so that memory is bounded: twenty times what Gopher's rules let pass
_MULTIPLIER = 0xD1342543DE82EF95  # a full-period LCG multiplier modulo 2^64 (Steele and Vigna 2021, table 7)


def count_ngrams(words: Words) -> dict[str, np.ndarray]:
    """int64 [R] per name, in characters: "top_2gram"... (words joined by one space) and "duplicate_5grams"... (joined by none)."""
    counts = np.zeros((len(words.rows) - 1, len(TOP) + len(DUPLICATE)), np.int64)
    _count(words.rows, words.hashes, words.ends - words.starts, counts)
    names = [f"top_{n}gram" for n in TOP] + [f"duplicate_{n}grams" for n in DUPLICATE]
    return dict(zip(names, counts.T, strict=True))


@numba.njit(cache=True, nogil=True)
def _count(rows, hashes, lengths, counts):
    longest = 0
    for r in range(len(rows) - 1):
        longest = max(longest, rows[r + 1] - rows[r])
    size = 16
    while size < 2 * min(longest, LONGEST):
        size *= 2
    prefixes, grams = np.zeros(min(longest, LONGEST) + 1, np.uint64), np.empty(min(longest, LONGEST), np.uint64)
    keys, tallies, firsts = np.empty(size, np.uint64), np.empty(size, np.int32), np.empty(size, np.int32)
    for r in range(len(rows) - 1):
        start, count = rows[r], min(rows[r + 1] - rows[r], LONGEST)
        used = 16
        while used < 2 * count:
            used *= 2
        spans = lengths[start : start + count]
        for i in range(count):
            prefixes[i + 1] = prefixes[i] * uint64(_MULTIPLIER) + hashes[start + i]
        for k, n in enumerate(TOP):
            if count >= n:
                _hash_ngrams(prefixes, count, n, grams)
                counts[r, k] = _top(grams[: count - n + 1], spans, n, keys[:used], tallies, firsts)
        for k, n in enumerate(DUPLICATE):
            if count >= n:
                _hash_ngrams(prefixes, count, n, grams)
                counts[r, len(TOP) + k] = _duplicate(grams[: count - n + 1], spans, n, keys[:used])
                if counts[r, len(TOP) + k] == 0:  # no run of n words occurs twice, so no longer one does
                    break


@numba.njit(cache=True, nogil=True)
def _hash_ngrams(prefixes, count, n, grams):
    leaving = uint64(1)
    for _ in range(n):
        leaving *= uint64(_MULTIPLIER)
    for i in range(count - n + 1):
        h = prefixes[i + n] - prefixes[i] * leaving
        h = (h ^ (h >> uint64(32))) * uint64(0xD6E8FEB86659FD93)
        grams[i] = (h ^ (h >> uint64(32))) | uint64(1)  # 0 marks a free slot


@numba.njit(cache=True, nogil=True)
def _top(grams, lengths, n, keys, tallies, firsts):
    """Characters of the most frequent n-gram times its count; among equally frequent ones the first counts, as with `Counter.most_common`."""
    keys[:] = 0
    mask = uint64(len(keys) - 1)
    most, best = 0, 0
    for i in range(len(grams)):
        slot = (grams[i] >> uint64(8)) & mask
        while keys[slot] != grams[i] and keys[slot] != 0:
            slot = (slot + uint64(1)) & mask
        if keys[slot] == 0:
            keys[slot], tallies[slot], firsts[slot] = grams[i], 0, i
        tallies[slot] += 1
        if tallies[slot] > most or (tallies[slot] == most and firsts[slot] < best):
            most, best = tallies[slot], firsts[slot]
    return (lengths[best : best + n].sum() + n - 1) * most


@numba.njit(cache=True, nogil=True)
def _duplicate(grams, lengths, n, keys):
    """Characters of n-grams that occurred before; a repeated n-gram is stepped over as a whole."""
    keys[:] = 0
    mask = uint64(len(keys) - 1)
    characters = i = 0
    while i < len(grams):
        slot = (grams[i] >> uint64(8)) & mask
        while keys[slot] != grams[i] and keys[slot] != 0:
            slot = (slot + uint64(1)) & mask
        if keys[slot] == grams[i]:
            characters += lengths[i : i + n].sum()
            i += n
        else:
            keys[slot] = grams[i]
            i += 1
    return characters
