"""What single characters, lines and blank-separated words say of a page: one compiled pass over the batch's code points.

`filters.words` splits as linguists do; the rules of NeMo Curator, DCLM, Dolma and RefinedWeb were made with `str.split` and classes of
characters, so they are measured here, with the classes that Python's `str` has (`kernels.characters`).
"""

from typing import NamedTuple

import numba
import numpy as np

from filters.pages import Pages
from kernels.characters import ALPHABETIC, DECIMAL, SPACE, UPPERCASE

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Rae et al. 2021, section A.1.1
LONGEST_PERIOD = 13  # words; Dolma's repetition tagger (allenai/dolma, python/dolma/taggers/repetitions)


class Lines(NamedTuple):
    """Every line (what stands between newlines) of a batch. Legend: R pages, L lines.

    `rows` [R+1]: page r has lines rows[r]..rows[r+1]. `starts`, `ends` [L]: code points of the batch, the newline left out. Per line [L]:
    `upper` and `digits` are characters, `words` and `alnum_words` (first character a letter or digit) are blank-separated words,
    `cells` are tabs or bars, whichever are more, `last` is the last character that is no space (0 for a blank line), `tex` counts TeX
    commands and mathematical operators.
    """

    rows: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    upper: np.ndarray
    digits: np.ndarray
    words: np.ndarray
    alnum_words: np.ndarray
    cells: np.ndarray
    last: np.ndarray
    tex: np.ndarray


def lines_of(pages: Pages) -> Lines:
    return Lines(*_lines(pages.codes, pages.bits, pages.rows))


@numba.njit(cache=True)
def _lines(codes, bits, rows):
    total = len(rows) - 1
    for code in codes:
        total += code == 10
    firsts = np.zeros(len(rows), np.int64)
    spans = np.zeros((2, total), np.int64)
    facts = np.zeros((7, total), np.int32)
    line = 0
    for row in range(len(rows) - 1):
        firsts[row] = line
        start, stop = rows[row], rows[row + 1]
        tabs, bars, previous, in_word = 0, 0, np.uint32(0), False
        spans[0, line] = start
        for at in range(start, stop + 1):
            if at == stop or codes[at] == 10:
                spans[1, line] = at
                facts[4, line] = max(tabs, bars)
                line += 1
                tabs, bars, previous, in_word = 0, 0, np.uint32(0), False
                if at < stop:
                    spans[0, line] = at + 1
                continue
            code, flags = codes[at], bits[at]
            facts[0, line] += (flags & UPPERCASE) != 0
            facts[1, line] += (flags & DECIMAL) != 0
            tabs += code == 9
            bars += code == 124
            if flags & SPACE:
                in_word = False
            else:
                if not in_word:
                    facts[2, line] += 1
                    facts[3, line] += (flags & (ALPHABETIC | DECIMAL)) != 0
                    in_word = True
                facts[5, line] = code
            latin = 65 <= code <= 90 or 97 <= code <= 122
            facts[6, line] += (previous == 92 and (latin or code == 40 or code == 91)) or 0x2200 <= code <= 0x22FF
            previous = code
    firsts[len(rows) - 1] = line
    return firsts, spans[0], spans[1], facts[0], facts[1], facts[2], facts[3], facts[4], facts[5], facts[6]


class Tallies(NamedTuple):
    """Per page [R]: characters of a class, and what its blank-separated words are like."""

    latin: np.ndarray  # letters, digits, newlines and ?!,. of ASCII; as the next two, NeMo Curator's sets (stages/text/utils/constants.py)
    spaces: np.ndarray  # tab, newline, return, backspace, space
    parentheses: np.ndarray
    letters: np.ndarray
    words: np.ndarray
    alphabetic_words: np.ndarray  # with a letter
    symbol_words: np.ndarray  # with a # or an ellipsis character
    stop_words: np.ndarray  # occurrences of STOP_WORDS, case folded
    word_characters: np.ndarray
    median_length: np.ndarray
    longest_word: np.ndarray
    repetitions: np.ndarray  # how often the most repeated run of up to LONGEST_PERIOD words follows itself


