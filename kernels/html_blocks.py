"""A stream of tags -> blocks of text with their counts, and the containers they stand in.

A block is a run of text that no block-level tag interrupts: a paragraph, a heading, a cell, a button. Containers are the open elements, one
row each in document order, so an element's descendants are the rows up to its `LAST`: subtree sums are one pass backwards, and nothing is
recursive. Closing tags that are left out (</p>, </li>, </td> ...) are implied where the standard implies them; elements deeper than
`MAX_DEPTH` are not opened, as in Chromium, so that hostile nesting costs nothing.

Inside <pre> nothing ends a block: its lines belong together.
"""

import numba
import numpy as np
from numba import int64, uint64

from kernels.html_tokens import HIDDEN_CUE, HREF_CUE, TEXT, UNSEEN

MAX_DEPTH = 512  # Chromium's limit
# What a tag does (bits of `traits`).
BLOCK, VOID, SKIP, RAW, BREAK, PRE, LINK, FENCE, FORMULA, PARAGRAPH = (1 << i for i in range(10))
SKIP_CUE = 1 << 61  # of an element that is never text: line numbers, heading anchors, rendered formulas
# Columns of a container's row.
PARENT, TAG, LAST, DEPTH = range(4)
# Columns of a block's row; from CHARACTERS on: counts, summed over subtrees by `sum_subtrees`.
FIRST, END, NODE, ENDS_STOP = range(4)
CHARACTERS, LINK_CHARACTERS, WORDS, STOPS, BLOCKS, LONG = range(4, 10)
COLUMNS = 10
# A block counts as running text, and LONG holds its characters outside links, if these are a line of print or enough words (Han and kana take few
# characters), more than those in links, and with a full stop.
LINE, LINE_WORDS = 80, 14


@numba.njit(cache=True, nogil=True)
def _count(data, start, end, row, in_link):
    """Add a text run's counts to a block's row."""
    inside = False
    characters = words = wide = 0
    i = start
    while i < end:
        byte = data[i]
        i += 1
        if byte <= 32:
            inside = False
            continue
        if 0x80 <= byte < 0xC0:  # inside a character
            continue
        stop, letter = False, True
        if byte < 0x80:
            if byte == 38:  # & starts an entity: one character, or a space
                j = i
                while j < end and j < i + 10 and (48 <= data[j] <= 57 or 97 <= (data[j] | 32) <= 122 or data[j] == 35):
                    j += 1
                if j < end and data[j] == 59:
                    if data[i] == 110 and data[i + 1] == 98:  # nbsp
                        i, inside = j + 1, False
                        continue
                    i = j + 1
            letter = 48 <= byte <= 57 or 97 <= (byte | 32) <= 122
            stop = byte == 46 or byte == 33 or byte == 63
        elif byte == 0xC2:
            if data[i] == 0xA0:  # no-break space
                i, inside = i + 1, False
                continue
            letter = False
        elif byte == 0xE2:
            letter = data[i] >= 0xBA  # E2 80..B9: punctuation and symbols
            stop = data[i] == 0x80 and data[i + 1] == 0xA6  # an ellipsis
        elif byte == 0xE3 and data[i] == 0x80:
            letter, stop = False, data[i + 1] == 0x82
        elif byte == 0xEF and data[i] == 0xBC:
            letter, stop = False, data[i + 1] == 0x81 or data[i + 1] == 0x9F
        elif 0xE3 <= byte <= 0xE9:
            wide += 1  # kana and Han: about two characters a word
            inside = True
        characters += 1
        if letter and not inside:
            words += 1
        inside = letter or (inside and (byte == 39 or byte == 0xE2))
        row[STOPS] += stop
        if letter or stop:  # a quotation mark or a bracket may follow
            row[ENDS_STOP] = stop
    row[CHARACTERS] += characters
    row[WORDS] += words + (wide + 1) // 2
    if in_link:
        row[LINK_CHARACTERS] += characters


