"""The right side of a large bfloat16 product, packed: panels of 32 columns in the layout "by rows" of `kernels.products`, from the second-level cache.

Both ways of packing round float32 on the way, so weights are read as the float32 masters they are. Numbers are bfloat16 bits; sizes count numbers.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kernels.lanes import JIT
from kernels.products import per, transpose
from kernels.simd import WIDTH, vload, vstore, vstore_pairs

PANEL = 2 * WIDTH  # columns


@njit(**JIT)
def _patch(source, at, row, rows, columns, patch):
    """The first rows and columns of `patch`, PANEL wide, from source; zeros in the rest."""
    patch[:] = 0
    for r in range(rows):
        for c in range(columns):
            patch[r * PANEL + c] = source[at + r * row + c]


@njit(**JIT)
def pack_down(source, at, row, rows, columns, out):
    """Panels of a matrix [rows, columns] for products over its rows; zeros where rows (to an even number) or columns end."""
    even, patch = rows + rows % 2, np.empty(2 * PANEL, source.dtype)
    for r in range(0, even, 2):
        low = at + r * row
        for c in range(0, columns, PANEL):
            place = c * even + r * PANEL
            if r + 1 < rows and c + PANEL <= columns:
                for v in range(0, PANEL, WIDTH):
                    vstore_pairs(out, place + 2 * v, vload(source, low + c + v), vload(source, low + row + c + v))
            else:
                _patch(source, low + c, row, min(2, rows - r), min(PANEL, columns - c), patch)
                for v in range(0, PANEL, WIDTH):
                    vstore_pairs(out, place + 2 * v, vload(patch, v), vload(patch, PANEL + v))


@njit(**JIT)
def pack_turned(source, at, row, rows, columns, out, at_out):
    """One panel of the transpose of a matrix [rows, columns], for products over its columns, an even number; zeros where rows (<= 32) end.

    `out` is written up to the next multiple of 32 columns.
    """
    patch, block = np.empty(WIDTH * PANEL, source.dtype), np.empty(WIDTH * PANEL, np.uint16)
    for r in range(0, PANEL, WIDTH):
        for c in range(0, columns, PANEL):
            begin = at + r * row + c
            if r + WIDTH <= rows and c + PANEL <= columns:
                memory, start, stride = source, begin, row
            else:
                _patch(source, begin, row, min(max(rows - r, 0), WIDTH), min(columns - c, PANEL), patch)
                memory, start, stride = patch, 0, PANEL
            if per(source) == 2:
                transpose(memory, start, stride, WIDTH, PANEL, out, at_out + c * PANEL + 2 * r, 2 * PANEL)
                continue
            for i in range(WIDTH):
                for v in range(0, PANEL, WIDTH):
                    vstore(block, i * PANEL + v, vload(memory, start + i * stride + v))
            transpose(block, 0, PANEL, WIDTH, PANEL, out, at_out + c * PANEL + 2 * r, 2 * PANEL)
