"""HTML bytes -> a stream of tags and text runs, in one pass and linear time, without a tree of objects.

A page's boilerplate is told from its text by where things stand and what their containers are called; neither needs a DOM with
nodes to call methods on. The tokenizer follows the HTML standard (section 13.2.5) as far as content goes: attribute quoting, comments, elements whose
content is raw text. What the standard calls a parse error is never an error here, and every byte is read once, whatever the page does.

An event is a row (tag, start, end): a text run (`TEXT`, its span), an opening tag (its id, the span of its attributes) or a closing tag
(minus its id). Each opening tag also has `cues`: the bits, chosen by the caller, of words in its class, id, role and itemprop and of what hides it.
Names and words are looked up by FNV-1a hash in the tables that `table` makes, so which tags and words exist is data.
"""

import numba
import numpy as np
from numba import uint64

TEXT, UNSEEN = 0, -(1 << 15)  # in place of a tag's id; the second: text that is not shown
WORDS, STYLE, HIDDEN, ARIA_HIDDEN, ADDRESS = 1, 2, 3, 4, 5  # what an attribute is read for
ATTRIBUTES = {"class": WORDS, "id": WORDS, "role": WORDS, "itemprop": WORDS, "style": STYLE, "hidden": HIDDEN, "aria-hidden": ARIA_HIDDEN, "href": ADDRESS}
HIDDEN_CUE, HREF_CUE = 1 << 63, 1 << 62  # the caller's cues use the bits below
PADDING = 8  # bytes after the page that the kernels may read
_OFFSET, _PRIME = 0xCBF29CE484222325, 0x100000001B3  # FNV-1a, 64 bits
_LT, _GT, _SLASH, _EQUALS, _DASH, _BANG, _QUESTION, _QUOTE, _APOSTROPHE = (ord(c) for c in "<>/=-!?\"'")


def fnv(name: str) -> int:
    """FNV-1a of a lower-case name's UTF-8 bytes."""
    value = _OFFSET
    for byte in name.encode():
        value = ((value ^ byte) * _PRIME) & (1 << 64) - 1
    return value


def table(values: dict[str, int]) -> np.ndarray:
    """Open-addressing table uint64 [slots, 2] of (hash, value); an empty slot's hash is 0, and a value is never 0."""
    slots = 1 << (4 * len(values) + 1).bit_length()
    rows = np.zeros((slots, 2), np.uint64)
    for name, value in values.items():
        slot = fnv(name) & (slots - 1)
        while rows[slot, 0]:
            slot = (slot + 1) & (slots - 1)
        rows[slot] = fnv(name), value
    return rows


ATTRIBUTE_TABLE = table(ATTRIBUTES)


@numba.njit(cache=True, nogil=True, inline="always")
def _find(rows, name_hash):
    mask = uint64(rows.shape[0] - 1)
    slot = name_hash & mask
    while rows[slot, 0] != 0:
        if rows[slot, 0] == name_hash:
            return rows[slot, 1]
        slot = (slot + uint64(1)) & mask
    return uint64(0)


@numba.njit(cache=True, nogil=True, inline="always")
def _is_letter(byte):
    return 97 <= (byte | 32) <= 122


@numba.njit(cache=True, nogil=True)
def _words(data, start, end, rows):
    """The cues of the words in an attribute's value: runs of letters, cut where lower case turns upper (articleBody)."""
    found = uint64(0)
    value = uint64(_OFFSET)
    was_lower = False
    for i in range(start, end + 1):
        byte = data[i] if i < end else uint64(32)
        letter = _is_letter(byte)
        if not letter or (was_lower and byte < 97):
            if value != uint64(_OFFSET):
                found |= _find(rows, value)
            value = uint64(_OFFSET)
        if letter:
            value = (value ^ uint64(byte | 32)) * uint64(_PRIME)
        was_lower = letter and byte >= 97
    return found


@numba.njit(cache=True, nogil=True)
def _hides(data, start, end):
    """Whether a style says display:none or visibility:hidden: the only values in use with "none" and "hidden" after such a name."""
    for i in range(start, end - 9):
        if (data[i] | 32) == 100 and (data[i + 1] | 32) == 105 and (data[i + 6] | 32) == 121:  # d i .... y
            j = i + 7
            while j < end and (data[j] <= 32 or data[j] == 58):
                j += 1
            if j + 3 < end and (data[j] | 32) == 110 and (data[j + 1] | 32) == 111 and (data[j + 2] | 32) == 110:  # n o n
                return True
        if (data[i] | 32) == 118 and (data[i + 1] | 32) == 105 and (data[i + 9] | 32) == 121:  # v i ....... y
            j = i + 10
            while j < end and (data[j] <= 32 or data[j] == 58):
                j += 1
            if j + 3 < end and (data[j] | 32) == 104 and (data[j + 1] | 32) == 105:  # h i
                return True
    return False