@numba.njit(cache=True, nogil=True)
def _pop(stack, depth, to, nodes, count, opened):
    """Close the elements above stack height `to`."""
    while depth > to:
        depth -= 1
        node = stack[depth]
        nodes[node, LAST] = count
        opened[nodes[node, TAG]] -= 1
    return depth


@numba.njit(cache=True, nogil=True)
def _implied(stack, depth, nodes, tag, traits, siblings, fences):
    """The stack height at which an opening `tag` stands once the elements it ends by its coming are closed."""
    if traits[tag] & BLOCK:  # a block ends an open paragraph
        at = depth
        while at > 0 and not traits[nodes[stack[at - 1], TAG]] & BLOCK:
            at -= 1
        if at > 0 and traits[nodes[stack[at - 1], TAG]] & PARAGRAPH:
            depth = at - 1
    group = siblings[tag]
    if group:
        at = depth
        while at > 0:
            above = nodes[stack[at - 1], TAG]
            if siblings[above] == group:
                return at - 1
            if fences[above] & group:
                break
            at -= 1
    return depth


@numba.njit(cache=True, nogil=True)
def _match(stack, depth, nodes, tag, traits, opened):
    """The stack height that a closing `tag` leads to, or -1 where it closes nothing."""
    if not opened[tag]:
        return -1
    at = depth
    while at > 0:
        above = nodes[stack[at - 1], TAG]
        if above == tag:
            return at - 1
        if not traits[tag] & BLOCK and traits[above] & BLOCK:
            return -1  # </b> closes no <div>
        if traits[above] & FENCE and not traits[tag] & FENCE:
            return -1  # </div> closes no cell
        at -= 1
    return -1


@numba.njit(cache=True, nogil=True)
def build(data, events, cues, traits, siblings, fences, nodes, node_cues, blocks, block_cues):
    """Fill `nodes` int32 [N, 4], `blocks` int32 [B, COLUMNS] and what goes with them; returns (nodes, blocks), blocks = -1 if B was too small.

    Text that is never shown (scripts, hidden spans) becomes `UNSEEN` in `events`.

    Args:
        traits, siblings, fences: per tag id; an opening tag ends an open element of its own `siblings` group (bits) unless a fence of it stands between.
        block_cues: uint64 [B], the cues of inline elements inside a block.
    """
    stack = np.empty(MAX_DEPTH, np.int32)
    opened = np.zeros(traits.size, np.int32)
    nodes[0, PARENT], nodes[0, TAG], nodes[0, DEPTH], node_cues[0] = 0, traits.size - 1, 0, uint64(0)
    stack[0], depth, count = 0, 1, 1
    opened[traits.size - 1] = 1
    at = 0  # the block being filled
    begun = False
    pre_node = 0
    skip = soft = link = pre = 0  # stack heights at which such an element stands open; 0: none
    raw = broke = False
    row = np.zeros(blocks.shape[1], np.int32)
    inline_cues = uint64(0)
    for event in range(events.shape[0] + 1):
        final = event == events.shape[0]
        tag = -(traits.size - 1) if final else events[event, 0]
        if tag == TEXT:
            if raw or (skip and not (soft and depth > 1 and traits[nodes[stack[depth - 1], TAG]] & FORMULA)):
                raw = False
                events[event, 0] = UNSEEN
                continue
            before = row[CHARACTERS]
            if not begun and not (pre and row[FIRST]):  # the indentation of a first line of code is part of it
                row[FIRST] = event
            _count(data, events[event, 1], events[event, 2], row, link > 0)
            if row[CHARACTERS] > before:
                row[END] = event + 1
                begun, broke = True, False
            continue
        raw = False
        opening = tag > 0
        tag = abs(tag)
        trait = traits[tag]
        boundary = final or (trait & BLOCK and not pre and not skip)
        if trait & BREAK and not skip:
            boundary = broke and not pre
            broke = True
        if boundary and begun:
            if at == blocks.shape[0]:
                return count, -1
            row[NODE], row[BLOCKS] = pre_node if pre else stack[depth - 1], 1
            row[LONG] = row[CHARACTERS] - row[LINK_CHARACTERS]
            if (row[LONG] < LINE and row[WORDS] < LINE_WORDS) or row[LONG] < row[LINK_CHARACTERS] or not row[STOPS]:
                row[LONG] = 0
            blocks[at] = row
            block_cues[at] = inline_cues
            at += 1
            row[:] = 0
            begun = False
        if boundary:
            inline_cues = uint64(0)
            row[:] = 0
        if opening:
            found = cues[event]
            if trait & RAW:
                raw = True
                continue
            if not pre:
                depth = _pop(stack, depth, max(1, _implied(stack, depth, nodes, tag, traits, siblings, fences)), nodes, count, opened)
            if trait & VOID or depth >= MAX_DEPTH:
                continue
            nodes[count, PARENT], nodes[count, TAG], nodes[count, LAST], nodes[count, DEPTH] = stack[depth - 1], tag, count + 1, depth
            node_cues[count] = found
            stack[depth] = count
            opened[tag] += 1
            depth += 1
            count += 1
            if not skip:
                if trait & SKIP or found & uint64(SKIP_CUE):
                    skip = depth
                elif not trait & BLOCK and found & uint64(HIDDEN_CUE):
                    skip = soft = depth
                elif trait & LINK and found & uint64(HREF_CUE):
                    link = depth
                elif trait & PRE and not pre:
                    pre, pre_node = depth, count - 1
                if not trait & BLOCK:
                    inline_cues |= found
        else:
            to = _match(stack, depth, nodes, tag, traits, opened)
            if to > 0:
                depth = _pop(stack, depth, to, nodes, count, opened)
            if trait & LINK:
                link = 0
        if depth < skip:
            skip = soft = 0
        link = link if depth >= link else 0
        if depth < pre:  # </pre> itself ended no block while it stood open
            pre = 0
            if begun:
                if at == blocks.shape[0]:
                    return count, -1
                row[NODE], row[BLOCKS] = pre_node, 1
                blocks[at] = row
                block_cues[at] = inline_cues
                at += 1
                row[:] = 0
                begun = False
                inline_cues = uint64(0)
    _pop(stack, depth, 0, nodes, count, opened)
    return count, at