def tallies_of(pages: Pages) -> Tallies:
    stops = np.array([_fnv(np.array([ord(letter) for letter in word], np.uint32)) for word in STOP_WORDS], np.uint64)
    facts, medians = _tallies(pages.codes, pages.bits, pages.rows, stops)
    *columns, longest, repetitions = facts
    return Tallies(*columns, medians, longest, repetitions)


@numba.njit(cache=True)
def _fnv(word):
    h = np.uint64(0xCBF29CE484222325)  # FNV-1a (Fowler, Noll, Vo)
    for code in word:
        h = (h ^ np.uint64(code)) * np.uint64(0x100000001B3)
    return h


@numba.njit(cache=True)
def _tallies(codes, bits, rows, stops):
    pages = len(rows) - 1
    facts = np.zeros((11, pages), np.int64)
    medians = np.zeros(pages, np.float64)
    for row in range(pages):
        start, stop = rows[row], rows[row + 1]
        hashes = np.empty((stop - start) // 2 + 1, np.uint64)
        lengths = np.zeros(1025, np.int64)  # longer words count as 1024: the median never lies there on text that passes any rule
        words, at = 0, start
        while at < stop:
            code = codes[at]
            if bits[at] & SPACE or code == 8:
                facts[0, row] += code == 10
                facts[1, row] += code == 32 or 8 <= code <= 10 or code == 13
                at += 1
                continue
            h, lowered = np.uint64(0xCBF29CE484222325), np.uint64(0xCBF29CE484222325)
            letter, symbol, first = False, False, at
            while at < stop:
                code, flags = codes[at], bits[at]
                if flags & SPACE or code == 8:
                    break
                h = (h ^ np.uint64(code)) * np.uint64(0x100000001B3)
                lowered = (lowered ^ np.uint64(code + 32 if 65 <= code <= 90 else code)) * np.uint64(0x100000001B3)
                letter |= (flags & ALPHABETIC) != 0
                symbol |= code == 35 or code == 0x2026
                facts[0, row] += 48 <= code <= 57 or 65 <= code <= 90 or 97 <= code <= 122 or code in (33, 44, 46, 63)  # digits, letters, !,.?
                facts[2, row] += code in (40, 41, 91, 93, 123, 125, 0x27E8, 0x27E9)  # ()[]{}⟨⟩
                facts[3, row] += (flags & ALPHABETIC) != 0
                at += 1
            length = at - first
            hashes[words] = h
            words += 1
            lengths[min(length, 1024)] += 1
            facts[5, row] += letter
            facts[6, row] += symbol
            facts[8, row] += length
            facts[9, row] = max(facts[9, row], length)
            if length <= 4:
                for stop_word in stops:
                    facts[7, row] += lowered == stop_word
        facts[4, row] = words
        medians[row] = _median(lengths, words)
        facts[10, row] = _repetitions(hashes[:words])
    return facts, medians


@numba.njit(cache=True)
def _median(histogram, count):
    """The middle value of `count` values, or the mean of the middle two."""
    if count == 0:
        return 0.0
    seen, low = 0, -1
    for value in range(len(histogram)):
        seen += histogram[value]
        if low < 0 and seen > (count - 1) // 2:
            low = value
        if seen > count // 2:
            return (low + value) / 2
    return 0.0


@numba.njit(cache=True)
def _repetitions(hashes):
    """Most copies of one run of 1..LONGEST_PERIOD words that follow each other; 0 below three copies, as in Dolma."""
    most = 0
    for period in range(1, LONGEST_PERIOD + 1):
        run = 0
        for at in range(period, len(hashes)):
            if hashes[at] == hashes[at - period]:
                run += 1
                if run % period == 0 and run // period + 1 > most:
                    most = run // period + 1
            else:
                run = 0
    return most if most >= 3 else 0
