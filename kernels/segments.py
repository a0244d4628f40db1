"""Lines, paragraphs and sentences of a text as 64-bit hashes with their byte spans.

Text that many documents share is found piece by piece. A text is cut into atoms that tile it: an atom begins at the first character
that is no white space after a border and ends where the next one begins, so that what is cut out takes the blank that follows along.
Borders are
- line: a line feed;
- paragraph: a blank line;
- sentence: a line feed, one of .!? with white space behind it (closing quotes and brackets may stand between), or one of 。！？ anywhere.
Atoms without a word (rules of dashes, bullets alone) belong to the atom before them.

A piece is `length` atoms in a row, hashed over their normalised words (`kernels.ngrams`: case, accents, punctuation and numbers as the
rules say); lengths above one overlap (C4's spans of three sentences). Pieces of fewer than `least` words are not reported.
`pieces_reference` says the same in plain Python; the tests hold the two together.
"""

import re
from functools import reduce
from typing import Literal

import numba
import numpy as np
from numba import uint64

from kernels.ngrams import GRAM_MULTIPLIER, MASK, Normalisation, fold_table, hash_word_reference, hash_words, mix, mix_fast, utf8_column, words_reference

Border = Literal["line", "paragraph", "sentence"]
BORDERS: dict[Border, str] = {  # what ends an atom, white space behind it included; \s is ASCII white space here, as in the fast version
    "line": r"\n\s*",
    "paragraph": r"\n[ \t\r\v\f]*\n\s*",
    "sentence": r"""\n\s*|[.!?]["')\]”’»]*\s+|[。！？]["')\]”’»]*\s*""",
}
LINE, PARAGRAPH, SENTENCE = range(3)


# ------------------------------------------------------------------------------------------------------------- reference


def pieces_reference(text: str, border: Border, length: int, least: int, rules: Normalisation) -> list[tuple[int, int, int]]:
    """(hash, start, end) of each piece, spans in bytes of UTF-8."""
    cuts = [match.end() for match in re.finditer(BORDERS[border], text, re.ASCII) if text[: match.end()].strip(" \t\r\n\v\f")]
    atoms: list[tuple[int, int, int, int]] = []  # hash, words, start, end
    for start, end in zip([0, *cuts], [*cuts, len(text)]):
        words = [hash_word_reference(word) for word in words_reference(text[start:end], rules)]
        if words:
            atoms.append((_chain(words), len(words), len(text[:start].encode()) if atoms else 0, 0))
    ends = [atom[2] for atom in atoms[1:]] + [len(text.encode())]
    windows = [(atoms[i : i + length], ends[i + length - 1]) for i in range(len(atoms) - length + 1)]
    return [(_chain([atom[0] for atom in some]), some[0][2], end) for some, end in windows if sum(atom[1] for atom in some) >= least]


def _chain(hashes: list[int]) -> int:
    return mix(reduce(lambda state, value: (state * GRAM_MULTIPLIER + value) & MASK, hashes, 0))


# ------------------------------------------------------------------------------------------------------------------ fast


@numba.njit(cache=True, nogil=True, inline="always")
def _blank(byte):
    return byte == 32 or 9 <= byte <= 13


@numba.njit(cache=True, nogil=True)
def _closers(data, i, end):
    """The end of closing quotes and brackets from `i` on: " ' ) ] and ” ’ »."""
    while i < end:
        byte = data[i]
        if byte == 34 or byte == 39 or byte == 41 or byte == 93:
            i += 1
        elif byte == 0xE2 and i + 2 < end and data[i + 1] == 0x80 and (data[i + 2] == 0x9D or data[i + 2] == 0x99):
            i += 3
        elif byte == 0xC2 and i + 1 < end and data[i + 1] == 0xBB:
            i += 2
        else:
            break
    return i


@numba.njit(cache=True, nogil=True)
def _border_end(data, i, end, border):
    """Where the next atom begins if a border begins at byte `i`, else -1."""
    byte = data[i]
    if byte == 10:
        feeds = 1
        i += 1
        while i < end and _blank(data[i]):
            feeds += data[i] == 10
            i += 1
        return i if border != PARAGRAPH or feeds > 1 else -1
    if border != SENTENCE:
        return -1
    wide = False
    if i + 2 < end:
        second, third = data[i + 1], data[i + 2]
        wide = (byte == 0xE3 and second == 0x80 and third == 0x82) or (byte == 0xEF and second == 0xBC and (third == 0x81 or third == 0x9F))
    if not wide and byte != 46 and byte != 33 and byte != 63:
        return -1
    i = _closers(data, i + (3 if wide else 1), end)
    if not wide and (i >= end or not _blank(data[i])):
        return -1
    while i < end and _blank(data[i]):
        i += 1
    return i


@numba.njit(cache=True, nogil=True)
def _pieces(data, offsets, border, length, least, table, keys, rows, starts, ends):
    """Pieces of every row; the arrays hold one entry for each two bytes and each row. Returns how many."""
    longest = 0
    for row in range(offsets.size - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    words = np.empty(longest, np.uint64)
    no_spans = np.empty(0, np.int64)
    hashes = np.empty(longest // 2 + 2, np.uint64)
    counts = np.empty(longest // 2 + 2, np.int64)
    firsts = np.empty(longest // 2 + 2, np.int64)
    found = 0
    for row in range(offsets.size - 1):
        begin, end = offsets[row], offsets[row + 1]
        atoms = 0
        start = begin
        i = begin
        while i < end and _blank(data[i]):
            i += 1
        while start < end:
            after = np.int64(-1)
            while i < end and after < 0:
                after = _border_end(data, i, end, border)
                i = after if after >= 0 else i + 1
            stop = after if after >= 0 else end
            count = hash_words(data, start, stop, table, words, no_spans, no_spans)
            if count:
                state = uint64(0)
                for j in range(count):
                    state = state * uint64(GRAM_MULTIPLIER) + words[j]
                hashes[atoms] = mix_fast(state)
                counts[atoms] = count
                firsts[atoms] = start if atoms else begin
                atoms += 1
            start = stop
        firsts[atoms] = end
        for first in range(atoms - length + 1):
            state = uint64(0)
            total = 0
            for j in range(first, first + length):
                state = state * uint64(GRAM_MULTIPLIER) + hashes[j]
                total += counts[j]
            if total >= least:
                keys[found] = mix_fast(state)
                rows[found] = row
                starts[found] = firsts[first] - begin
                ends[found] = firsts[first + length] - begin
                found += 1
    return found


def pieces(column, border: Border, length: int, least: int, rules: Normalisation) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The pieces of an Arrow string column, in order: (hash uint64 [P], row int64 [P], start uint32 [P], end uint32 [P]); spans in bytes of their row."""
    data, offsets = utf8_column(column)
    room = int(offsets[-1] - offsets[0]) // 2 + offsets.size
    keys, rows, starts, ends = (np.empty(room, kind) for kind in (np.uint64, np.int64, np.uint32, np.uint32))
    kinds = {"line": LINE, "paragraph": PARAGRAPH, "sentence": SENTENCE}
    count = _pieces(data, offsets, kinds[border], length, least, fold_table(rules), keys, rows, starts, ends)
    return keys[:count], rows[:count], starts[:count], ends[:count]
