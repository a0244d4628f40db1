"""MinHash signatures and LSH band keys of a column of texts.

A signature keeps, for each of k random permutations of the 64-bit n-gram hashes, the smallest image of a document's n-grams;
two documents agree in a position with probability equal to the Jaccard similarity of their n-gram sets (Broder 1997). Bands of
r positions turn that into a candidate test: P(candidate | s) = 1 - (1 - s^r)^b.

Two permutation families, both exact here:
- "mersenne61": a*h + b mod (2^61 - 1), 1 <= a < p, 0 <= b < p (Carter and Wegman 1979): 2-universal, what FineWeb's tool means to compute.
  Its usual numpy form multiplies in 64 bits and wraps before the modulus, so it is no longer that function. Here the 122-bit product
  is kept, as four 32 x 32 products folded by 2^61 = 1 (mod p).
- "affine64": a*mix(h) + b mod 2^64 with odd a, a bijection: datasketch's "affine64" with datasketch's own parameters, bit for bit.

The fast version walks permutations outside and n-grams inside, so that a and b stay in registers and the compiler turns the inner
loop into vector code with a vector minimum; `signature_reference` is the definition, in Python integers.
"""

import functools
from typing import Literal

import numba
import numpy as np
from numba import uint64

from kernels.ngrams import MASK, Normalisation, fold_table, hash_ngrams, hash_words, mix, mix_fast, ngrams_reference, utf8_column

Family = Literal["mersenne61", "affine64"]

MERSENNE = (1 << 61) - 1
EMPTY = MASK  # every position of the signature of a text without words
BAND_SEED = 0xA0761D6478BD642F  # wyhash's first secret: any odd 64-bit constant of no pattern would do


