"""Which rows of a fastText model a text adds up: its words and the n-grams of their letters (Bojanowski et al. 2017), for a batch of texts at once.

fastText's own reader makes a string of every n-gram and looks it up in a map of buckets. Here the bytes of a word are written once, hashes roll over them,
and a bitmap of the buckets that the compressed model kept refutes nine of ten n-grams by one load; how many bits are set before one is its row.
Rows are added in fastText's order, so sums are the same to the last bit. Legend: R texts, C code points, D = 16 dimensions.
"""

from typing import NamedTuple

import numba
import numpy as np
from numba import int8, int64, uint8, uint32, uint64

from kernels.characters import ALPHABETIC, SPACE

DIMENSIONS = 16
SHORTEST, LONGEST = 2, 4  # characters of an n-gram, word boundaries included
_BASIS_32, _PRIME_32 = 0x811C9DC5, 0x01000193  # FNV-1a's (Fowler, Noll, Vo)
_BASIS_64, _PRIME_64 = 0xCBF29CE484222325, 0x100000001B3
_OPEN, _CLOSE = ord("<"), ord(">")
_LABEL = np.frombuffer(b"__label__", np.uint8)  # a token that begins so is no word
_END = np.frombuffer(b"</s>", np.uint8)  # the token of a line's end; in a text it ends what is read


class Rows(NamedTuple):
    """A model's input matrix, and where words and n-grams are in it."""

    matrix: np.ndarray  # float32 [rows, D]: known words, then the buckets kept, by bucket
    words: np.ndarray  # uint64 [slots]: hashes of the known words, open addressing; 0 is a free slot
    word_rows: np.ndarray  # int64 [slots]
    end: int  # row of a line's end
    first: int  # row of the first bucket
    kept: np.ndarray  # uint64 [blocks]: one bit a bucket
    before: np.ndarray  # int64 [blocks]: how many are set in earlier blocks
    buckets: int


@numba.njit(cache=True, nogil=True)
def hash_bytes(data):
    """FNV-1a, 64 bits, never 0."""
    state = uint64(_BASIS_64)
    for byte in data:
        state = (state ^ uint64(byte)) * uint64(_PRIME_64)
    return state | uint64(1)


@numba.njit(cache=True, nogil=True)
def add_rows(codes, bits, rows, most, matrix, words, word_rows, end, first, kept, before, buckets, sums, counts):
    """Sums of the rows of each text's first `most` characters.

    Args:
        codes, bits: uint32 [C], `kernels.characters.table()` of the codes. rows: int64 [R+1]. The next eight are a `Rows`.
        sums: float32 [R, D], zeros, filled; counts: int64 [R], filled: how many rows were added, 0 for a text without letters.
    """
    longest_text = int64(0)
    for r in range(len(rows) - 1):
        longest_text = max(longest_text, min(rows[r + 1] - rows[r], most))
    word, starts = np.empty(4 * longest_text + 2, np.uint8), np.empty(longest_text + 3, np.int64)
    found = np.empty(4 * longest_text + 2, np.int32)  # a token of L letters is at most one word and 3 L n-grams; one of a single letter 4 rows
    for r in range(len(rows) - 1):
        count, seen = 0, uint32(0)
        i, stop = rows[r], min(rows[r + 1], rows[r] + most)
        ended = False
        while not ended:
            while i < stop and (bits[i] & SPACE or codes[i] == 0):
                i += 1
            if i == stop:
                break
            begin = i
            while i < stop and not (bits[i] & SPACE or codes[i] == 0):
                seen |= bits[i]
                i += 1
            characters, size = _spell(codes, begin, i, word, starts)
            ended = size == len(_END) + 2 and _begins(word, size, _END)
            if ended or _begins(word, size, _LABEL):
                continue
            row = _word_row(word[1 : size - 1], words, word_rows)
            found[count] = row
            count += row >= 0
            count = _grams(word, starts, characters, first, kept, before, buckets, found, count)
        found[count] = end
        counts[r] = count + 1 if seen & ALPHABETIC else 0
        _add(matrix, found[: count + 1], sums[r])


@numba.njit(cache=True, nogil=True)
def _grams(word, starts, characters, first, kept, before, buckets, found, count):
    """Appends the rows of a token's n-grams to `found`; returns the new count."""
    plain = starts[characters] == characters  # a byte a character
    for at in range(characters - 1):
        state = uint32(_BASIS_32)
        if plain:
            state = uint32((state ^ uint32(word[at])) * uint32(_PRIME_32))
        else:
            state = _roll(state, word, starts[at], starts[at + 1])
        for n in range(1, min(LONGEST, characters - at)):
            if plain:
                state = uint32((state ^ uint32(word[at + n])) * uint32(_PRIME_32))
            else:
                state = _roll(state, word, starts[at + n], starts[at + n + 1])
            bucket = int64(state) - int64(np.float64(int64(state)) * (1.0 / buckets)) * buckets  # a remainder without a division
            bucket += buckets if bucket < 0 else -buckets if bucket >= buckets else 0
            block, bit = uint64(bucket) >> uint64(6), uint64(bucket) & uint64(63)
            if kept[block] >> bit & uint64(1):
                found[count] = first + before[block] + _bits_set(kept[block] & ((uint64(1) << bit) - uint64(1)))
                count += 1
    return count


