"""Which of some words a page mentions anywhere in its bytes, and which tags hold one in their attributes: in one pass, whatever the page.

Twenty searches, one a word, read a large page twenty times. Here a window as long as the shortest word slides over it (Wu and Manber, "A fast algorithm for
multi-pattern searching", 1994): the two bytes at its end say how far it may jump, which is nearly its whole length almost everywhere.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
from numba import int64, uint64


class Needles(NamedTuple):
    """Up to 64 words of at least 2 bytes; bit i of `mentions` is word i."""

    jump: np.ndarray  # uint8 [65536]: by the window's last two bytes; 0: a word may begin at the window
    letters: np.ndarray  # uint8 [sum of lengths]
    ends: np.ndarray  # int64 [words + 1]
    window: int  # bytes of the shortest word


def needles(words: Sequence[bytes]) -> Needles:
    window = min(map(len, words))
    assert window >= 2 and len(words) <= 64
    jump = np.full(1 << 16, window - 1, np.uint8)
    for word in words:
        for end in range(2, window + 1):
            pair = word[end - 2] << 8 | word[end - 1]
            jump[pair] = min(jump[pair], window - end)
    return Needles(jump, np.frombuffer(b"".join(words), np.uint8), np.cumsum([0, *map(len, words)]), window)


@numba.njit(cache=True, nogil=True)
def mentions(data, size, jump, letters, ends, window):
    """The words that occur in data[:size] (uint8), as bits."""
    found = uint64(0)
    last = int64(window - 1)
    while last < size:
        by = jump[int64(data[last - 1]) << 8 | int64(data[last])]
        if by:
            last += by
            continue
        start = last - window + 1
        for word in range(ends.size - 1):
            at, end = ends[word], ends[word + 1]
            if letters[at] == data[start] and start + end - at <= size:
                i = at + 1
                while i < end and data[start + i - at] == letters[i]:
                    i += 1
                if i == end:
                    found |= uint64(1) << uint64(word)
        last += 1
    return found


@numba.njit(cache=True, nogil=True)
def tags_holding(data, events, tag, word, longest, found):
    """The events that open a `tag` whose attributes hold `word` (uint8, lower case; any case in the page) within their first `longest` bytes.

    Fills `found` int64 until it is full; returns how many.
    """
    count = 0
    for event in range(events.shape[0]):
        if events[event, 0] != tag:
            continue
        last = min(events[event, 2], events[event, 1] + longest) - word.size
        for at in range(events[event, 1], last + 1):
            i = 0
            while i < word.size:
                byte = data[at + i]
                if (byte | 32 if 65 <= byte <= 90 else byte) != word[i]:
                    break
                i += 1
            if i == word.size:
                found[count] = event
                count += 1
                break
        if count == found.size:
            break
    return count
