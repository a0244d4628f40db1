"""bfloat16 matrix products, compiled: what a projection multiplies forward and backward, at the machine's full rate whatever the shape.

torch's library reaches nine tenths of the rate in a product of 2048 x 2048 x 2048, and two thirds to three quarters in those of a training step: it packs
its operands anew in every call and finds the transposed ones, and the small ones of experts, hard. Here the right side is packed block by block into a
buffer that stays in the second-level cache, and float32 masters are rounded on the way: no copy of the weights in bfloat16 is ever in memory, and
weight gradients are float32 sums that were never rounded.

Each output is summed in an order that depends on the shapes alone: the same bits on one thread or many.

Shapes: T tokens, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import numpy as np
import torch
from llvmlite import binding
from numba import njit
from torch import Tensor

from kernels.lanes import JIT, flat, load, over_tiles, runs_here, store
from kernels.panels import PANEL, pack_down, pack_turned
from kernels.products import tile
from kernels.simd import HAS_PAIRS, fetch

HAS_TILES = bool(binding.get_host_cpu_features().get("amx-bf16", False))  # AMX multiplies several times faster, and torch's library uses it
ROWS = 8  # of a tile: with 32 columns 16 sums stay in registers; two loads and eight broadcasts for 16 instructions are the machine's full rate
BLOCK = 1 << 18  # numbers packed at once: 512 KB, half of a second-level cache
DEPTH = 1536  # numbers summed before sums go to memory: with more, a tile's rows of the left side leave the first-level cache
CHUNK = 512  # the same for the outer product, whose left side is packed too
SIDE = 4  # panels of that side packed together: whole cache lines, two at a time

_eight, _four, _one = tile(ROWS, 2), tile(4, 2), tile(1, 2)


def multiplies(x: Tensor, w: Tensor) -> bool:
    """Whether these products are the fast ones: bfloat16 activations on a CPU that multiplies pairs, and has nothing better."""
    return HAS_PAIRS and not HAS_TILES and x.dtype == torch.bfloat16 and x.shape[-1] % 2 == 0 and x.numel() > 0 and runs_here(x, w)


def times_turned(x_TK: Tensor, w: Tensor, loads: list[int] | None = None, out_TN: Tensor | None = None) -> Tensor:
    """x wᵀ in bfloat16; x bfloat16 with an even K, w [N,K] bfloat16 or float32, rounded first.

    With `loads` w is [E,N,K]: the first loads[0] rows of x meet w[0], the next w[1], and so on.
    """
    return _product(x_TK, w, True, loads, out_TN)


def times(dy_TN: Tensor, w: Tensor, loads: list[int] | None = None, out_TK: Tensor | None = None) -> Tensor:
    """dy w in bfloat16; dy bfloat16 with an even N, w [N,K], or [E,N,K] with `loads`, bfloat16 or float32, rounded first."""
    return _product(dy_TN, w, False, loads, out_TK)


def outer(dy_TN: Tensor, x_TK: Tensor, loads: list[int] | None = None, out: Tensor | None = None) -> Tensor:
    """dyᵀ x, float32 [N,K], or [E,N,K] of each run of rows with `loads`; added to `out` if that is given."""
    dy_TN, x_TK = dy_TN.contiguous(), x_TK.contiguous()
    (tokens, outputs), inputs = dy_TN.shape, x_TK.shape[1]
    total = torch.empty(*([] if loads is None else [len(loads)]), outputs, inputs) if out is None else out
    args = flat(dy_TN), outputs, flat(x_TK), inputs, _starts(loads, tokens), flat(total), out is not None
    _shared(_outer, args, -(-outputs // PANEL), len(total) if loads else 1, tokens * (outputs + inputs))
    return total


def _starts(loads: list[int] | None, tokens: int) -> np.ndarray:
    return np.array([0, tokens] if loads is None else [0, *accumulate(loads)])


def _product(x: Tensor, w: Tensor, turned: bool, loads: list[int] | None, out: Tensor | None) -> Tensor:
    x, w = x.contiguous(), w.contiguous()
    (tokens, depth), columns = x.shape, w.shape[-2 if turned else -1]
    deep = depth > DEPTH
    y = torch.empty(tokens, columns, dtype=torch.float32 if deep else torch.bfloat16) if out is None or deep else out
    args = flat(x), depth, _starts(loads, tokens), flat(w), turned, columns, flat(y)
    _shared(_panels, args, -(-columns // PANEL), len(loads) if loads else 1, tokens * (depth + columns))
    return y if not deep else y.to(torch.bfloat16) if out is None else out.copy_(y)


def _shared(run: Callable, args: tuple, panels: int, groups: int, elements: int) -> None:
    """One span of the panels a thread; of the groups where there are many, whose rows and weights then pass through one thread's cache only."""
    if groups >= 4 * torch.get_num_threads():
        over_tiles(lambda a, b: run(0, panels, a, b, *args), groups, elements)
    else:
        over_tiles(lambda a, b: run(a, b, 0, groups, *args), panels, elements)


@njit(**JIT)
def _even(count, most):
    """The size of the fewest even parts of at most so many."""
    parts = (count + most - 1) // most
    return (count + parts - 1) // parts


