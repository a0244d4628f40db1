"""Every stretch of exactly k symbols of a text, by hash; and the few of them that can stand twice, found without hashing them all.

A suffix array of a corpus finds all substrings of k or more symbols that occur twice, but it is one global object: 8 bytes and more a
symbol, sorted as a whole. The same spans are the union of the k-windows that occur twice, and windows can be hashed anywhere and met bucket
by bucket. To keep them few, each window is first named by its minimizer (Schleimer et al. 2003, "Winnowing"; Roberts et al. 2004): of the
k - w + 1 shorter stretches of w symbols in it, the one of smallest hash, the rightmost if equal. That choice depends on the window's symbols
alone, so equal windows have equal minimizers: a window whose minimizer stands only once in the corpus stands only once itself.
Neighbouring windows mostly share their minimizer, about 2 / (k - w + 2) of the positions are one, and only those travel.

A symbol is a 64-bit number (`byte_symbols`; token ids through `number_symbols`); stretches are hashed by `kernels.ngrams.hash_ngrams`.
Equal hashes are taken for equal text: among m windows that travel, m^2 / 2^65 pairs are expected to be so by chance (0.004 at 400 million).
"""

import functools

import numba
import numpy as np

from kernels.ngrams import hash_ngrams, mix


@functools.lru_cache(maxsize=1)
def _byte_codes() -> np.ndarray:
    return np.array([mix(byte + 1) for byte in range(256)], np.uint64)


def byte_symbols(data: np.ndarray) -> np.ndarray:
    """Bytes uint8 [B] -> symbols uint64 [B], spread over all bits so that the rolling hash is."""
    return _byte_codes()[data]


def number_symbols(ids: np.ndarray) -> np.ndarray:
    """Token ids [T] -> symbols uint64 [T] (MurmurHash3's finaliser, as `kernels.ngrams.mix`)."""
    values = ids.astype(np.uint64) + np.uint64(1)
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values ^= values >> np.uint64(33)
        values *= np.uint64(multiplier)
    return values ^ (values >> np.uint64(33))


def window_hashes(symbols: np.ndarray, k: int) -> np.ndarray:
    """Hashes uint64 [N - k + 1] of the windows of k symbols; none if there are fewer than k."""
    if symbols.size < k:
        return np.empty(0, np.uint64)
    hashes = np.empty(symbols.size - k + 1, np.uint64)
    hash_ngrams(symbols, symbols.size, k, hashes)
    return hashes


def seed_length(k: int) -> int:
    """w for windows of k symbols: half of them. Shorter seeds are fewer, but repeat by chance."""
    return max(1, k // 2)


def minimizers(symbols: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Runs of windows that share their minimizer: (its hash uint64 [R], the run's first window int64 [R + 1], closed by the number of windows)."""
    w = seed_length(k)
    if symbols.size < k:
        return np.empty(0, np.uint64), np.zeros(1, np.int64)
    seeds = window_hashes(symbols, w)
    span = k - w + 1
    hashes, firsts = np.empty(seeds.size - span + 1, np.uint64), np.empty(seeds.size - span + 2, np.int64)
    runs = _minimizers(seeds, span, hashes, firsts)
    return hashes[:runs], firsts[: runs + 1]


@numba.njit(cache=True, nogil=True)
def _minimizers(seeds, span, hashes, firsts):
    runs = 0
    best = -1
    for window in range(seeds.size - span + 1):
        last = window + span - 1
        before = best
        if best < window:  # the minimum left (or there was none yet): look at all that are here
            best = window
            for i in range(window + 1, last + 1):
                if seeds[i] <= seeds[best]:
                    best = i
        elif seeds[last] <= seeds[best]:
            best = last
        if best != before:
            hashes[runs] = seeds[best]
            firsts[runs] = window
            runs += 1
    firsts[runs] = seeds.size - span + 1
    return runs
