"""Grouped-query attention of new positions over a cache: one for decoding, many for a piece of a prompt, by the same sums in the same order.

Keys pass in blocks of 64, counted from the first position of the sequence, with a running maximum and sum (online softmax). A block is turned into
panels once; then eight rows of queries at a time take both its products (`skinny.product`: scores with the keys, the mix with the values) and,
between them, become weights without leaving the first-level cache. A row's numbers are sums over keys in their order, whatever rows share the
eight: a query's result does not depend on what is read beside it or in which pieces. Weights and sums are float32 whatever the cache holds.

Shapes: A sequences, M rows, J key/value heads of R query heads each, D head_dim, L positions a slot has room for.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kernels.lanes import JIT, store
from kernels.simd import WIDTH, prefetch, splat, vadd, vexp_negative, vlarger, vload, vmul, vpeak, vstore, vsub, vsum, within
from kernels.skinny import PANEL, padded, product, turn

BLOCK = 64  # keys
GROUP = 8  # rows
QUERIES = 512  # rows that share a block's panels: positions times query heads
LOWEST = np.float32(-1e30)  # a running maximum before the first key


@njit(**JIT)
def attention_step(qkv, stride, starts, places, past, keys, values, sizes):
    """Rows [q | k | v] -> what o_proj reads, float32 [M, J*R*D]. past [A]: positions sequence a has in `keys` and `values` [., J, L, D] at index
    places[a], where the new ones are appended; every query sees all up to its own."""
    kv_heads, width, room = sizes.kv_heads, sizes.head_dim, sizes.room
    repeat = sizes.query_heads // kv_heads
    inner, columns = sizes.query_heads * width, padded(width)
    out = np.empty(starts[-1] * inner, np.float32)
    tile = max(1, QUERIES // repeat)
    rows = min(tile, np.max(starts[1:] - starts[:-1])) * repeat
    q, mixed = np.empty(rows * width, np.float32), np.empty(rows * columns, np.float32)
    lead, total = np.empty(rows + WIDTH, np.float32), np.empty(rows * WIDTH, np.float32)
    panels = np.zeros(BLOCK * width, np.float32), np.zeros(BLOCK * columns, np.float32)
    for a in range(len(places)):
        first, length = starts[a], starts[a + 1] - starts[a]
        for j in range(kv_heads):
            memory = (places[a] * kv_heads + j) * room * width
            for t in range(length):
                to, source = memory + (past[a] + t) * width, (first + t) * stride + inner + j * width
                for d in range(width):
                    store(keys, to + d, qkv[source + d])
                    store(values, to + d, qkv[source + kv_heads * width + d])
            for t in range(0, length, tile):
                count = min(tile, length - t)
                _tile(qkv, (first + t) * stride + j * repeat * width, stride, count, repeat, width, past[a] + t, keys, values, memory,
                      out, (first + t) * inner + j * repeat * width, inner, q, lead, total, mixed, panels)
    return out


@njit(**JIT)
def _tile(qkv, at, stride, count, repeat, width, past, keys, values, memory, out, to, out_stride, q, lead, total, mixed, panels):
    """`count` positions of one sequence, the first of which sees `past` keys and its own; all query heads of one key/value head. q, lead (running
    maximum), total (running sum, in 16 lanes), mixed: room for the rows; panels: for a block."""
    rows, columns, seen = count * repeat, padded(width), past + count
    key_panels, value_panels = panels
    scale = np.float32(1.0 / np.sqrt(width))
    for i in range(rows):
        source = at + i // repeat * stride + i % repeat * width
        for d in range(width):
            q[i * width + d] = qkv[source + d] * scale
    lead[:], total[:rows * WIDTH], mixed[:rows * columns] = LOWEST, np.float32(0.0), np.float32(0.0)
    scores, part = np.empty(GROUP * BLOCK, np.float32), np.empty(GROUP * columns, np.float32)
    for s in range(0, seen, BLOCK):
        there = min(BLOCK, seen - s)
        wide = padded(there)
        _panels(keys, values, memory + s * width, there, wide, width, columns, key_panels, value_panels)
        for i in range(max(0, s - past) * repeat, rows, GROUP):  # rows before see nothing of the block
            size = min(GROUP, rows - i)
            product(key_panels, 0, q[i * width:], size, width, 0, wide // PANEL, scores, wide)
            if past + i // repeat + 1 < s + wide:
                _hide(scores, size, wide, past + 1 - s, i, repeat)
            _weigh(scores, size, wide, lead, total, mixed, i, columns)
            product(value_panels, 0, scores, size, wide, 0, columns // PANEL, part, columns)
            for d in range(0, size * columns, WIDTH):
                vstore(mixed, i * columns + d, vadd(vload(mixed, i * columns + d), vload(part, d)))
    for i in range(rows):
        inverse, target = np.float32(1.0) / vsum(vload(total, i * WIDTH)), to + i // repeat * out_stride + i % repeat * width
        for d in range(width):
            out[target + d] = mixed[i * columns + d] * inverse


@njit(**JIT)
def _panels(keys, values, at, there, wide, width, columns, key_panels, value_panels):
    """A block as the two products read it. What lies beyond its last key weighs nothing; values there are left as they were, finite."""
    for s in range(0, there, WIDTH):
        panel = s // PANEL * PANEL * width + s % PANEL
        for d in range(0, width, WIDTH):
            turn(keys, at + s * width + d, width, key_panels, panel + d * PANEL, PANEL)
    for s in range(there):
        for d in range(0, width, WIDTH):
            prefetch(keys, at + (s + BLOCK) * width + d)  # a long context comes from memory
            prefetch(values, at + (s + BLOCK) * width + d)
            vstore(value_panels, (d // PANEL * wide + s) * PANEL + d % PANEL, vload(values, at + s * width + d))


@njit(**JIT)
def _hide(scores, size, wide, visible, i, repeat):
    """Scores of keys that a row does not see become so low that they weigh nothing: row i + r sees `visible` + (i + r) // repeat."""
    for r in range(size):
        for s in range(0, wide, WIDTH):
            vstore(scores, r * wide + s, within(vload(scores, r * wide + s), s, 0, visible + (i + r) // repeat, np.float32(-np.inf)))


@njit(**JIT)
def _weigh(scores, size, wide, lead, total, mixed, i, columns):
    """scores -> weights relative to the largest seen so far. Where that grew, which is rare, the sums before are brought down to it."""
    for r in range(size):
        row, peaks = r * wide, vload(scores, r * wide)
        for s in range(WIDTH, wide, WIDTH):
            peaks = vlarger(peaks, vload(scores, row + s))
        highest, sums = vpeak(peaks), (i + r) * WIDTH
        if highest > lead[i + r]:
            down = vexp_negative(splat(lead[i + r] - highest))
            for d in range((i + r) * columns, (i + r + 1) * columns, WIDTH):
                vstore(mixed, d, vmul(vload(mixed, d), down))
            vstore(total, sums, vmul(vload(total, sums), down))
            lead[i + r] = highest
        most, added = splat(lead[i + r]), vload(total, sums)
        for s in range(row, row + wide, WIDTH):
            weight = vexp_negative(vsub(vload(scores, s), most))
            vstore(scores, s, weight)
            added = vadd(added, weight)
        vstore(total, sums, added)
