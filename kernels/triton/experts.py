"""Grouped experts on a GPU: one launch multiplies every expert's tokens by its own matrix.

(token, choice) pairs are sorted by expert, and a program finds the expert its tile of rows belongs to from the experts' tile counts, on the device:
the host never waits for the loads. The same kernel serves both products forward and both input gradients backward: it may gather its rows, apply
relu² to them, multiply its result by the slope of relu², and put its rows back in pair order. Weight gradients are one program a tile of an expert's
matrix, over that expert's rows. No atomics: the same bits every run. Kept for the backward: x and the inner rows before relu².
Proved with Triton's interpreter and compiled for sm_90 and sm_100; never yet run on a GPU.

Shapes as in `kernels.experts`; R sorted pairs. In kernels M, N and K are block sizes of rows, result columns and summed columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, DEPTH = 64, 64, 32  # a tile of the result, and what it sums over at a time


def experts(x_TL: Tensor, up_EML: Tensor, down_ELM: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """`kernels.experts.experts` without a precision policy: [T,L] in the dtype of x, choices summed in the dtype of `weight`."""
    tokens, choices = index_TK.shape
    pairs = index_TK.reshape(-1)
    order_R = torch.argsort(pairs, stable=True)
    ends_E = torch.searchsorted(pairs[order_R], torch.arange(up_EML.shape[0], device=pairs.device), right=True)  # end of each expert's rows
    out_TKL = _Experts.apply(x_TL, up_EML, down_ELM, order_R, ends_E, choices).view(tokens, choices, -1)
    return (out_TKL * weight_TK[..., None]).sum(1).to(x_TL.dtype)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, up, down, order, ends, choices):
        x = x.contiguous()
        inner = _product(x, up, order, ends, gather=choices)                                  # [R,M], before relu²
        out = _product(inner, down, order, ends, square=True, scatter=True)                   # [TK,L], in pair order
        ctx.save_for_backward(x, up, down, order, ends, inner)
        ctx.choices = choices
        return out

    @staticmethod
    def backward(ctx, dout):
        x, up, down, order, ends, inner = ctx.saved_tensors
        dout = dout.contiguous()
        dinner = _product(dout, down.transpose(1, 2), order, ends, gather=1, slope_of=inner)
        dx = _product(dinner, up.transpose(1, 2), order, ends, scatter=True).view(x.shape[0], ctx.choices, -1).sum(1)
        dup = _weights(dinner, x, up, order, ends, gather_v=ctx.choices)
        ddown = _weights(dout, inner, down, order, ends, gather_u=1, square=True)
        return dx, dup, ddown, None, None, None


def _product(a: Tensor, w_ENK: Tensor, order_R: Tensor, ends_E: Tensor, *, gather: int = 0, square: bool = False, slope_of: Tensor | None = None,
             scatter: bool = False) -> Tensor:
    """[R,N] rows a_r w_eᵀ of sorted pairs. `gather` = n: row r is row order[r] // n of a. `scatter`: result r goes to row order[r]."""
    pairs, (count, columns, depth) = order_R.numel(), w_ENK.shape
    out = torch.empty(pairs, columns, dtype=a.dtype, device=a.device)
    tiles = triton.cdiv(pairs, ROWS) + count  # a bound: every expert may end in a partial tile
    _rows[(tiles, triton.cdiv(columns, COLUMNS))](a, w_ENK, order_R, ends_E, slope_of, out, count, columns, depth, *w_ENK.stride(), GATHER=gather,
                                                  SQUARE=square, SCATTER=scatter, M=ROWS, N=COLUMNS, K=DEPTH, E=triton.next_power_of_2(count),
                                                  PRECISION=_precision(a))
    return out


def _weights(u: Tensor, v: Tensor, like_EUV: Tensor, order_R: Tensor, ends_E: Tensor, *, gather_u: int = 0, gather_v: int = 0, square: bool = False) -> Tensor:
    """[E,U,V] u_eᵀ v_e of each expert's rows, zeros where it has none."""
    count, rows, columns = like_EUV.shape
    out = torch.empty(count, rows, columns, dtype=like_EUV.dtype, device=u.device)
    _slopes[(count, triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS))](u, v, order_R, ends_E, out, rows, columns, GATHER_U=gather_u, GATHER_V=gather_v,
                                                                             SQUARE=square, M=ROWS, N=COLUMNS, K=DEPTH, PRECISION=_precision(u))
    return out


