"""C4's line tests over a whole batch: how many sentences its surviving lines hold, and how many lines would drop the page.

The tests and their order are those of `filters.reference`. Sentences are counted on the words that are there already; only a line with a citation,
which C4 cuts out first, is split again.
"""

from functools import cache

import numba
import numpy as np

from filters.c4 import CITATIONS, FEWEST_WORDS, LONGEST_WORD, POLICIES, TERMINAL
from kernels.characters import DECIMAL, SPACE
from kernels.lines import begins_with, ends_in_dots, line_end, next_line, spelled, strip
from kernels.words import IS_PUNCTUATION, IS_TERMINAL, Words, exceptions, split_into

COLUMNS = ("sentences", "lorem_ipsum", "curly_bracket", "any_sentences", "any_lorem_ipsum", "any_curly_bracket")
_OPEN, _CLOSE, _CURLY = ord("["), ord("]"), ord("{")
_ENDINGS = tuple(map(ord, TERMINAL))
_KELVIN = 0x212A  # the one character outside ASCII whose lower case is a letter of a phrase below (k)
_PHRASES = ("lorem ipsum", "javascript", *POLICIES)  # a line's phrases are bits in this order
_CITATIONS, _SPELLED = spelled(CITATIONS), spelled(_PHRASES)


def count_c4(codes: np.ndarray, bits: np.ndarray, rows: np.ndarray, modes: np.ndarray, words: Words) -> dict[str, np.ndarray]:
    """int64 [R] per name of `COLUMNS`; the arguments are those of `kernels.words.split_words`, and its result."""
    counts = np.zeros((len(rows) - 1, len(COLUMNS)), np.int64)
    _count(codes, bits, rows, modes, words.rows, words.starts, words.flags, *_CITATIONS, *_SPELLED, _first_letters(), *exceptions(), counts)
    return dict(zip(COLUMNS, counts.T, strict=True))


@cache
def _first_letters() -> np.ndarray:
    """int64 [2, 128]: the phrases, as bits, whose first and second character is an ASCII one; few pairs of characters begin any."""
    letters = np.zeros((2, 128), np.int64)
    for k, phrase in enumerate(_PHRASES):
        letters[0, ord(phrase[0])] |= 1 << k
        letters[1, ord(phrase[1])] |= 1 << k
    return letters


@numba.njit(cache=True, nogil=True)
def _count(codes, bits, rows, modes, word_rows, word_starts, word_flags, citations, citation_lengths, phrases, lengths, letters, abbreviations, units, counts):
    for r in range(len(rows) - 1):
        start, end, word = rows[r], rows[r + 1], word_rows[r]
        while start < end:
            stop = line_end(codes, bits, start, end)
            first = word
            while word < word_rows[r + 1] and word_starts[word] < stop:
                word += 1
            a, b = strip(bits, start, stop)
            if _is_candidate(bits, a, b):
                cut_codes, cut_bits = _cut_citations(codes, bits, a, b, citations, citation_lengths)
                if len(cut_codes) == b - a:
                    _count_line(codes, bits, a, b, _count_sentences(word_flags, first, word), phrases, lengths, letters, counts[r])
                else:
                    sentences = _split_and_count_sentences(cut_codes, cut_bits, modes[r], abbreviations, units)
                    _count_line(cut_codes, cut_bits, 0, len(cut_codes), sentences, phrases, lengths, letters, counts[r])
            start = next_line(codes, stop, end)


@numba.njit(cache=True, nogil=True)
def _is_candidate(bits, start, end):
    """Enough words, none too long, between white space."""
    words, length = 0, 0
    for i in range(start, end):
        if bits[i] & SPACE:
            length = 0
            continue
        words += length == 0
        length += 1
        if length > LONGEST_WORD:
            return False
    return words >= FEWEST_WORDS


@numba.njit(cache=True, nogil=True)
def _cut_citations(codes, bits, start, end, citations, lengths):
    """The line without its citations: slices of the arrays themselves when it has none."""
    i = start
    while i < end and (codes[i] != _OPEN or _citation_length(codes, bits, i, end, citations, lengths) == 0):
        i += 1
    if i == end:
        return codes[start:end], bits[start:end]
    cut_codes, cut_bits, kept = codes[start:end].copy(), bits[start:end].copy(), i - start
    while i < end:
        skip = _citation_length(codes, bits, i, end, citations, lengths) if codes[i] == _OPEN else 0
        if skip == 0:
            cut_codes[kept], cut_bits[kept] = codes[i], bits[i]
            kept += 1
        i += max(skip, 1)
    return cut_codes[:kept], cut_bits[:kept]


@numba.njit(cache=True, nogil=True)
def _citation_length(codes, bits, start, end, citations, lengths):
    """Of "[12]", "[]" or one of the citations, that begins at the bracket at `start`; else 0."""
    i = start + 1
    while i < end and bits[i] & DECIMAL:
        i += 1
    if i < end and codes[i] == _CLOSE:
        return i + 1 - start
    for k in range(len(lengths)):
        if begins_with(codes, start, end, citations[k], lengths[k]):
            return lengths[k]
    return 0


@numba.njit(cache=True, nogil=True)
def _count_line(codes, bits, start, end, sentences, phrases, lengths, letters, counts):
    found, curly = _find(codes, start, end, phrases, lengths, letters)
    ended = end > start and codes[end - 1] in _ENDINGS and not ends_in_dots(codes, start, end)
    for strict in range(2):
        if strict and not ended:
            return
        at = 0 if strict else 3
        counts[at + 1] += found & 1
        if found & 2:
            continue
        counts[at + 2] += curly
        if found < 4:
            counts[at] += sentences


@numba.njit(cache=True, nogil=True)
def _find(codes, start, end, phrases, lengths, letters):
    """Which phrases the lower-cased span holds, as bits, and whether it holds a curly bracket."""
    found, curly = 0, False
    begun = 0  # phrases whose first character is the one before
    for i in range(start, end):
        code = _lower(codes[i])
        curly |= code == _CURLY
        both = begun & letters[1, code] & ~found if code < 128 else 0
        begun = letters[0, code] if code < 128 else 0
        if both == 0:
            continue
        for k in range(len(lengths)):
            if both >> k & 1 and i - 1 + lengths[k] <= end:
                same = 2
                while same < lengths[k] and _lower(codes[i - 1 + same]) == phrases[k, same]:
                    same += 1
                if same == lengths[k]:
                    found |= 1 << k
    return found, curly


@numba.njit(cache=True, nogil=True)
def _lower(code):
    if 65 <= code <= 90:
        return code + np.uint32(32)
    return np.uint32(107) if code == _KELVIN else code


@numba.njit(cache=True, nogil=True)
def _count_sentences(flags, first, last):
    """spaCy's sentencizer: after a sentence-ending mark, the next word that is no punctuation begins a sentence."""
    sentences, ended = min(last - first, 1), False
    for w in range(first, last):
        if flags[w] & IS_TERMINAL:
            ended = True
        elif ended and not flags[w] & IS_PUNCTUATION:
            sentences += 1
            ended = False
    return sentences


@numba.njit(cache=True, nogil=True)
def _split_and_count_sentences(codes, bits, mode, abbreviations, units):
    size = len(codes) + 1
    rows, word_rows = np.array([0, len(codes)]), np.zeros(2, np.int64)
    starts, ends, hashes, flags = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.uint64), np.empty(size, np.uint8)
    count = split_into(codes, bits, rows, np.array([mode], np.uint8), abbreviations, units, word_rows, starts, ends, hashes, flags)
    return _count_sentences(flags, 0, count)
