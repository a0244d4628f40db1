"""The three loops between documents and a batch of windows: pack them, cut them, copy them.

    best_fit   document lengths -> which documents share a window           (once, when a window index is written)
    cut        token ranges of a shard -> the documents under them          (each batch, concatenated windows)
    gather     pieces of documents -> ids, labels, mask, seq_idx, positions (each batch)

numpy can do each of them, at a dozen passes over the data or a Python loop a window; compiled they are one pass, which is what
lets boundaries be part of every batch for free. `best_fit_reference` is the readable form; the tests hold the other two to
plain Python as well.
"""

import numpy as np
from numba import njit


def best_fit_reference(lengths: np.ndarray, capacity: int) -> list[list[tuple[int, int, int]]]:
    """Windows of pieces (document, offset, length) for documents of `lengths` tokens: best-fit decreasing.

    Ding et al. 2024, "Fewer Truncations Improve Language Modeling": longer documents give up whole windows; remainders and
    short documents go, longest first, where they leave the least room. Ties go to the earlier document and to the window that
    came to this room last, so equal lengths give equal windows.
    """
    windows: list[list[tuple[int, int, int]]] = []
    remainders: list[tuple[int, int, int]] = []
    for document, length in enumerate(np.asarray(lengths).tolist()):
        for offset in range(0, length - capacity + 1, capacity):
            windows.append([(document, offset, capacity)])
        if rest := length % capacity:
            remainders.append((document, length - rest, rest))
    room: list[list[int]] = [[] for _ in range(capacity + 1)]  # windows by the tokens they have room for
    for piece in sorted(remainders, key=lambda piece: -piece[2]):  # stable
        space = next((space for space in range(piece[2], capacity) if room[space]), capacity)
        if space == capacity:
            windows.append([])
        window = room[space].pop() if space < capacity else len(windows) - 1
        windows[window].append(piece)
        room[space - piece[2]].append(window)
    return windows


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """(pieces int64 [m, 3] of (document, offset, length), window of each int64 [m]), equal to the reference read window by window."""
    lengths = np.asarray(lengths, np.int64)
    whole, rest = lengths // capacity, lengths % capacity
    full = int(whole.sum())
    documents = np.repeat(np.arange(len(lengths)), whole)
    offsets = (np.arange(full) - np.repeat(np.cumsum(whole) - whole, whole)) * capacity
    order = np.flatnonzero(rest)[np.argsort(-rest[rest > 0], kind="stable")]
    pieces = np.concatenate([
        np.stack([documents, offsets, np.full(full, capacity)], axis=1),
        np.stack([order, lengths[order] - rest[order], rest[order]], axis=1),
    ])
    windows = np.concatenate([np.arange(full), full + _place(rest[order], capacity)])
    by_window = np.argsort(windows, kind="stable")
    return pieces[by_window], windows[by_window]


@njit(cache=True, nogil=True)
def _place(sizes, capacity):
    """The window of each piece of decreasing size. Rooms are stacks threaded through `below`; a bit says which are not empty."""
    chosen = np.empty(sizes.size, np.int64)
    below = np.empty(sizes.size, np.int64)
    top = np.full(capacity + 1, -1, np.int64)
    some = np.zeros(capacity // 64 + 1, np.uint64)
    windows = 0
    for piece in range(sizes.size):
        size = sizes[piece]
        space = _first_set(some, size)
        if space < 0:
            window, space = windows, capacity
            windows += 1
        else:
            window = top[space]
            top[space] = below[window]
            if top[space] < 0:
                some[space >> 6] &= ~(np.uint64(1) << np.uint64(space & 63))
        left = space - size
        if left:
            below[window] = top[left]
            top[left] = window
            some[left >> 6] |= np.uint64(1) << np.uint64(left & 63)
        chosen[piece] = window
    return chosen


@njit(inline="always")
def _first_set(words, start):
    """The first bit that is set at or after `start`, or -1."""
    word = start >> 6
    here = words[word] & ~((np.uint64(1) << np.uint64(start & 63)) - np.uint64(1))
    while here == 0:
        word += 1
        if word == words.size:
            return -1
        here = words[word]
    bit = word << 6
    while here & np.uint64(1) == 0:
        here >>= np.uint64(1)
        bit += 1
    return bit


@njit(cache=True, nogil=True)
def cut(ends, starts, stops):
    """The documents under token ranges [starts, stops) of a shard whose documents end at `ends` (cumulative, unsigned).

    Returns int64 [pieces, 4] of (range, document, offset in the document, length), in reading order; empty documents have none.
    """
    total = 0
    firsts = np.empty(starts.size, np.int64)
    for place in range(starts.size):
        firsts[place] = _after(ends, starts[place])
        document = firsts[place]
        while True:
            total += 1
            if np.int64(ends[document]) >= stops[place]:
                break
            document += 1
    pieces = np.empty((total, 4), np.int64)
    row = 0
    for place in range(starts.size):
        document, at = firsts[place], starts[place]
        begin = np.int64(ends[document - 1]) if document else 0
        while at < stops[place]:
            end = np.int64(ends[document])
            if end > at:
                upto = min(end, stops[place])
                pieces[row, 0], pieces[row, 1], pieces[row, 2], pieces[row, 3] = place, document, at - begin, upto - at
                row += 1
                at = upto
            begin = end
            document += 1
    return pieces[:row]


@njit(inline="always")
def _after(ends, token):
    """The document that holds a token: the first whose end lies beyond it."""
    low, high = 0, ends.size - 1
    while low < high:
        middle = (low + high) // 2
        if np.int64(ends[middle]) > token:
            high = middle
        else:
            low = middle + 1
    return low


@njit(cache=True, nogil=True)
def gather(tokens, ends, learnt, pieces, numbers, places, ids, labels, mask, seq_idx, positions):
    """Copy pieces of one shard's documents into flat batch arrays.

    Args:
        tokens, ends: the shard. learnt: uint8 [tokens] of which count in the loss, or empty where all do.
        pieces: int64 [n, 3] of (document, offset, length); numbers int64 [n]: the piece's place in its row; places int64 [n]: where it goes.
        ids, labels: int64 [B * T], written; mask uint8; seq_idx, positions int32.
    """
    for piece in range(pieces.shape[0]):
        document, length, at = pieces[piece, 0], pieces[piece, 2], places[piece]
        first = pieces[piece, 1] + (np.int64(ends[document - 1]) if document else 0)
        inside = length if first + length < np.int64(ends[document]) else length - 1  # tokens with a next one in the document
        here, following = tokens[first : first + length], tokens[first + 1 : first + 1 + inside]
        to_ids, to_labels, to_positions = ids[at : at + length], labels[at : at + inside], positions[at : at + length]
        for step in range(length):
            to_ids[step] = here[step]
            to_positions[step] = step
        for step in range(inside):
            to_labels[step] = following[step]
        if learnt.size:
            mask[at : at + inside] = learnt[first + 1 : first + 1 + inside]
        else:
            mask[at : at + inside] = 1
        if inside < length:
            labels[at + inside], mask[at + inside] = 0, 0
        seq_idx[at : at + length] = numbers[piece]
