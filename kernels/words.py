"""Splits a whole batch of texts into words: `filters.words` says what a word is, this says the same at a hundred times the speed.

Texts come as code points with their character bits (`kernels.characters`), all of a batch in one array, and words leave as columns: spans, hashes
and flags. No Python object is made. A chunk between white space that is letters only - three of four - is a word at once; the others go through
the affixes, the exceptions and the inner marks in the reference's order. Every loop is linear in the text, whatever it holds.
"""

import functools
from typing import NamedTuple

import numba
import numpy as np
from numba import uint32, uint64

from kernels.characters import (
    ALPHABETIC,
    BEFORE_STOP,
    DIGIT,
    DIVIDER,
    HOST,
    INFIX,
    LETTER,
    LOWER,
    PREFIX,
    PUNCTUATION,
    QUOTE,
    SPACE,
    SUFFIX,
    TERMINAL,
    UNSPACED,
    UPPER,
    WORDY,
)

# English abbreviations whose full stop ends no sentence (from spaCy's exceptions); so are single small letters with one. Lone apostrophes stay whole.
ABBREVIATIONS = frozenset(
    "Adm. Apr. Aug. Bros. Co. Corp. Dec. Dr. Feb. Gen. Gov. Inc. Jan. Jr. Jul. Jun. Ltd. Mar. Messrs. Mr. Mrs. Ms. Mt. Nov. Oct. Ph.D. Prof. Rep. Rev. "
    "Sen. Sep. Sept. St. co. vs. v.s. e.g. E.g. i.e. I.e. a.m. p.m. ' '' ’ ’’".split()
    + [chr(code) + "." for code in range(ord("a"), ord("z") + 1)]
)
# Units that are split off the number before them (spaCy's list).
UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa mbar mb MB kb KB gb GB tb TB "
    "T G M K %"
).split()
_LONGEST_ABBREVIATION, _LONGEST_UNIT = max(map(len, ABBREVIATIONS)), max(map(len, UNITS))

ELIDING, CHARACTERS = 1, 2  # modes of a text: an apostrophe ends a word; characters of unspaced scripts are words

HAS_LETTER, HAS_WORDY, IS_PUNCTUATION, IS_TERMINAL = 1, 2, 4, 8  # flags of a word; the last: it is one sentence-ending character

_SEED, _MULTIPLIER = 0xCBF29CE484222325, 0x9E3779B97F4A7C15  # FNV's offset basis; 2^64 / golden ratio
_STOP, _COMMA, _APOSTROPHE, _RIGHT_QUOTE, _HYPHEN, _EN_DASH, _EM_DASH, _TILDE = (ord(c) for c in ".,'’-–—~")
_PLUS, _STAR, _CARET, _COLON, _SLASH, _LESS, _EQUAL, _MORE, _QUESTION, _HASH, _AT, _UNDERSCORE = (ord(c) for c in "+*^:/<=>?#@_")
_DEGREE = ord("°")
_CURRENCY = tuple(ord(c) for c in "$£€¥฿﷼")


@numba.njit(cache=True, nogil=True)
def hash_span(codes, start, end):
    """A 64-bit hash of code points [start, end)."""
    state = uint64(_SEED)
    for i in range(start, end):
        state = (state ^ uint64(codes[i])) * uint64(_MULTIPLIER)
    return _finish(state)


@numba.njit(cache=True, nogil=True)
def _finish(state):
    """Spreads the last characters' bits over the whole word, so that its low bits index a table."""
    state ^= state >> uint64(32)
    state *= uint64(0xD6E8FEB86659FD93)
    return state ^ (state >> uint64(32))


def hash_word(word: str) -> int:
    return int(hash_span(np.frombuffer(word.encode("utf-32-le", "surrogatepass"), np.uint32), 0, len(word)))


class Words(NamedTuple):
    """The words of a batch of texts, in order. Legend: R texts, W words.

    `rows` int64 [R+1]: text r has words rows[r]..rows[r+1]. `starts`, `ends` int32 [W]: positions in the batch's code points.
    `hashes` uint64 [W], of the characters. `flags` uint8 [W]: HAS_LETTER and so on.
    """

    rows: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    hashes: np.ndarray
    flags: np.ndarray