def _precision(t: Tensor) -> str:
    return "tf32" if t.dtype == torch.bfloat16 else "tf32x3"  # bfloat16 multiplies as it is; float32 as three TF32 products, nearly float32


@triton.jit
def _squared(value):
    """relu(x)², rounded once to the dtype of x."""
    positive = tl.maximum(value.to(tl.float32), 0.0)
    return (positive * positive).to(value.dtype)


@triton.jit
def _rows(a, w, order, ends, slope_of, out, count, columns, depth, w_e, w_n, w_k, GATHER: tl.constexpr, SQUARE: tl.constexpr, SCATTER: tl.constexpr,
          M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, E: tl.constexpr, PRECISION: tl.constexpr):
    tile, e = tl.program_id(0), tl.arange(0, E)
    end_E = tl.load(ends + e, e < count, 0)
    start_E = tl.load(ends + e - 1, (e > 0) & (e < count), 0)
    tiles_E = tl.where(e < count, (end_E - start_E + M - 1) // M, 0)
    last_E = tl.cumsum(tiles_E, 0)                                           # tiles of experts up to and with each
    expert = tl.sum(((last_E <= tile) & (e < count)).to(tl.int32), 0)
    if expert < count:
        own = e == expert
        first = tl.sum(tl.where(own, start_E + (tile - last_E + tiles_E) * M, 0), 0)
        r = first + tl.arange(0, M)
        inside = r < tl.sum(tl.where(own, end_E, 0), 0)
        n, k = tl.program_id(1) * N + tl.arange(0, N), tl.arange(0, K)
        pair = tl.load(order + r, inside, 0)
        source = pair // GATHER if GATHER else r
        total = tl.zeros([M, N], tl.float32)
        matrix = w + expert.to(tl.int64) * w_e
        for start in range(0, depth, K):
            at = start + k
            a_MK = tl.load(a + source.to(tl.int64)[:, None] * depth + at[None, :], inside[:, None] & (at < depth)[None, :], 0.0)
            if SQUARE:
                a_MK = _squared(a_MK)
            w_KN = tl.load(matrix + n[None, :] * w_n + at[:, None] * w_k, (n < columns)[None, :] & (at < depth)[:, None], 0.0)
            total = tl.dot(a_MK, w_KN, total, input_precision=PRECISION)
        here = inside[:, None] & (n < columns)[None, :]
        if slope_of is not None:
            value = tl.load(slope_of + r.to(tl.int64)[:, None] * columns + n[None, :], here, 0.0).to(tl.float32)
            total = total * 2.0 * tl.maximum(value, 0.0)
        target = pair if SCATTER else r
        tl.store(out + target.to(tl.int64)[:, None] * columns + n[None, :], total.to(out.dtype.element_ty), here)


@triton.jit
def _slopes(u, v, order, ends, out, rows, columns, GATHER_U: tl.constexpr, GATHER_V: tl.constexpr, SQUARE: tl.constexpr,
            M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    expert = tl.program_id(0)
    m, n, k = tl.program_id(1) * M + tl.arange(0, M), tl.program_id(2) * N + tl.arange(0, N), tl.arange(0, K)
    begin, end = tl.load(ends + expert - 1, expert > 0, 0), tl.load(ends + expert)
    total = tl.zeros([M, N], tl.float32)
    for start in range(begin, end, K):
        r = start + k
        inside = r < end
        pair = tl.load(order + r, inside, 0)
        source_u = pair // GATHER_U if GATHER_U else r
        source_v = pair // GATHER_V if GATHER_V else r
        u_MK = tl.load(u + source_u.to(tl.int64)[None, :] * rows + m[:, None], inside[None, :] & (m < rows)[:, None], 0.0)
        v_KN = tl.load(v + source_v.to(tl.int64)[:, None] * columns + n[None, :], inside[:, None] & (n < columns)[None, :], 0.0)
        if SQUARE:
            v_KN = _squared(v_KN)
        total = tl.dot(u_MK, v_KN, total, input_precision=PRECISION)
    at = out + expert.to(tl.int64) * rows * columns + m[:, None] * columns + n[None, :]
    tl.store(at, total.to(out.dtype.element_ty), (m < rows)[:, None] & (n < columns)[None, :])
