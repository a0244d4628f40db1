"""What surrounds the experts' products, compiled: relu² and the way of rows to experts and back.

A row is one (token, choice) pair; rows lie sorted by expert, and `place` [T,K] says where each token's are. Every token gathers its own rows, in the
order of its choices: no scatter, no buffer of zeros, and the same bits on one thread or many. Sums are float32.

Shapes: T tokens, K choices a token, S = T*K rows, L their width.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.lanes import JIT, flat, load, over_tiles, store

TOKENS = 64  # a tile of tokens
NUMBERS = 1 << 14  # a tile of numbers


def relu_squared_(x: Tensor) -> Tensor:
    """relu(x)² of a contiguous tensor, in a new one."""
    y = torch.empty_like(x)
    over_tiles(lambda a, b: _relu_squared(flat(x)[a * NUMBERS:b * NUMBERS], flat(y)[a * NUMBERS:b * NUMBERS]), -(-x.numel() // NUMBERS), x.numel())
    return y


def relu_squared_slope_(x: Tensor, dy: Tensor) -> Tensor:
    """2 relu(x) dy, contiguous."""
    dx = torch.empty_like(x)
    span = lambda t, a, b: flat(t)[a * NUMBERS:b * NUMBERS]
    over_tiles(lambda a, b: _relu_squared_slope(span(x, a, b), span(dy, a, b), span(dx, a, b)), -(-x.numel() // NUMBERS), x.numel())
    return dx


def gather(rows_SL: Tensor, place_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """y_t = sum_k weight_tk rows[place_tk]."""
    tokens, width = place_TK.shape[0], rows_SL.shape[1]
    y_TL = torch.empty(tokens, width, dtype=rows_SL.dtype)
    args = flat(rows_SL), place_TK.numpy(), weight_TK.numpy(), flat(y_TL), width
    over_tiles(lambda a, b: _gather(a * TOKENS, min(b * TOKENS, tokens), *args), -(-tokens // TOKENS), rows_SL.numel())
    return y_TL


def gather_slope(rows_SL: Tensor, place_TK: Tensor, weight_TK: Tensor, dy_TL: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `gather`: of the rows, weight_tk dy_t (zero where no token gathers), and of the weights, <rows[place_tk], dy_t>."""
    tokens, width = place_TK.shape[0], rows_SL.shape[1]
    drows_SL, dweight_TK = torch.zeros_like(rows_SL), torch.empty(place_TK.shape)
    args = flat(rows_SL), place_TK.numpy(), weight_TK.numpy(), flat(dy_TL), flat(drows_SL), dweight_TK.numpy(), width
    over_tiles(lambda a, b: _gather_slope(a * TOKENS, min(b * TOKENS, tokens), *args), -(-tokens // TOKENS), rows_SL.numel())
    return drows_SL, dweight_TK


@njit(**JIT)
def _relu_squared(x, y):
    for i in range(x.size):
        value = max(load(x, i), np.float32(0.0))
        store(y, i, value * value)


@njit(**JIT)
def _relu_squared_slope(x, dy, dx):
    for i in range(x.size):
        store(dx, i, np.float32(2.0) * max(load(x, i), np.float32(0.0)) * load(dy, i))


@njit(**JIT)
def _gather(first, last, rows, place, weight, y, width):
    total = np.empty(width, np.float32)
    for t in range(first, last):
        total[:] = np.float32(0.0)
        for k in range(place.shape[1]):
            at = place[t, k] * width
            row, share = rows[at:at + width], weight[t, k]
            for i in range(width):
                total[i] += share * load(row, i)
        out = y[t * width:(t + 1) * width]
        for i in range(width):
            store(out, i, total[i])


@njit(**JIT)
def _gather_slope(first, last, rows, place, weight, dy, drows, dweight, width):
    for t in range(first, last):
        slope = dy[t * width:(t + 1) * width]
        for k in range(place.shape[1]):
            at = place[t, k] * width
            row, out, share, along = rows[at:at + width], drows[at:at + width], weight[t, k], np.float32(0.0)
            for i in range(width):
                along += load(row, i) * load(slope, i)
            for i in range(width):
                store(out, i, share * load(slope, i))
            dweight[t, k] = along
