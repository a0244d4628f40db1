"""How many lines of a text look like program code, over a whole batch of code points (`filters.reference.is_code` is the definition).

A line counts by how it begins (a keyword or a prompt of the common languages) or how it ends (`;`, a brace, a call's bracket). No published
filter has this signal; it is a share for recipes of one's own to use.
"""

import numba
import numpy as np

from kernels.characters import ALPHABETIC, DECIMAL, SPACE
from kernels.lines import begins_with, spelled, strip

BEGINNINGS = ("def ", "class ", "import ", "#include", "public ", "private ", "$ ", ">>> ")
_OPEN, _CLOSE, _NEWLINE, _UNDERSCORE = (ord(c) for c in "()\n_")
_ENDINGS = tuple(map(ord, ";{}"))
_TEXTS = spelled((*BEGINNINGS, "return", "for", "if", "from ", " import "))
_RETURN, _FOR, _FROM, _IMPORT = len(BEGINNINGS), len(BEGINNINGS) + 1, len(BEGINNINGS) + 3, len(BEGINNINGS) + 4


def count_code_lines(codes: np.ndarray, bits: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [R] each: lines that look like code, and lines that are not blank. codes, bits: uint32 [C]; rows: int64 [R+1]."""
    counts = np.zeros((2, len(rows) - 1), np.int64)
    _count(codes, bits, rows, *_TEXTS, counts)
    return counts[0], counts[1]


@numba.njit(cache=True, nogil=True)
def _count(codes, bits, rows, texts, lengths, counts):
    for r in range(len(rows) - 1):
        start = rows[r]
        while start < rows[r + 1]:
            stop = start
            while stop < rows[r + 1] and codes[stop] != _NEWLINE:
                stop += 1
            first, last = strip(bits, start, stop)
            if first < last:
                counts[1, r] += 1
                counts[0, r] += _begins(codes, bits, first, last, stop, texts, lengths) or _ends(codes, bits, first, last)
            start = stop + 1


@numba.njit(cache=True, nogil=True)
def _begins(codes, bits, first, last, stop, texts, lengths):
    for k in range(len(lengths)):
        if not begins_with(codes, first, stop, texts[k], lengths[k]):
            continue
        i = first + lengths[k]
        if k < _RETURN:
            return True
        if k == _RETURN and (i == last or not _in_name(codes, bits, i)):
            return True
        if _FOR <= k < _FROM:
            while i < last and bits[i] & SPACE:
                i += 1
            if i < last and codes[i] == _OPEN:
                return True
        if k == _FROM:
            named = i
            while i < last and not bits[i] & SPACE:
                i += 1
            if i > named and begins_with(codes, i, stop, texts[_IMPORT], lengths[_IMPORT]):
                return True
    return False


@numba.njit(cache=True, nogil=True)
def _ends(codes, bits, first, last):
    """In a mark that ends statements or blocks, or in the bracket of a call: an opening one stands after a word, somewhere before."""
    end = codes[last - 1]
    if end in _ENDINGS:
        return True
    if end == _CLOSE:
        for i in range(first + 1, last - 1):
            if codes[i] == _OPEN and _in_name(codes, bits, i - 1):
                return True
    return False


@numba.njit(cache=True, nogil=True)
def _in_name(codes, bits, i):
    return bits[i] & (ALPHABETIC | DECIMAL) != 0 or codes[i] == _UNDERSCORE