@njit(**JIT)
def _panels(first, last, group_first, group_last, x, depth, starts, w, turned, columns, y):
    """Panels first to last of the columns of x w, or x wᵀ, of some of the groups."""
    stage = 2 * _even(depth // 2, DEPTH // 2)
    at_once = _even(last - first, max(1, BLOCK // (stage * PANEL)))
    packed, edge = np.empty((at_once * stage + PANEL) * PANEL, np.uint16), np.empty(ROWS * PANEL, np.float32)
    for group in range(group_first, group_last):
        weight, top, rows = group * depth * columns, starts[group], starts[group + 1] - starts[group]
        if rows == 0:
            continue
        for begin in range(first, last, at_once):
            end = min(begin + at_once, last)
            for start in range(0, depth, stage):
                here, inner, continued = top * depth + start, min(stage, depth - start), start > 0
                if turned:
                    for p in range(begin, end):
                        source = weight + p * PANEL * depth + start
                        pack_turned(w, source, depth, min(PANEL, columns - p * PANEL), inner, packed, (p - begin) * inner * PANEL)
                else:
                    pack_down(w, weight + start * columns + begin * PANEL, columns, inner, min(end * PANEL, columns) - begin * PANEL, packed)
                if group + 1 < group_last:  # a few rows, and another weight soon
                    line, each = (depth, columns) if turned else (columns, depth)
                    _tiles(x, here, depth, 2, rows, packed, inner, begin, end, columns, y, top, edge, continued,
                           w, weight + depth * columns, line, (each + rows - 1) // rows, line)
                else:
                    _tiles(x, here, depth, 2, rows, packed, inner, begin, end, columns, y, top, edge, continued, x, here + ROWS * depth, depth, 1, inner)


@njit(**JIT)
def _tile(count, left, at, row, step, packed, here, inner, out, place, columns, scale):
    if count == ROWS:
        _eight(left, at, row, step, packed, here, 2 * PANEL, inner // 2, out, place, columns, scale, 0)
    elif count == 4:
        _four(left, at, row, step, packed, here, 2 * PANEL, inner // 2, out, place, columns, scale, 0)
    else:
        _one(left, at, row, step, packed, here, 2 * PANEL, inner // 2, out, place, columns, scale, 0)


@njit(**JIT)
def _tiles(left, at, row, step, rows, packed, inner, begin, end, columns, out, top, edge, continued, ahead, at_ahead, row_ahead, each, reach):
    """out[top:top + rows, panels begin to end] (+)= left times the packed panels.

    The lines of `out` are asked for before a tile, and with every row `each` rows of `ahead`, `reach` numbers long: they are read next.
    """
    r, line, line_out, scale = 0, 64 // ahead.itemsize, 64 // out.itemsize, np.float32(continued)
    while r < rows:
        if r + ROWS > rows >= ROWS and not continued:
            r = rows - ROWS  # some rows twice, to the same end, cost less than small tiles
        count = ROWS if r + ROWS <= rows else 4 if r + 4 <= rows else 1
        for p in range(begin, end):
            here, place = (p - begin) * inner * PANEL, (top + r) * columns + p * PANEL
            if count == ROWS:
                for i in range(ROWS):
                    for c in range(0, PANEL, line_out):
                        fetch(out, place + i * columns + c)
                for i in range((p - begin) * ROWS * each // (end - begin), (p - begin + 1) * ROWS * each // (end - begin)):
                    for k in range(0, reach, line):
                        fetch(ahead, at_ahead + (r * each + i) * row_ahead + k)
            if (p + 1) * PANEL <= columns:
                _tile(count, left, at + r * row, row, step, packed, here, inner, out, place, columns, scale)
                continue
            _tile(count, left, at + r * row, row, step, packed, here, inner, edge, 0, PANEL, np.float32(0.0))
            for i in range(count):
                for c in range(columns - p * PANEL):
                    earlier = load(out, place + i * columns + c) if continued else np.float32(0.0)
                    store(out, place + i * columns + c, earlier + edge[i * PANEL + c])
        r += count


@njit(**JIT)
def _outer(first, last, group_first, group_last, left, outputs, right, inputs, starts, out, add):
    """Rows of the panels first to last of leftᵀ right, of some of the groups."""
    panels = (inputs + PANEL - 1) // PANEL
    at_once = _even(panels, max(1, BLOCK // (CHUNK * PANEL)))
    packed, turned = np.empty(at_once * CHUNK * PANEL, np.uint16), np.empty(SIDE * CHUNK * PANEL, np.uint16)
    edge = np.empty(ROWS * PANEL, np.float32)
    for group in range(group_first, group_last):
        base = group * outputs
        if starts[group] == starts[group + 1] and not add:
            out[(base + first * PANEL) * inputs:(base + min(last * PANEL, outputs)) * inputs] = np.float32(0.0)
        for start in range(starts[group], starts[group + 1], CHUNK):
            rows, continued = min(CHUNK, starts[group + 1] - start), add or start > starts[group]
            inner = rows + rows % 2
            for begin in range(0, panels, at_once):
                end = min(begin + at_once, panels)
                pack_down(right, start * inputs + begin * PANEL, inputs, rows, min(end * PANEL, inputs) - begin * PANEL, packed)
                for q in range(first, last, SIDE):
                    width = min(SIDE * PANEL, min(last * PANEL, outputs) - q * PANEL)
                    pack_down(left, start * outputs + q * PANEL, outputs, rows, width, turned)
                    ahead, at_ahead, reach = left, start * outputs + (q + SIDE) * PANEL, SIDE * PANEL
                    if q + SIDE >= last:
                        ahead, at_ahead, reach = right, (start + rows) * inputs, inputs
                    line, each = outputs if q + SIDE < last else inputs, rows // (SIDE * PANEL)
                    for c in range(0, width, PANEL):
                        _tiles(turned, c * inner, 2, 2 * PANEL, min(PANEL, width - c), packed, inner, begin, end, inputs,
                               out, base + q * PANEL + c, edge, continued, ahead, at_ahead + c * each * line, line, each, reach)