@numba.njit(cache=True, nogil=True)
def sum_subtrees(nodes, blocks, sums):
    """sums int64 [N, COLUMNS]: each container's own blocks' counts and all its descendants'."""
    sums[:] = 0
    for b in range(blocks.shape[0]):
        for column in range(CHARACTERS, blocks.shape[1]):
            sums[blocks[b, NODE], column] += int64(blocks[b, column])
    for node in range(nodes.shape[0] - 1, 0, -1):
        for column in range(CHARACTERS, blocks.shape[1]):
            sums[nodes[node, PARENT], column] += sums[node, column]


@numba.njit(cache=True, nogil=True)
def inherit(nodes, own, path):
    """path uint64 [N]: the bits that a container or one above it has in `own`."""
    for node in range(nodes.shape[0]):
        path[node] = own[node] if node == 0 else own[node] | path[nodes[node, PARENT]]


@numba.njit(cache=True, nogil=True)
def template_paths(nodes, cues, path):
    """path uint64 [N]: a hash of the tags and cues from the page down to a container. What a template repeats stands at equal paths."""
    path[0] = uint64(0)
    for node in range(1, nodes.shape[0]):
        above = path[nodes[node, PARENT]]
        path[node] = ((above ^ (above >> uint64(29))) * uint64(0x9E3779B97F4A7C15) + uint64(nodes[node, TAG])) ^ (cues[node] * uint64(0xC2B2AE3D27D4EB4F))


@numba.njit(cache=True, nogil=True)
def widening(nodes, blocks, sums, found):
    """found int32 [B, L]: the containers of a block, from the inside, each with at least half as many blocks again as the one before; then the page."""
    for b in range(blocks.shape[0]):
        node, reached = blocks[b, NODE], int64(1)
        for level in range(found.shape[1]):
            while node > 0 and sums[node, BLOCKS] * 2 < reached * 3:
                node = nodes[node, PARENT]
            found[b, level] = node
            reached = sums[node, BLOCKS]