def split_words(codes: np.ndarray, bits: np.ndarray, rows: np.ndarray, modes: np.ndarray) -> Words:
    """The words of a batch. Legend: C code points, R texts.

    Args:
        codes: uint32 [C]. bits: uint32 [C], `characters.table()` of them. rows: int64 [R+1], text r is codes[rows[r]:rows[r+1]]. modes: uint8 [R].
    """
    word_rows = np.zeros(len(rows), np.int64)
    room = len(codes) + 1  # a word takes a character; what stays unused is never touched, so takes no memory
    starts, ends, hashes, flags = (np.empty(room, kind) for kind in (np.int32, np.int32, np.uint64, np.uint8))
    count = split_into(codes, bits, rows, modes, *exceptions(), word_rows, starts, ends, hashes, flags)
    return Words(word_rows, starts[:count], ends[:count], hashes[:count], flags[:count])


@numba.njit(cache=True, nogil=True)
def count_distinct(rows, hashes, lists, list_rows, known, counts):
    """Adds to `counts` [R] how many different words of a list each text has: `lists` [R] is which.

    `known` uint64 holds the sorted hashes of all lists, list k in list_rows[k]..list_rows[k+1].
    """
    seen = np.full(len(known), -1, np.int64)
    for r in range(len(rows) - 1):
        first, last = list_rows[lists[r]], list_rows[lists[r] + 1]
        for w in range(rows[r], rows[r + 1]):
            at = first + np.searchsorted(known[first:last], hashes[w])
            if at < last and known[at] == hashes[w] and seen[at] != r:
                seen[at] = r
                counts[r] += 1


@functools.cache
def exceptions() -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.array(sorted(map(hash_word, words)), np.uint64) for words in (ABBREVIATIONS, UNITS))


@numba.njit(cache=True, nogil=True)
def split_into(codes, bits, rows, modes, abbreviations, units, word_rows, starts, ends, hashes, flags):
    """`split_words` into arrays that are there already, with room for a word a character; returns how many words."""
    count = 0
    plain = ~uint32(PREFIX | SUFFIX | DIVIDER | DIGIT)
    for r in range(len(rows) - 1):
        i, end, mode = rows[r], rows[r + 1], modes[r]
        while i < end:
            if bits[i] & SPACE:
                i += 1
                continue
            start, seen = i, uint32(0)
            while i < end and not bits[i] & SPACE:
                seen |= bits[i]
                i += 1
            if seen & plain == seen and not (mode == CHARACTERS and seen & UNSPACED):
                starts[count], ends[count] = start, i
                count += 1
            else:
                count = _split_chunk(codes, bits, start, i, mode, abbreviations, units, starts, ends, count)
        word_rows[r + 1] = count
    for w in range(count):
        any_bits, all_bits = uint32(0), ~uint32(0)
        state = uint64(_SEED)
        for i in range(starts[w], ends[w]):
            state = (state ^ uint64(codes[i])) * uint64(_MULTIPLIER)
            any_bits |= bits[i]
            all_bits &= bits[i]
        hashes[w] = _finish(state)
        flag = HAS_LETTER * ((any_bits & ALPHABETIC) != 0) + HAS_WORDY * ((any_bits & WORDY) != 0) + IS_PUNCTUATION * ((all_bits & PUNCTUATION) != 0)
        flags[w] = flag + IS_TERMINAL * (ends[w] - starts[w] == 1 and (any_bits & TERMINAL) != 0)
    return count


@numba.njit(cache=True, nogil=True)
def _split_chunk(codes, bits, start, end, mode, abbreviations, units, starts, ends, count):
    """Append the words of the chunk [start, end) to `starts` and `ends`; returns the new count. Suffixes wait at the arrays' end."""
    top, stop = len(starts), end
    while start < end and not _stands(codes, bits, start, end, abbreviations):
        prefix = _prefix_length(codes, bits, start, end)
        if prefix > 0 and _stands(codes, bits, start + prefix, end, abbreviations):
            starts[count], ends[count] = start, start + prefix
            count += 1
            start += prefix
            break
        suffix = _suffix_length(codes, bits, start + prefix, end, units)
        if prefix == 0 and suffix == 0:
            break
        if suffix > 0 and _stands(codes, bits, start, end - suffix, abbreviations):
            prefix = 0
        if prefix > 0:
            starts[count], ends[count] = start, start + prefix
            count += 1
            start += prefix
        if suffix > 0:
            end -= suffix
            top -= 1
            starts[top] = end
    if start < end:
        count = _split_inside(codes, bits, start, end, mode, abbreviations, starts, ends, count)
    for k in range(top, len(starts)):
        starts[count], ends[count] = starts[k], starts[k + 1] if k + 1 < len(starts) else stop
        count += 1
    return count


