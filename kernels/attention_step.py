"""Grouped-query attention of new positions over a cache: one for decoding, many for a piece of a prompt, by the same sums in the same order.

Keys pass in blocks of 64, counted from the first position of the sequence, with a running maximum and sum (online softmax). A block's two products
are `skinny.product`: scores with the keys turned into panels, the mix with the values, which are panels as they lie. So a query's result does not
depend on what is read beside it or in which pieces. Weights and sums are float32 whatever the cache holds.

Shapes: A sequences, M rows, J key/value heads of R query heads each, D head_dim, L positions a slot has room for.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kernels.lanes import JIT, exp, store
from kernels.simd import largest, vload, vstore
from kernels.skinny import PANEL, padded, prefetch, product, turn

BLOCK = 64  # keys
QUERIES = 64  # rows of one tile: positions times query heads


@njit(**JIT)
def attention_step(qkv, stride, starts, places, past, keys, values, sizes):
    """Rows [q | k | v] -> what o_proj reads, float32 [M, J*R*D]. past [A]: positions sequence a has in `keys` and `values` [., J, L, D] at index
    places[a], where the new ones are appended; every query sees all up to its own."""
    kv_heads, width, room = sizes.kv_heads, sizes.head_dim, sizes.room
    repeat = sizes.query_heads // kv_heads
    inner = sizes.query_heads * width
    out = np.empty(starts[-1] * inner, np.float32)
    tile = max(1, QUERIES // repeat)
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
                      out, (first + t) * inner + j * repeat * width, inner)
    return out


@njit(**JIT)
def _tile(qkv, at, stride, count, repeat, width, past, keys, values, memory, out, to, out_stride):
    """`count` positions of one sequence, the first of which sees `past` keys and its own; all query heads of one key/value head."""
    rows, columns = count * repeat, padded(width)
    scale = np.float32(1.0 / np.sqrt(width))
    q = np.empty(rows * width, np.float32)
    for i in range(rows):
        source = at + i // repeat * stride + i % repeat * width
        for d in range(width):
            q[i * width + d] = qkv[source + d] * scale
    lead, total = np.full(rows, -np.inf, np.float32), np.zeros(rows, np.float32)
    mixed, part = np.zeros(rows * columns, np.float32), np.empty(rows * columns, np.float32)
    scores = np.empty(rows * BLOCK, np.float32)
    key_panels, value_panels = np.zeros(BLOCK * width, np.float32), np.zeros(BLOCK * columns, np.float32)
    seen = past + count
    for s in range(0, seen, BLOCK):
        there = min(BLOCK, seen - s)
        _panels(keys, values, memory + s * width, there, width, columns, key_panels, value_panels)
        product(key_panels, 0, q, rows, width, 0, BLOCK // PANEL, scores, BLOCK)
        for i in range(rows):
            visible = min(there, past + i // repeat + 1 - s)
            _weigh(scores, i * BLOCK, visible, lead, total, i, mixed, i * columns, columns)
        product(value_panels, 0, scores, rows, BLOCK, 0, columns // PANEL, part, columns)
        for i in range(rows * columns):
            mixed[i] += part[i]
    for i in range(rows):
        inverse, target = np.float32(1.0) / total[i], to + i // repeat * out_stride + i % repeat * width
        for d in range(width):
            out[target + d] = mixed[i * columns + d] * inverse


@njit(**JIT)
def _panels(keys, values, at, there, width, columns, key_panels, value_panels):
    """A block as the two products read it. Scores of what lies beyond its last key are written over; values there are left as they were, finite."""
    for s in range(0, there, 16):
        panel = s // PANEL * PANEL * width + s % PANEL
        for d in range(0, width, 16):
            turn(keys, at + s * width + d, width, key_panels, panel + d * PANEL, PANEL)
    for s in range(there):
        for d in range(0, width, 16):
            prefetch(keys, at + (s + BLOCK) * width + d)  # a long context comes from memory
            prefetch(values, at + (s + BLOCK) * width + d)
            vstore(value_panels, (d // PANEL * BLOCK + s) * PANEL + d % PANEL, vload(values, at + s * width + d))


@njit(**JIT)
def _weigh(scores, at, visible, lead, total, i, mixed, to, columns):
    """scores -> weights relative to the largest seen so far, to which the sums before are brought down."""
    row = scores[at:at + BLOCK]
    if visible <= 0:
        row[:] = np.float32(0.0)
        return
    highest = max(lead[i], largest(scores, at, at + visible))
    down = np.float32(0.0) if lead[i] == -np.inf else exp(lead[i] - highest)
    added = np.float32(0.0)
    for s in range(visible):
        row[s] = exp(row[s] - highest)
    for s in range(visible):
        added += row[s]
    for s in range(visible, BLOCK):
        row[s] = np.float32(0.0)
    if highest > lead[i]:
        for d in range(columns):
            mixed[to + d] *= down
        total[i] *= down
    total[i] += added
    lead[i] = highest
