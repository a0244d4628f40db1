"""Cutting spans out of a column of texts, whole characters only.

Spans may overlap; those marked to stay protect their bytes from the others. What is left to cut is shrunk to whole characters, so that
every remaining text is valid UTF-8.
"""

from dataclasses import dataclass

import numba
import numpy as np


@dataclass(frozen=True)
class Cuts:
    """Disjoint spans in order: row int64 [C], start and end int64 [C] (bytes of the row's text), copies int64 [C] (the largest of what was merged)."""

    row: np.ndarray
    start: np.ndarray
    end: np.ndarray
    copies: np.ndarray


@numba.njit(cache=True, nogil=True)
def _depth(size, begins, ends, chosen):
    """How many chosen spans cover each byte, as differences from byte to byte: int32 [size + 1]."""
    change = np.zeros(size + 1, np.int32)
    for i in range(begins.size):
        if chosen[i]:
            change[begins[i]] += 1
            change[ends[i]] -= 1
    return change


@numba.njit(cache=True, nogil=True)
def _spans(data, offsets, leave, stay, row, start, end):
    """Maximal runs of bytes that leave and do not stay, row by row; returns how many."""
    found = 0
    leaving, staying = 0, 0
    for r in range(offsets.size - 1):
        first, last = offsets[r], offsets[r + 1]
        opened = np.int64(-1)
        for i in range(first, last + 1):
            goes = False
            if i < last:
                leaving += leave[i]
                staying += stay[i]
                goes = leaving > 0 and staying == 0
            if goes and opened < 0:
                opened = i
            elif not goes and opened >= 0:
                a, b = opened, i
                opened = np.int64(-1)
                while a < b and (data[a] & 0xC0) == 0x80:
                    a += 1
                while b > a and b < last and (data[b] & 0xC0) == 0x80:
                    b -= 1
                if a < b:
                    row[found], start[found], end[found] = r, a, b
                    found += 1
    return found


@numba.njit(cache=True, nogil=True)
def _largest(begins, ends, copies, chosen, start, end, largest):
    """largest[c]: the most copies of any chosen span that shares a byte with cut c."""
    for i in range(begins.size):
        if chosen[i]:
            at = np.searchsorted(end, begins[i], side="right")
            while at < start.size and start[at] < ends[i]:
                largest[at] = max(largest[at], copies[i])
                at += 1


def find_cuts(data: np.ndarray, offsets: np.ndarray, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray, copies: np.ndarray, stays: np.ndarray) -> Cuts:
    """What leaves a column of texts.

    Args:
        data, offsets: the column (`kernels.ngrams.utf8_column`): bytes uint8, int64 [rows + 1].
        rows, starts, ends, copies: spans [S] in any order, in bytes of their row's text, and how often their text stands in the corpus.
        stays: bool [S]; a span that stays keeps its bytes whatever else covers them.
    """
    base = offsets[0]
    text, bounds = data[base : offsets[-1]], offsets - base
    begins, stops = bounds[rows] + starts, bounds[rows] + ends
    leaves = ~stays
    leave, stay = _depth(text.size, begins, stops, leaves), _depth(text.size, begins, stops, stays)
    row, start, end = (np.empty(rows.size, np.int64) for _ in range(3))  # a cut begins where a leaving span begins or a staying one ends
    count = _spans(text, bounds, leave, stay, row, start, end)
    row, start, end = row[:count], start[:count], end[:count]
    largest = np.zeros(count, np.int64)
    _largest(begins, stops, copies.astype(np.int64), leaves, start, end, largest)
    return Cuts(row, start - bounds[row], end - bounds[row], largest)


def cut(data: np.ndarray, offsets: np.ndarray, cuts: Cuts) -> tuple[np.ndarray, np.ndarray]:
    """The column without the cuts: (bytes, offsets)."""
    text, bounds = data[offsets[0] : offsets[-1]], offsets - offsets[0]
    change = np.zeros(text.size + 1, np.int8)
    change[bounds[cuts.row] + cuts.start] += 1  # cuts are disjoint and never touch: no index repeats
    change[bounds[cuts.row] + cuts.end] -= 1
    keep = np.cumsum(change[:-1], dtype=np.int8) == 0
    kept = np.concatenate((np.zeros(1, np.int64), np.cumsum(keep)))
    return text[keep], kept[bounds]
