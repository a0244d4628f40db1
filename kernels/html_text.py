"""Chosen blocks -> readable text: white space collapsed, and what the layout meant said by characters.

A paragraph and a heading stand alone between blank lines; items have markers and indentation; rows of data tables are lines with " | " between
cells (an empty cell keeps its place); <pre> keeps every line and space. A table is data where its cells hold little text and no table;
the rest are layout, and their cells are read as paragraphs.
"""

import numba
import numpy as np

from kernels.html_blocks import BLOCK, BLOCKS, BREAK, CHARACTERS, END, FIRST, NODE, PARENT, TAG
from kernels.html_tokens import TEXT

ITEM, ORDERED, LIST, CELL, ROW, TABLE, CODE, TERM = range(1, 9)  # what a tag is to the writer
CELL_BLOCKS, ROW_CHARACTERS = 4, 1500  # a row with a fuller cell, or longer, is layout
_DEEPEST = 8  # levels of list that are indented
_SPACE, _NEWLINE, _BAR, _HYPHEN, _DOT, _ZERO = 32, 10, 124, 45, 46, 48


@numba.njit(cache=True, nogil=True)
def place(nodes, sums, roles, item, cell, row, lists, order):
    """For each container, all int32 [N]: the item, cell and row of a data table it is in (0: none), how many lists, and its order among its siblings."""
    layout = np.zeros(nodes.shape[0], np.bool_)
    children = np.zeros(nodes.shape[0], np.int32)
    item[0] = cell[0] = row[0] = lists[0] = order[0] = 0
    for node in range(1, nodes.shape[0]):
        parent, role = nodes[node, PARENT], roles[nodes[node, TAG]]
        item[node], cell[node], row[node], lists[node] = item[parent], cell[parent], row[parent], lists[parent]
        if role == ITEM:
            item[node] = node
        elif role in (LIST, ORDERED):
            lists[node] += 1
            item[node] = 0
        elif role == ROW:
            row[node], cell[node] = node, 0
            layout[node] = sums[node, CHARACTERS] > ROW_CHARACTERS
        elif role == CELL:
            cell[node] = node
            layout[row[node]] |= sums[node, BLOCKS] > CELL_BLOCKS
        elif role == TABLE:
            layout[row[node]] = True
            row[node] = cell[node] = 0
        if role in (ITEM, CELL):
            children[parent] += 1
            order[node] = children[parent]
    for node in range(1, nodes.shape[0]):
        if layout[row[node]]:
            row[node] = cell[node] = 0


@numba.njit(cache=True, nogil=True)
def _text(data, events, block, traits, code, flat, out, at):
    """Write one block's text from `at` on; returns where it ends. `flat` writes line breaks as spaces."""
    start = at
    space = False
    for event in range(block[FIRST], block[END]):
        tag = events[event, 0]
        if tag == TEXT:
            for i in range(events[event, 1], events[event, 2]):
                byte = data[i]
                if code:
                    if byte != 13 and not (at == start and byte == _NEWLINE):
                        out[at] = byte
                        at += 1
                elif byte <= 32:
                    space = True
                else:
                    if space and at > start and out[at - 1] != _NEWLINE:
                        out[at] = _SPACE
                        at += 1
                    space = False
                    out[at] = byte
                    at += 1
        elif tag > TEXT or -tag < traits.size:
            trait = traits[abs(tag)]
            if trait & BREAK and not flat:
                if at > start:
                    out[at] = _NEWLINE
                    at += 1
                space = False
            elif trait & BREAK:
                space = True
            elif code and trait & BLOCK and at > start and out[at - 1] != _NEWLINE:
                out[at] = _NEWLINE
                at += 1
    while at > start and out[at - 1] <= 32:
        at -= 1
    return at


@numba.njit(cache=True, nogil=True)
def _indent(out, at, lists):
    for _ in range(2 * min(max(lists - 1, 0), _DEEPEST)):
        out[at] = _SPACE
        at += 1
    return at


@numba.njit(cache=True, nogil=True)
def _number(out, at, number):
    digits = 1
    while 10**digits <= number:
        digits += 1
    for place in range(digits):
        out[at + digits - 1 - place] = _ZERO + number // 10**place % 10
    return at + digits


@numba.njit(cache=True, nogil=True)
def write(data, events, nodes, blocks, keep, traits, roles, item, cell, row, lists, order, out):
    """Write the blocks of `keep` bool [B] into `out` uint8 (2 * page + 64 * blocks bytes suffice); returns the length."""
    at = 0
    before = -1  # container of the block written last
    for b in range(blocks.shape[0]):
        if not keep[b]:
            continue
        node = blocks[b, NODE]
        role = roles[nodes[node, TAG]]
        if before >= 0:
            if row[node] and row[node] == row[before]:
                if cell[node] == cell[before]:
                    out[at] = _SPACE
                    at += 1
                for _ in range(order[cell[node]] - order[cell[before]]):
                    out[at], out[at + 1], out[at + 2] = _SPACE, _BAR, _SPACE
                    at += 3
            else:
                together = (
                    (row[node] and row[before] and nodes[row[node], PARENT] == nodes[row[before], PARENT])
                    or (item[node] and item[before])
                    or (role == TERM and roles[nodes[before, TAG]] == TERM)
                )
                out[at] = _NEWLINE
                at += 1
                if not together:
                    out[at] = _NEWLINE
                    at += 1
        if item[node] and not row[node] and role != CODE:
            at = _indent(out, at, lists[node])
            if before < 0 or item[before] != item[node]:
                if item[before] < item[node] or before < 0:  # an item goes on after the list inside it without a second marker
                    if roles[nodes[nodes[item[node], PARENT], TAG]] == ORDERED:
                        at = _number(out, at, order[item[node]])
                        out[at] = _DOT
                    else:
                        out[at] = _HYPHEN
                    out[at + 1] = _SPACE
                    at += 2
            else:
                out[at] = out[at + 1] = _SPACE
                at += 2
        at = _text(data, events, blocks[b], traits, role == CODE, row[node] > 0, out, at)
        before = node
    return at