@numba.njit(cache=True, nogil=True)
def _roll(state, word, start, end):
    for k in range(start, end):
        state = uint32((state ^ uint32(int8(word[k]))) * uint32(_PRIME_32))  # fastText's bytes are signed
    return state


@numba.njit(cache=True, nogil=True)
def _add(matrix, rows, total):
    for row in rows:
        for d in range(DIMENSIONS):
            total[d] += matrix[row, d]


@numba.njit(cache=True, nogil=True)
def _spell(codes, begin, end, word, starts):
    """The token as UTF-8 between "<" and ">" in `word`, where its characters start in `starts`; (characters, bytes). Lone surrogates take three bytes."""
    word[0], starts[0] = uint8(_OPEN), 0
    size, character = 1, 1
    for i in range(begin, end):
        code = codes[i]
        starts[character] = size
        character += 1
        if code < 0x80:
            word[size] = uint8(code)
            size += 1
        elif code < 0x800:
            word[size], word[size + 1] = uint8(0xC0 | code >> 6), uint8(0x80 | code & 0x3F)
            size += 2
        elif code < 0x10000:
            word[size], word[size + 1], word[size + 2] = uint8(0xE0 | code >> 12), uint8(0x80 | code >> 6 & 0x3F), uint8(0x80 | code & 0x3F)
            size += 3
        else:
            word[size], word[size + 1] = uint8(0xF0 | code >> 18), uint8(0x80 | code >> 12 & 0x3F)
            word[size + 2], word[size + 3] = uint8(0x80 | code >> 6 & 0x3F), uint8(0x80 | code & 0x3F)
            size += 4
    word[size], starts[character], starts[character + 1] = uint8(_CLOSE), size, size + 1
    return character + 1, size + 1


@numba.njit(cache=True, nogil=True)
def _begins(word, size, text):
    same = 0
    while same < len(text) and same < size - 2 and word[same + 1] == text[same]:
        same += 1
    return same == len(text)


@numba.njit(cache=True, nogil=True)
def _word_row(word, words, word_rows):
    """The row of a known word, else -1."""
    wanted = hash_bytes(word)
    mask = uint64(len(words) - 1)
    slot = (wanted >> uint64(20)) & mask
    while words[slot] != uint64(0):
        if words[slot] == wanted:
            return word_rows[slot]
        slot = (slot + uint64(1)) & mask
    return int64(-1)


@numba.njit(cache=True, nogil=True)
def _bits_set(block):
    """Population count (Warren, Hacker's Delight, 5-1); LLVM knows it as one instruction."""
    block -= (block >> uint64(1)) & uint64(0x5555555555555555)
    block = (block & uint64(0x3333333333333333)) + ((block >> uint64(2)) & uint64(0x3333333333333333))
    return int64((((block + (block >> uint64(4))) & uint64(0x0F0F0F0F0F0F0F0F)) * uint64(0x0101010101010101)) >> uint64(56))


@numba.njit(cache=True, nogil=True)
def likeliest(sums, counts, output, left, right, labels, best, scores):
    """The likeliest label of each text by hierarchical softmax: a walk down a Huffman tree of labels, without branches that are behind already.

    Args:
        output: float32 [labels - 1, D]. left, right: int64 [2 labels - 1], children of a node; leaves, which are labels, come first, the root last.
        best: int64 [R], filled with labels, -1 where `counts` is 0; scores: float32 [R], filled with their probabilities.
    """
    reached = np.empty(2 * labels - 1, np.float32)
    for r in range(len(counts)):
        best[r], scores[r] = -1, 0
        if counts[r] == 0:
            continue
        hidden = sums[r] * np.float32(1.0 / counts[r])
        reached[:] = -np.inf
        reached[2 * labels - 2] = np.float32(0)
        lead, found = np.float32(-np.inf), int64(-1)
        for node in range(2 * labels - 2, labels - 1, -1):
            if reached[node] < lead or reached[node] == -np.inf:
                continue
            product = np.float32(0)
            for d in range(DIMENSIONS):
                product += output[node - labels, d] * hidden[d]
            share = np.float32(1.0 / np.float64(np.float32(1) + np.exp(-product)))
            for child, part in ((left[node], np.float32(1.0 - np.float64(share))), (right[node], share)):
                reached[child] = reached[node] + np.float32(np.log(np.float64(part) + 1e-5))  # fastText's guard against log(0)
                if child < labels and reached[child] > lead:
                    lead, found = reached[child], child
        best[r], scores[r] = found, np.exp(lead)