@numba.njit(cache=True, nogil=True)
def _stands(codes, bits, start, end, abbreviations):
    return _is_abbreviation(codes, start, end, abbreviations) or _contracted(codes, bits, start, end) > 0


@numba.njit(cache=True, nogil=True)
def _is_abbreviation(codes, start, end, abbreviations):
    if end <= start or end - start > _LONGEST_ABBREVIATION or not (codes[end - 1] == _STOP or codes[end - 1] == _APOSTROPHE or codes[end - 1] == _RIGHT_QUOTE):
        return False
    return _among(abbreviations, hash_span(codes, start, end))


@numba.njit(cache=True, nogil=True)
def _among(ordered, value):
    at = np.searchsorted(ordered, value)
    return at < len(ordered) and ordered[at] == value


@numba.njit(cache=True, nogil=True)
def _is_apostrophe(code):
    return code in (_APOSTROPHE, _RIGHT_QUOTE)


@numba.njit(cache=True, nogil=True)
def _contracted(codes, bits, start, end):
    """Where a contraction's second word begins (do|n't, we|'ll), 0 if it is none: all of the first must be ASCII letters."""
    cut = 0
    if end - start >= 4 and codes[end - 3] == ord("n") and _is_apostrophe(codes[end - 2]) and codes[end - 1] == ord("t"):
        cut = end - 3
    elif end - start >= 4 and _is_apostrophe(codes[end - 3]):
        a, b = codes[end - 2], codes[end - 1]
        if ((a == ord("r") or a == ord("v")) and b == ord("e")) or (a == ord("l") and b == ord("l")):
            cut = end - 3
    elif end - start >= 3 and _is_apostrophe(codes[end - 2]) and (codes[end - 1] == ord("d") or codes[end - 1] == ord("m")):
        cut = end - 2
    for i in range(start, cut):
        if codes[i] >= 128 or not bits[i] & LETTER:
            return 0
    return cut


@numba.njit(cache=True, nogil=True)
def _prefix_length(codes, bits, start, end):
    if bits[start] & PREFIX:
        return 1
    if codes[start] == _PLUS:
        return 0 if start + 1 < end and bits[start + 1] & DIGIT else 1
    return _dots(codes, start, end)


@numba.njit(cache=True, nogil=True)
def _dots(codes, start, end):
    """The length of an ellipsis of full stops that begins here, else 0."""
    i = start
    while i < end and codes[i] == _STOP:
        i += 1
    return i - start if i - start >= 2 else 0


@numba.njit(cache=True, nogil=True)
def _suffix_length(codes, bits, start, end, units):
    if end <= start:
        return 0
    last, before = codes[end - 1], end - 2
    if last == _STOP:
        i = end
        while i > start and codes[i - 1] == _STOP:
            i -= 1
        if end - i >= 2:
            return end - i
        if before < start:
            return 0
        shouted = before > start and bits[before] & UPPER and bits[before - 1] & UPPER
        temperature = before > start and codes[before - 1] == _DEGREE and (codes[before] | 32 == 102 or codes[before] | 32 == 99 or codes[before] | 32 == 107)
        return 1 if bits[before] & BEFORE_STOP or shouted or temperature else 0
    if before >= start and (last == ord("s") or last == ord("S")) and _is_apostrophe(codes[before]):
        return 2
    for length in range(min(_LONGEST_UNIT, end - start - 1), 0, -1):
        if bits[end - length - 1] & DIGIT and _among(units, hash_span(codes, end - length, end)):
            return length
    if bits[end - 1] & SUFFIX:
        return 1
    return 1 if before >= start and bits[before] & DIGIT and (last == _PLUS or _is_currency(last)) else 0


@numba.njit(cache=True, nogil=True)
def _is_currency(code):
    return code in _CURRENCY or 0x20A0 <= code <= 0x20BF


