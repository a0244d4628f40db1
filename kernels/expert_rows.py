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

from kernels.lanes import JIT, flat, load, over_tiles, runs_here, store
from kernels.simd import WIDTH as LANES
from kernels.simd import fetch, fma, splat, vload, vmul, vstore, vsum

TOKENS = 64  # a tile of tokens
AHEAD = 4  # tokens whose rows are asked for before their turn
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


def relu_squared_and_slope_(x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """relu(x)², and 2 relu(x) dy written over dy: both, for one read of x."""
    y = torch.empty_like(x)
    span = lambda t, a, b: flat(t)[a * NUMBERS:b * NUMBERS]
    over_tiles(lambda a, b: _relu_squared_and_slope(span(x, a, b), span(y, a, b), span(dy, a, b)), -(-x.numel() // NUMBERS), x.numel())
    return y, dy


def choose(ranks_TE: Tensor, choices: int) -> Tensor:
    """The `choices` largest of each row, [T,K] int64, largest first; of equals the lower number, as `kernels.experts_step.route` chooses."""
    if not runs_here(ranks_TE):
        return torch.topk(ranks_TE, choices, dim=-1)[1]
    index_TK = torch.empty(ranks_TE.shape[0], choices, dtype=torch.int64)
    _choose(ranks_TE.float().contiguous().numpy(), index_TK.numpy())
    return index_TK


def place(index_TK: Tensor, rooms: list[int]) -> tuple[Tensor, Tensor]:
    """Rows for the pairs, those of expert e in its `rooms[e]` rows, by token: the row of each pair [T,K], and the token of each row (0 for rows to spare)."""
    place_TK, token_S = torch.empty(index_TK.shape, dtype=torch.int64), torch.zeros(sum(rooms), dtype=torch.int64)
    _place(index_TK.numpy(), np.cumsum([0, *rooms]), place_TK.numpy(), token_S.numpy())
    return place_TK, token_S


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
    drows_SL = (torch.empty_like if len(rows_SL) == place_TK.numel() else torch.zeros_like)(rows_SL)  # no rows to spare: every one is written
    dweight_TK = torch.empty(place_TK.shape)
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
def _relu_squared_and_slope(x, y, dy):
    for i in range(x.size):
        value = max(load(x, i), np.float32(0.0))
        store(y, i, value * value)
        store(dy, i, np.float32(2.0) * value * load(dy, i))


@njit(**JIT)
def _choose(ranks, index):
    left = np.empty(ranks.shape[1], np.float32)
    for t in range(ranks.shape[0]):
        left[:] = ranks[t]
        for k in range(index.shape[1]):
            best = 0
            for e in range(1, left.size):
                if left[e] > left[best]:
                    best = e
            left[best] = -np.inf
            index[t, k] = best


@njit(**JIT)
def _place(index, free, place, token):
    for t in range(index.shape[0]):
        for k in range(index.shape[1]):
            e = index[t, k]
            place[t, k], token[free[e]] = free[e], t
            free[e] += 1


@njit(**JIT)
def _ask(memory, place, t, tokens, width):
    """For the rows of a token that comes soon: they lie scattered, where no hardware expects them."""
    if t < tokens:
        for k in range(place.shape[1]):
            for i in range(0, width, 64 // memory.itemsize):
                fetch(memory, place[t, k] * width + i)


@njit(**JIT)
def _gather(first, last, rows, place, weight, y, width):
    whole = width // LANES * LANES
    for t in range(first, last):
        _ask(rows, place, t + AHEAD, place.shape[0], width)
        for i in range(0, whole, LANES):
            total = splat(np.float32(0.0))
            for k in range(place.shape[1]):
                total = fma(splat(weight[t, k]), vload(rows, place[t, k] * width + i), total)
            vstore(y, t * width + i, total)
        for i in range(whole, width):
            single = np.float32(0.0)
            for k in range(place.shape[1]):
                single += weight[t, k] * load(rows, place[t, k] * width + i)
            store(y, t * width + i, single)


@njit(**JIT)
def _gather_slope(first, last, rows, place, weight, dy, drows, dweight, width):
    whole = width // LANES * LANES
    for t in range(first, last):
        _ask(rows, place, t + AHEAD, place.shape[0], width)
        _ask(drows, place, t + AHEAD, place.shape[0], width)
        for k in range(place.shape[1]):
            at, share, along = place[t, k] * width, weight[t, k], splat(np.float32(0.0))
            for i in range(0, whole, LANES):
                slope = vload(dy, t * width + i)
                along = fma(vload(rows, at + i), slope, along)
                vstore(drows, at + i, vmul(splat(share), slope))
            total = vsum(along)
            for i in range(whole, width):
                slope = load(dy, t * width + i)
                total += load(rows, at + i) * slope
                store(drows, at + i, share * slope)
            dweight[t, k] = total
