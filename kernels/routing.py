"""The router's scores, sigmoid(x Wᵀ) in float32 whatever x is: a product too thin for a library, and one node of autograd.

Rows are widened a tile at a time, so no float32 copy of all hidden states is made, and the gradient leaves in the dtype of x. Tiles have a fixed size
and their parts of the weight's gradient are added in order: the same bits on one thread or many.

Shapes: S tokens, D hidden, E experts (F: rounded up to whole vectors).
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.lanes import JIT, flat, load, over_tiles, runs_here, sigmoid, store
from kernels.products import multiply
from kernels.simd import WIDTH

TOKENS = 64  # a tile


def scores_reference(x_SD: Tensor, weight_ED: Tensor) -> Tensor:
    return torch.sigmoid(x_SD.float() @ weight_ED.float().t())


def scores(x_SD: Tensor, weight_ED: Tensor) -> Tensor:
    """[S,E] float32."""
    if not runs_here(x_SD, weight_ED) or x_SD.shape[1] % WIDTH:
        return scores_reference(x_SD, weight_ED)
    return _Scores.apply(x_SD, weight_ED)


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_SD, weight_ED):
        x_SD, wide_FD = x_SD.contiguous(), _widened(weight_ED)
        scores_SE = torch.empty(len(x_SD), len(weight_ED))
        args = flat(x_SD), flat(wide_FD.t().contiguous()), flat(scores_SE), len(x_SD), x_SD.shape[1], len(weight_ED), len(wide_FD)
        over_tiles(lambda a, b: _forward(a, b, *args), -(-len(x_SD) // TOKENS), x_SD.numel())
        ctx.save_for_backward(x_SD, weight_ED, scores_SE)
        return scores_SE

    @staticmethod
    def backward(ctx, dscores_SE):
        x_SD, weight_ED, scores_SE = ctx.saved_tensors
        wide_FD, tiles = _widened(weight_ED), -(-len(x_SD) // TOKENS)
        dx_SD, parts = torch.empty_like(x_SD), torch.empty(tiles, *wide_FD.shape)
        args = (flat(x_SD), flat(wide_FD), flat(scores_SE), flat(dscores_SE.contiguous()), flat(dx_SD), flat(parts), len(x_SD), x_SD.shape[1],
                len(weight_ED), len(wide_FD))
        over_tiles(lambda a, b: _backward(a, b, *args), tiles, x_SD.numel())
        return dx_SD, parts.sum(0)[:len(weight_ED)].to(weight_ED.dtype)


def _widened(weight_ED: Tensor) -> Tensor:
    return torch.nn.functional.pad(weight_ED.float(), (0, 0, 0, -len(weight_ED) % WIDTH)).contiguous()


@njit(**JIT)
def _widen(x, rows):
    for i in range(x.size):
        rows[i] = load(x, i)
    rows[x.size:] = np.float32(0.0)


@njit(**JIT)
def _forward(first, last, x, turned, scores, tokens, width, experts, room):
    rows, totals = np.empty(TOKENS * width, np.float32), np.empty(TOKENS * room, np.float32)
    for tile in range(first, last):
        begin, count = tile * TOKENS, min(TOKENS, tokens - tile * TOKENS)
        _widen(x[begin * width:(begin + count) * width], rows)
        multiply(rows, 0, width, 1, turned, 0, room, (count + 3) // 4 * 4, width, room, totals, 0, room, 0.0)
        for s in range(count):
            out, total = scores[(begin + s) * experts:(begin + s + 1) * experts], totals[s * room:(s + 1) * room]
            for e in range(experts):
                out[e] = sigmoid(total[e])


@njit(**JIT)
def _backward(first, last, x, weight, scores, dscores, dx, parts, tokens, width, experts, room):
    rows, slopes = np.empty(TOKENS * width, np.float32), np.zeros(TOKENS * room, np.float32)
    for tile in range(first, last):
        begin, count = tile * TOKENS, min(TOKENS, tokens - tile * TOKENS)
        _widen(x[begin * width:(begin + count) * width], rows)
        for s in range(count):
            for e in range(experts):
                score = scores[(begin + s) * experts + e]
                slopes[s * room + e] = dscores[(begin + s) * experts + e] * score * (np.float32(1.0) - score)
        multiply(slopes, 0, 1, room, rows, 0, width, room, count, width, parts, tile * room * width, width, 0.0)
        multiply(slopes, 0, room, 1, weight, 0, width, (count + 3) // 4 * 4, room, width, rows, 0, width, 0.0)
        out = dx[begin * width:(begin + count) * width]
        for i in range(out.size):
            store(out, i, rows[i])