@numba.njit(cache=True, nogil=True)
def _split_inside(codes, bits, start, end, mode, abbreviations, starts, ends, count):
    """What is left when no affix gives: whole, or cut at the marks inside."""
    if _is_abbreviation(codes, start, end, abbreviations):
        starts[count], ends[count] = start, end
        return count + 1
    cut = _contracted(codes, bits, start, end)
    if cut > 0:
        starts[count], ends[count] = start, cut
        starts[count + 1], ends[count + 1] = cut, end
        return count + 2
    divided = mode != 0
    for i in range(start, end):
        divided = divided or bits[i] & DIVIDER
    if not divided or _is_url(codes, bits, start, end):
        starts[count], ends[count] = start, end
        return count + 1
    i = opened = start
    while i < end:
        length = _infix_length(codes, bits, start, i, end) if bits[i] & DIVIDER else 0
        if i > opened and (length > 0 or (mode != 0 and _is_boundary(codes, bits, start, i, mode))):
            starts[count], ends[count] = opened, i
            count += 1
            opened = i
        if length > 0:
            starts[count], ends[count] = i, i + length
            count += 1
            i = opened = i + length
        else:
            i += 1
    if opened < end:
        starts[count], ends[count] = opened, end
        count += 1
    return count


@numba.njit(cache=True, nogil=True)
def _is_boundary(codes, bits, start, i, mode):
    """Without a mark: after an elided article, around a character of a script without spaces."""
    if mode == ELIDING:
        return i - start >= 2 and _is_apostrophe(codes[i - 1]) and bits[i - 2] & LETTER and bits[i] & LETTER
    return (bits[i] | bits[i - 1]) & UNSPACED


@numba.njit(cache=True, nogil=True)
def _infix_length(codes, bits, start, i, end):
    code = codes[i]
    dots = _dots(codes, i, end)
    if dots > 0 or bits[i] & INFIX:
        return max(dots, 1)
    if i == start or i + 1 >= end:
        return 0
    before, after = bits[i - 1], bits[i + 1]
    if (code in (_PLUS, _HYPHEN, _STAR, _CARET)) and before & DIGIT and (after & DIGIT or codes[i + 1] == _HYPHEN):
        return 1
    if code == _STOP:
        return 1 if before & (LOWER | QUOTE) and after & (UPPER | QUOTE) else 0
    if code == _COMMA:
        return 1 if before & LETTER and after & LETTER else 0
    if not before & (LETTER | DIGIT):
        return 0
    if code in (_COLON, _SLASH, _LESS, _EQUAL, _MORE, _EN_DASH, _TILDE):
        return 1 if after & LETTER else 0
    if code in (_HYPHEN, _EM_DASH):
        longest = 3 if code == _HYPHEN else 2
        length = 1
        while length < longest and i + length < end and codes[i + length] == code:
            length += 1
        return length if i + length < end and bits[i + length] & LETTER else 0
    return 0


@numba.njit(cache=True, nogil=True)
def _is_url(codes, bits, start, end):
    """[scheme://][user@]host.tld[:port][/path]: wherever the host may begin, tried once."""
    i = start
    while i < end and codes[i] < 128 and (bits[i] & (LETTER | DIGIT) or codes[i] == _PLUS or codes[i] == _STOP or codes[i] == _HYPHEN):
        i += 1
    after_scheme = start
    if i - start >= 2 and i + 2 < end and codes[i] == _COLON and codes[i + 1] == _SLASH and codes[i + 2] == _SLASH:
        after_scheme = i + 3
        if _is_host(codes, bits, after_scheme, end):
            return True
    if _is_host(codes, bits, start, end):
        return True
    i = start + 1
    while i < end and not (codes[i] == _AT and _is_host(codes, bits, i + 1, end)):
        i += 1
    return i < end


@numba.njit(cache=True, nogil=True)
def _is_host(codes, bits, start, end):
    """Labels and a top-level domain in small letters, then nothing, a port or a path."""
    label, i = start, start
    while i < end:
        if codes[i] == _STOP:
            if i == label or i - label > 64 or not bits[label] & HOST or not bits[i - 1] & HOST:
                return False
            label = i + 1
        elif not (bits[i] & HOST or codes[i] == _HYPHEN or codes[i] == _UNDERSCORE):
            break
        i += 1
    if label == start or not 2 <= i - label <= 63:
        return False
    for k in range(label, i):
        if not bits[k] & LOWER:
            return False
    if i < end and codes[i] == _COLON:
        i += 1
        port = i
        while i < end and bits[i] & DIGIT:
            i += 1
        if not 2 <= i - port <= 5:
            return False
    return i == end or codes[i] == _SLASH or codes[i] == _QUESTION or codes[i] == _HASH