@functools.lru_cache(maxsize=32)
def permutations(count: int, seed: int = 1, family: Family = "mersenne61") -> tuple[np.ndarray, np.ndarray]:
    """(a, b), each uint64 [count]; a stateless function of its arguments."""
    if count < 1:
        raise ValueError(f"a signature needs at least one permutation, got {count}")
    draw = np.random.RandomState(seed)
    if family == "affine64":  # datasketch 2.0's drawing order, so that its sketches and ours can be compared
        a = draw.randint(0, 1 << 63, count, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        b = draw.randint(0, 1 << 64, count, dtype=np.uint64)
    elif family == "mersenne61":
        a = draw.randint(1, MERSENNE, count, dtype=np.uint64)
        b = draw.randint(0, MERSENNE, count, dtype=np.uint64)
    else:
        raise ValueError(f"unknown permutation family {family!r}: mersenne61 or affine64")
    a.flags.writeable = b.flags.writeable = False
    return a, b


# ------------------------------------------------------------------------------------------------------------- reference


def signature_reference(grams: list[int], count: int, seed: int = 1, family: Family = "mersenne61", bits: int = 64) -> list[int]:
    """The signature of a set of 64-bit n-gram hashes, in Python integers. `bits`: how many low bits of an image count."""
    a, b = (values.tolist() for values in permutations(count, seed, family))
    mask = (1 << bits) - 1
    if not grams:
        return [EMPTY] * count
    if family == "affine64":
        return [min((a[k] * mix(gram) + b[k] & MASK) & mask for gram in grams) for k in range(count)]
    return [min((a[k] * gram + b[k]) % MERSENNE & mask for gram in grams) for k in range(count)]


def band_keys_reference(signature: list[int], bands: int, rows: int) -> list[int]:
    keys = []
    for band in range(bands):
        key = mix(BAND_SEED + band & MASK)
        for value in signature[band * rows : (band + 1) * rows]:
            key = mix(key * 3 + value & MASK)
        keys.append(key)
    return keys


# ------------------------------------------------------------------------------------------------------------------ fast


@numba.njit(cache=True, nogil=True)
def _minima_mersenne(grams, count, a, b, mask, signature):
    """min over grams of (a*h + b) mod 2^61-1; `grams` are first reduced in place modulo the prime."""
    p = uint64(MERSENNE)
    low32 = uint64(0xFFFFFFFF)
    low29 = uint64((1 << 29) - 1)
    for i in range(count):
        h = grams[i]
        h = (h & p) + (h >> uint64(61))
        grams[i] = min(h, h - p)  # unsigned: h - p wraps to something huge unless h >= p
    for k in range(a.size):
        a0, a1, bk = a[k] & low32, a[k] >> uint64(32), b[k]
        best = uint64(MASK)
        for i in range(count):
            h0, h1 = grams[i] & low32, grams[i] >> uint64(32)
            low = a0 * h0
            middle = a1 * h0 + a0 * h1  # < 2^62: a1, h1 < 2^29
            total = (
                (a1 * h1 << uint64(3))  # 2^64 = 8 (mod p)
                + (middle >> uint64(29))  # 2^32 * 2^29 = 1
                + ((middle & low29) << uint64(32))
                + (low & p)
                + (low >> uint64(61))
                + bk
            )  # < 2^63.2: no wrap
            total = (total & p) + (total >> uint64(61))
            total = min(total, total - p) & mask
            best = min(best, total)
        signature[k] = best


@numba.njit(cache=True, nogil=True)
def _minima_affine(grams, count, a, b, mask, signature):
    """min over grams of a*mix(h) + b mod 2^64; `grams` are first mixed in place."""
    for i in range(count):
        grams[i] = mix_fast(grams[i])
    for k in range(a.size):
        ak, bk = a[k], b[k]
        best = uint64(MASK)
        for i in range(count):
            best = min(best, (ak * grams[i] + bk) & mask)
        signature[k] = best


@numba.njit(cache=True, nogil=True)
def _signatures(data, offsets, table, n, a, b, affine, mask, signatures, counts):
    longest = 1
    for d in range(offsets.size - 1):
        longest = max(longest, offsets[d + 1] - offsets[d])
    words = np.empty(longest, np.uint64)
    grams = np.empty(longest, np.uint64)
    nowhere = np.empty(0, np.int64)
    for d in range(offsets.size - 1):
        found = hash_words(data, offsets[d], offsets[d + 1], table, words, nowhere, nowhere)
        counts[d] = hash_ngrams(words, found, n, grams)
        if counts[d] == 0:
            signatures[d, :] = uint64(MASK)
        elif affine:
            _minima_affine(grams, counts[d], a, b, mask, signatures[d])
        else:
            _minima_mersenne(grams, counts[d], a, b, mask, signatures[d])


@numba.njit(cache=True, nogil=True)
def _band_keys(signatures, bands, rows, keys):
    for d in range(signatures.shape[0]):
        for band in range(bands):
            key = mix_fast(uint64(BAND_SEED) + uint64(band))
            for row in range(rows):
                key = mix_fast(key * uint64(3) + signatures[d, band * rows + row])
            keys[d, band] = key


def signatures(
    texts, *, n: int = 5, count: int = 112, seed: int = 1, family: Family = "mersenne61", bits: int = 64, rules: Normalisation = Normalisation()
) -> tuple[np.ndarray, np.ndarray]:
    """MinHash signatures of a column.

    texts: an Arrow string array (null counts as empty); n: units a shingle; count: permutations; bits: 32 or 64, low bits of an image kept.
    Returns signatures uint64 [D, count] and the number of shingles (repeats included) int64 [D]; 0 shingles means no words: such
    a document has no signature worth comparing (every position is EMPTY).
    """
    if n < 1:
        raise ValueError(f"shingles need n >= 1, got {n}")
    if bits not in (32, 64):
        raise ValueError(f"hash bits are 32 or 64, got {bits}")
    a, b = permutations(count, seed, family)
    data, offsets = utf8_column(texts)
    documents = offsets.size - 1
    images = np.empty((documents, count), np.uint64)
    shingles = np.zeros(documents, np.int64)
    mask = np.uint64((1 << bits) - 1)
    _signatures(data, offsets, fold_table(rules), n, a, b, family == "affine64", mask, images, shingles)
    return images, shingles


def signatures_reference(texts: list[str], *, n=5, count=112, seed=1, family: Family = "mersenne61", bits=64, rules=Normalisation()):
    """`signatures` by its definition."""
    grams = [ngrams_reference(text, n, rules) for text in texts]
    images = [signature_reference(one, count, seed, family, bits) for one in grams]
    return np.array(images, np.uint64).reshape(len(texts), count), np.array([len(one) for one in grams], np.int64)


def band_keys(images: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """64-bit keys uint64 [D, bands] of the bands of signatures [D, >= bands*rows]; the band's index is mixed into its key.

    False meetings of two 64-bit keys: about (N * bands)^2 / 2^65 pairs in a corpus of N documents, 5 at N = 10^9 with 14 bands.
    """
    if bands * rows > images.shape[1]:
        raise ValueError(f"{bands} bands of {rows} rows need {bands * rows} permutations, the signature has {images.shape[1]}")
    keys = np.empty((images.shape[0], bands), np.uint64)
    _band_keys(np.ascontiguousarray(images), bands, rows, keys)
    return keys


def match_probability(similarity: float | np.ndarray, bands: int, rows: int) -> float | np.ndarray:
    """P(at least one band agrees | Jaccard similarity): 1 - (1 - s^r)^b."""
    return 1 - (1 - similarity**rows) ** bands
