"""What the web filters count of lines, paragraphs and characters, over a whole batch in one pass each.

Texts are code points with their character bits, as in `kernels.words`. Three notions of a line occur in the published filters and all are kept:
- *parts*: what stands between runs of newlines, an empty one at a text's edge included (Gopher's repetition); those that are not blank are FineWeb's lines;
- *paragraphs*: what stands between two or more newlines of the stripped text;
- *lines* as `str.splitlines` gives them (Gopher's bullets and ellipses).
Two lines are the same if their 64-bit hashes are: with 10^5 lines a document, one in 10^9 documents would be misjudged.
"""

import numba
import numpy as np
from numba import uint64

from kernels.characters import DECIMAL, LINE_BREAK, SPACE, TERMINAL, UPPERCASE
from kernels.words import hash_span

COLUMNS = (
    "characters", "visible", "newlines", "hash_marks", "ellipses", "decimals", "uppercase",
    "paragraphs", "duplicate_paragraphs", "duplicate_paragraph_characters",
    "parts", "duplicate_parts", "duplicate_part_characters", "long_parts",
    "filled", "filled_terminal", "filled_short", "duplicate_filled_characters",
    "lines", "bullet_lines", "ellipsis_lines",
)  # fmt: skip
_NEWLINE, _RETURN, _HASH, _STOP, _ELLIPSIS, _BULLET, _HYPHEN = (ord(c) for c in "\n\r#.…•-")


def count_lines(codes: np.ndarray, bits: np.ndarray, rows: np.ndarray, short: int, long: int) -> dict[str, np.ndarray]:
    """int64 [R] per name of `COLUMNS`. Legend: C code points, R texts.

    `visible` characters are no white space; `short` lines have at most, `long` ones at least so many characters. codes, bits: uint32 [C]; rows: int64 [R+1].
    """
    counts = np.zeros((len(rows) - 1, len(COLUMNS)), np.int64)
    _count(codes, bits, rows, short, long, counts)
    return dict(zip(COLUMNS, counts.T, strict=True))


@numba.njit(cache=True, nogil=True)
def _count(codes, bits, rows, short, long, counts):
    for r in range(len(rows) - 1):
        begin, end = rows[r], rows[r + 1]
        newlines = _count_characters(codes, bits, begin, end, counts[r, :7])
        seen = np.zeros(_table_size(newlines + 1), np.uint64)
        _count_paragraphs(codes, bits, begin, end, seen, counts[r, 7:10])
        seen[:] = 0
        _count_parts(codes, bits, begin, end, short, long, seen, counts[r, 10:18])
        _count_lines(codes, bits, begin, end, counts[r, 18:21])


@numba.njit(cache=True, nogil=True)
def _count_characters(codes, bits, begin, end, counts):
    visible = newlines = hash_marks = ellipses = decimals = uppercase = dots = 0
    for i in range(begin, end):
        code, bit = codes[i], bits[i]
        visible += not bit & SPACE
        newlines += code == _NEWLINE
        hash_marks += code == _HASH
        decimals += (bit & DECIMAL) != 0
        uppercase += (bit & UPPERCASE) != 0
        dots = dots + 1 if code == _STOP else 0
        if dots == 3 or code == _ELLIPSIS:
            ellipses += 1
            dots = 0
    counts[0], counts[1], counts[2], counts[3], counts[4], counts[5], counts[6] = end - begin, visible, newlines, hash_marks, ellipses, decimals, uppercase
    return newlines


@numba.njit(cache=True, nogil=True)
def _table_size(count):
    size = 16
    while size < 2 * count:
        size *= 2
    return size


@numba.njit(cache=True, nogil=True)
def _repeats(seen, codes, start, end):
    """Has an equal span been seen before? Remembers this one. `seen` is an open-addressing table; 0 is a free slot."""
    h = hash_span(codes, start, end) | uint64(1)
    mask = uint64(len(seen) - 1)
    slot = (h >> uint64(20)) & mask
    while seen[slot] != uint64(0):
        if seen[slot] == h:
            return True
        slot = (slot + uint64(1)) & mask
    seen[slot] = h
    return False


@numba.njit(cache=True, nogil=True)
def _count_paragraphs(codes, bits, begin, end, seen, counts):
    start, end = strip(bits, begin, end)
    while True:
        stop = start
        while stop < end and not (codes[stop] == _NEWLINE and codes[stop + 1] == _NEWLINE):  # the stripped text ends in no newline
            stop += 1
        counts[0] += 1
        if _repeats(seen, codes, start, stop):
            counts[1] += 1
            counts[2] += stop - start
        if stop == end:
            return
        start = stop
        while codes[start] == _NEWLINE:
            start += 1


@numba.njit(cache=True, nogil=True)
def _count_parts(codes, bits, begin, end, short, long, seen, counts):
    start = begin
    while True:
        stop, blank = start, True
        while stop < end and codes[stop] != _NEWLINE:
            blank = blank and bits[stop] & SPACE != 0
            stop += 1
        length = stop - start
        repeated = _repeats(seen, codes, start, stop)
        counts[0] += 1
        counts[1] += repeated
        counts[2] += length * repeated
        counts[3] += length >= long
        if not blank:
            counts[4] += 1
            counts[5] += (bits[stop - 1] & TERMINAL) != 0
            counts[6] += length <= short
            counts[7] += length * repeated
        if stop == end:
            return
        start = stop
        while start < end and codes[start] == _NEWLINE:
            start += 1


@numba.njit(cache=True, nogil=True)
def line_end(codes, bits, start, end):
    """Where the line that begins at `start` ends, as `str.splitlines` has it (without its break)."""
    while start < end and not bits[start] & LINE_BREAK:
        start += 1
    return start


@numba.njit(cache=True, nogil=True)
def next_line(codes, stop, end):
    """Where the line after the break at `stop` begins: a carriage return and a newline are one break."""
    return stop + 2 if stop + 1 < end and codes[stop] == _RETURN and codes[stop + 1] == _NEWLINE else stop + 1


@numba.njit(cache=True, nogil=True)
def strip(bits, start, end):
    """The span without the white space at both its ends."""
    while start < end and bits[start] & SPACE:
        start += 1
    while end > start and bits[end - 1] & SPACE:
        end -= 1
    return start, end


@numba.njit(cache=True, nogil=True)
def _count_lines(codes, bits, begin, end, counts):
    start = begin
    while start < end:
        stop = line_end(codes, bits, start, end)
        first, last = strip(bits, start, stop)
        counts[0] += 1
        if first < last:
            counts[1] += codes[first] == _BULLET or codes[first] == _HYPHEN
            counts[2] += codes[last - 1] == _ELLIPSIS or ends_in_dots(codes, first, last)
        start = next_line(codes, stop, end)


@numba.njit(cache=True, nogil=True)
def ends_in_dots(codes, start, end):
    return end - start >= 3 and codes[end - 1] == _STOP and codes[end - 2] == _STOP and codes[end - 3] == _STOP


@numba.njit(cache=True, nogil=True)
def begins_with(codes, start, end, text, length):
    """Does the span begin with the first `length` code points of `text`?"""
    k = 0
    while k < length and start + k < end and codes[start + k] == text[k]:
        k += 1
    return k == length


def spelled(texts: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """What `begins_with` compares with: code points uint32 [T, longest], padded with zeros, and lengths int64 [T]."""
    padded = np.zeros((len(texts), max(map(len, texts))), np.uint32)
    for row, text in enumerate(texts):
        padded[row, : len(text)] = list(map(ord, text))
    return padded, np.array(list(map(len, texts)), np.int64)
