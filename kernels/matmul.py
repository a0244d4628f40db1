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
from numba import njit
from torch import Tensor

from kernels.lanes import JIT, flat, load, over_tiles, runs_here, store
from kernels.pairs import HAS_PAIRS, HAS_TILES, PANEL, ROWS, WIDTH, ask, pack_down, pack_turned, tile_1, tile_4, tile_8

BLOCK = 1 << 17  # words packed at once: 512 KB, half of a second-level cache
DEPTH = 768  # words summed before a tile's sums go to memory: with more, eight rows of the left side leave the first-level cache
CHUNK = 1 << 8  # the same for the outer product, whose left side is packed, 32 KB a panel
SIDE = 4  # panels of the left side packed together: whole cache lines, two at a time


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
    tokens, depth, columns = len(x), x.shape[1] // 2, w.shape[-2 if turned else -1]
    deep = depth > DEPTH
    y = torch.empty(tokens, columns, dtype=torch.float32 if deep else torch.bfloat16) if out is None or deep else out
    args = flat(x).view(np.uint32), depth, _starts(loads, tokens), flat(w), turned, columns, flat(y)
    _shared(_panels, args, -(-columns // PANEL), len(loads) if loads else 1, tokens * (2 * depth + columns))
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
    stage = _even(depth, DEPTH)
    at_once = _even(last - first, max(1, BLOCK // (stage * PANEL)))
    packed, edge = np.empty((at_once * stage + WIDTH) * PANEL, np.uint32), np.empty(ROWS * PANEL, np.float32)
    for group in range(group_first, group_last):
        weight, top, rows = group * 2 * depth * columns, starts[group], starts[group + 1] - starts[group]
        if rows == 0:
            continue
        for begin in range(first, last, at_once):
            end = min(begin + at_once, last)
            for start in range(0, depth, stage):
                words = min(stage, depth - start)
                if turned:
                    for p in range(begin, end):
                        source = weight + p * PANEL * 2 * depth + 2 * start
                        pack_turned(w, source, 2 * depth, min(PANEL, columns - p * PANEL), 2 * words, packed, (p - begin) * words * PANEL)
                else:
                    source = weight + 2 * start * columns + begin * PANEL
                    pack_down(w, source, columns, 2 * words, min(end * PANEL, columns) - begin * PANEL, packed)
                here, continued = top * depth + start, start > 0
                if group + 1 < group_last:  # a few rows and another weight soon
                    line, each = (2 * depth, columns) if turned else (columns, 2 * depth)
                    _tiles(x, here, depth, 1, rows, packed, words, begin, end, columns, y, top, edge, continued,
                           w, weight + 2 * depth * columns, line, (each + rows - 1) // rows, line)
                else:
                    _tiles(x, here, depth, 1, rows, packed, words, begin, end, columns, y, top, edge, continued, x, here + ROWS * depth, depth, 1, words)


@njit(**JIT)
def _tile(count, left, at, row, step, packed, here, words, out, place, columns, continued):
    if count == ROWS:
        tile_8(left, at, row, step, packed, here, words, out, place, columns, continued)
    elif count == 4:
        tile_4(left, at, row, step, packed, here, words, out, place, columns, continued)
    else:
        tile_1(left, at, row, step, packed, here, words, out, place, columns, continued)


@njit(**JIT)
def _tiles(left, at, row, step, rows, packed, words, begin, end, columns, out, top, edge, continued, ahead, at_ahead, row_ahead, each, reach):
    """out[top:top + rows, panels begin to end] (+)= left times the packed panels.

    With every row `each` rows of `ahead`, `reach` numbers long, are asked for early: they are read next.
    """
    r, line = 0, 64 // ahead.itemsize
    while r < rows:
        if r + ROWS > rows >= ROWS and not continued:
            r = rows - ROWS  # some rows twice, to the same end, cost less than small tiles
        count = ROWS if r + ROWS <= rows else 4 if r + 4 <= rows else 1
        for p in range(begin, end):
            here, place = (p - begin) * words * PANEL, (top + r) * columns + p * PANEL
            if count == ROWS:
                for i in range((p - begin) * ROWS * each // (end - begin), (p - begin + 1) * ROWS * each // (end - begin)):
                    for k in range(0, reach, line):
                        ask(ahead, at_ahead + (r * each + i) * row_ahead + k)
            if (p + 1) * PANEL <= columns:
                _tile(count, left, at + r * row, row, step, packed, here, words, out, place, columns, continued)
                continue
            _tile(count, left, at + r * row, row, step, packed, here, words, edge, 0, PANEL, False)
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
    packed, turned = np.empty(at_once * CHUNK * PANEL, np.uint32), np.empty(SIDE * CHUNK * PANEL, np.uint32)
    edge = np.empty(ROWS * PANEL, np.float32)
    for group in range(group_first, group_last):
        base = group * outputs
        if starts[group] == starts[group + 1] and not add:
            out[(base + first * PANEL) * inputs:(base + min(last * PANEL, outputs)) * inputs] = np.float32(0.0)
        for start in range(starts[group], starts[group + 1], 2 * CHUNK):
            rows, continued = min(2 * CHUNK, starts[group + 1] - start), add or start > starts[group]
            words = (rows + 1) // 2
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
                        _tiles(turned, c * words, 1, PANEL, min(PANEL, width - c), packed, words, begin, end, inputs,
                               out, base + q * PANEL + c, edge, continued, ahead, at_ahead + c * each * line, line, each, reach)
