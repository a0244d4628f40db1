"""Exact Jaccard similarity of texts: their n-grams as sorted sets of 64-bit hashes, and what two sets share.

|A & B| / |A | B|, counting each n-gram once. Two different n-grams with one hash would make it wrong: of two sets of 10^4 that happens once in
about 10^11 comparisons.
"""

import numba
import numpy as np

from kernels.ngrams import Normalisation, fold_table, hash_ngrams, hash_words, ngrams_reference, utf8_column


@numba.njit(cache=True, nogil=True)
def _sets(data, offsets, table, n, values, bounds):
    """Distinct n-gram hashes of each text, sorted, one after another in `values`; bounds[d]:bounds[d + 1] are those of text d."""
    longest = 1
    for d in range(offsets.size - 1):
        longest = max(longest, offsets[d + 1] - offsets[d])
    words = np.empty(longest, np.uint64)
    grams = np.empty(longest, np.uint64)
    nowhere = np.empty(0, np.int64)
    end = 0
    for d in range(offsets.size - 1):
        bounds[d] = end
        found = hash_words(data, offsets[d], offsets[d + 1], table, words, nowhere, nowhere)
        count = hash_ngrams(words, found, n, grams)
        ordered = np.sort(grams[:count])
        for i in range(count):
            if i == 0 or ordered[i] != ordered[i - 1]:
                values[end] = ordered[i]
                end += 1
    bounds[offsets.size - 1] = end


def ngram_sets(texts, n: int, rules: Normalisation = Normalisation()) -> tuple[np.ndarray, np.ndarray]:
    """(values uint64 [S], bounds int64 [D + 1]) of a column of D texts: values[bounds[d]:bounds[d + 1]] is the sorted set of text d."""
    data, offsets = utf8_column(texts)
    values, bounds = np.empty(max(int(offsets[-1] - offsets[0]), 1), np.uint64), np.zeros(offsets.size, np.int64)
    _sets(data, offsets, fold_table(rules), n, values, bounds)
    return values[: bounds[-1]].copy(), bounds


@numba.njit(cache=True, nogil=True)
def jaccards(left_values, left_bounds, left, right_values, right_bounds, right, similarities):
    """Similarity float64 [P] of set left[p] of one family with set right[p] of another; of two empty sets 1."""
    for p in range(left.size):
        i, i_end = left_bounds[left[p]], left_bounds[left[p] + 1]
        j, j_end = right_bounds[right[p]], right_bounds[right[p] + 1]
        total = i_end - i + j_end - j
        shared = 0
        while i < i_end and j < j_end:
            a, b = left_values[i], right_values[j]
            shared += a == b
            i += a <= b
            j += b <= a
        similarities[p] = shared / (total - shared) if total else 1.0


def jaccard_reference(left: str, right: str, n: int, rules: Normalisation = Normalisation()) -> float:
    """The definition, of two texts."""
    a, b = (set(ngrams_reference(text, n, rules)) for text in (left, right))
    return len(a & b) / len(a | b) if a | b else 1.0