@numba.njit(cache=True, nogil=True)
def _attributes(data, at, size, attribute_rows, word_rows):
    """(position after the tag's ">" or -1 at the end of the page, cues, whether it ends in "/>")."""
    cues = uint64(0)
    closed = False
    while at < size:
        byte = data[at]
        if byte == _GT:
            return at + 1, cues, closed
        closed = byte == _SLASH
        if byte <= 32 or byte == _SLASH:
            at += 1
            continue
        name = uint64(_OFFSET)
        first = at
        while at < size and data[at] > 32 and data[at] != _GT and data[at] != _SLASH and (data[at] != _EQUALS or at == first):
            name = (name ^ uint64(data[at] | 32 if _is_letter(data[at]) else data[at])) * uint64(_PRIME)
            at += 1
        while at < size and data[at] <= 32:
            at += 1
        start = end = at
        if at < size and data[at] == _EQUALS:
            at += 1
            while at < size and data[at] <= 32:
                at += 1
            quote = data[at] if at < size else 0
            if quote in (_QUOTE, _APOSTROPHE):
                at += 1
                start = at
                while at < size and data[at] != quote:
                    at += 1
                end = at
                at += 1
            else:
                start = at
                while at < size and data[at] > 32 and data[at] != _GT:
                    at += 1
                end = at
        kind = _find(attribute_rows, name)
        if kind == WORDS:
            cues |= _words(data, start, end, word_rows)
        elif kind == ADDRESS:
            cues |= uint64(HREF_CUE)
        elif (
            kind == HIDDEN
            or (kind == ARIA_HIDDEN and end - start == 4 and (data[start] | 32) == 116)  # true
            or (kind == STYLE and _hides(data, start, end))
        ):
            cues |= uint64(HIDDEN_CUE)
    return -1, cues, False


@numba.njit(cache=True, nogil=True)
def _raw_end(data, at, size, name, length):
    """Where the raw text from `at` on ends: at "</name", or at the end of the page."""
    while at < size:
        if data[at] == _LT and data[at + 1] == _SLASH and at + 2 + length <= size:
            value = uint64(_OFFSET)
            for i in range(at + 2, at + 2 + length):
                value = (value ^ uint64(data[i] | 32)) * uint64(_PRIME)
            if value == name and not _is_letter(data[at + 2 + length]):
                return at
        at += 1
    return size


@numba.njit(cache=True, nogil=True)
def tokenize(data, size, tag_rows, other, raw, word_rows, attribute_rows, events, cues):
    """Fill `events` int32 [E, 3] and `cues` uint64 [E] from data[:size] (uint8, `PADDING` zeros after it).

    `other` is the id of tags not in `tag_rows`; `raw` bool [ids] marks elements of raw text. Returns the number of events, or -1 if E was too small.
    """
    count = 0
    text = at = 0
    while at < size:
        if data[at] != _LT:
            at += 1
            continue
        following = data[at + 1]
        if not (_is_letter(following) or following in (_SLASH, _BANG, _QUESTION)):
            at += 1  # "a < b": text
            continue
        if count + 4 > events.shape[0]:
            return -1
        if at > text:
            events[count, 0], events[count, 1], events[count, 2] = TEXT, text, at
            count += 1
        if following == _BANG and data[at + 2] == _DASH and data[at + 3] == _DASH:
            at += 4
            if data[at] == _GT:  # <!--> is a whole comment
                at += 1
            else:
                while at < size and not (data[at] == _DASH and data[at + 1] == _DASH and data[at + 2] == _GT):
                    at += 1
                at += 3
            text = at
            continue
        closing = following == _SLASH
        if following in (_BANG, _QUESTION) or (closing and not _is_letter(data[at + 2])):
            while at < size and data[at] != _GT:
                at += 1
            at += 1
            text = at
            continue
        at += 2 if closing else 1
        name, first = uint64(_OFFSET), at
        while at < size and data[at] > 32 and data[at] != _GT and data[at] != _SLASH:
            name = (name ^ uint64(data[at] | 32 if _is_letter(data[at]) else data[at])) * uint64(_PRIME)
            at += 1
        length, start = at - first, at
        tag = numba.int32(_find(tag_rows, name))
        known = tag != 0
        if not known:
            tag = numba.int32(other)
        at, found, closed = _attributes(data, at, size, attribute_rows, word_rows)
        if at < 0:  # the page ends inside a tag
            return count
        events[count, 0], events[count, 1], events[count, 2], cues[count] = -tag if closing else tag, start, at - 1, found
        count += 1
        if not closing:
            if closed and not known:  # <x:y/>: XHTML's own elements do end there
                events[count, 0], events[count, 1], events[count, 2] = -tag, start, at - 1
                count += 1
            elif raw[tag]:
                end = _raw_end(data, at, size, name, length)
                if end > at:
                    events[count, 0], events[count, 1], events[count, 2] = TEXT, at, end
                    count += 1
                at = end
        text = at
    if size > text and count < events.shape[0]:
        events[count, 0], events[count, 1], events[count, 2] = TEXT, text, size
        count += 1
    return count
