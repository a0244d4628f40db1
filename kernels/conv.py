"""Depthwise causal convolution, width 4, with bias and SiLU: the short memory in front of the Mamba scan.

y_t = silu(bias + sum_j w_j x_{t-3+j}); taps that would reach into another document (seq_idx) read zero. The carried state is the last W-1
inputs. A sum of shifted products is the reference. `causal_conv` is the same in one compiled pass each way, instead of a dozen over memory: the
backward recomputes the sum before SiLU tile by tile and keeps nothing but its inputs.

Shapes: B batch, L length, C channels, W taps.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from kernels.lanes import JIT, ROWS, flat, over_tiles, runs_here, tiles
from kernels.products import per
from kernels.simd import WIDTH as LANES
from kernels.simd import fma, keep_if, prefetch, splat, vadd, vload, vmul, vsigmoid, vstore, vsub
from kernels.triton.dispatch import twin

TAPS = 4  # the width the compiled loops are written for; others run the reference
AHEAD = 2  # rows asked for before their turn: a slice of a wider tensor comes from memory in pieces


def causal_conv_reference(x_BLC: Tensor, weight_CW: Tensor, bias_C: Tensor, *, seq_idx_BL: Tensor | None = None,
                          state_BWC: Tensor | None = None) -> Tensor:
    """Shifted products in float32 (or float64 for float64 input); returns [B,L,C] in the dtype of x. `state` is [B,W-1,C], the inputs before x."""
    batch, length, channels = x_BLC.shape
    taps = weight_CW.shape[1]
    dtype = torch.promote_types(x_BLC.dtype, torch.float32)
    before = x_BLC.new_zeros(batch, taps - 1, channels) if state_BWC is None else state_BWC.to(x_BLC.dtype)
    window = torch.cat([before, x_BLC], 1).to(dtype)
    total = bias_C.to(dtype).expand(batch, length, channels)
    for tap in range(taps):
        back = taps - 1 - tap
        term = window[:, tap:tap + length] * weight_CW[:, tap].to(dtype)
        if seq_idx_BL is not None and back:
            earlier = F.pad(seq_idx_BL, (back, 0))[:, :length]
            if back < length:
                same = earlier == seq_idx_BL
                same[:, :back] = (seq_idx_BL[:, :back] == seq_idx_BL[:, :1])  # state and zeros before the row: the first document's
            else:
                same = seq_idx_BL == seq_idx_BL[:, :1]
            term = term * same[..., None]
        total = total + term
    return F.silu(total).to(x_BLC.dtype)


def causal_conv(x_BLC: Tensor, weight_CW: Tensor, bias_C: Tensor, *, seq_idx_BL: Tensor | None = None, state_BWC: Tensor | None = None) -> Tensor:
    """The compiled form. x may be a slice of a wider tensor, as long as its channels are adjacent."""
    if weight_CW.shape[1] == TAPS and (gpu := twin("conv", x_BLC, weight_CW)):
        return gpu.causal_conv(x_BLC, weight_CW, bias_C, seq_idx_BL, state_BWC)
    if weight_CW.shape != (x_BLC.shape[2] // LANES * LANES, TAPS) or not runs_here(x_BLC, state_BWC) or x_BLC.stride(2) != 1:
        return causal_conv_reference(x_BLC, weight_CW, bias_C, seq_idx_BL=seq_idx_BL, state_BWC=state_BWC)
    length = x_BLC.shape[1]
    if state_BWC is None:
        return _Conv.apply(x_BLC, weight_CW, bias_C, reach_of(x_BLC, seq_idx_BL, 0))
    window = torch.cat([state_BWC.to(x_BLC.dtype), x_BLC], 1)
    return _Conv.apply(window, weight_CW, bias_C, reach_of(window, seq_idx_BL, TAPS - 1))[:, -length:]


def causal_conv_step(x_BC: Tensor, weight_CW: Tensor, bias_C: Tensor, state_SWC: Tensor, rows_B: Tensor, active_B: Tensor | None = None) -> Tensor:
    """One position for each of B sequences, whose last inputs are rows `rows` of `state` [S,W-1,C] and move on in place. Returns [B,C]; no gradient.

    Rows that are not active keep their state, and their output means nothing.
    """
    if weight_CW.shape[1] == TAPS and state_SWC.is_contiguous() and (gpu := twin("conv", x_BC, weight_CW, state_SWC)):
        return gpu.causal_conv_step(x_BC, weight_CW, bias_C, state_SWC, rows_B, active_B)
    compiled = weight_CW.shape == (x_BC.shape[1] // LANES * LANES, TAPS) and runs_here(x_BC, state_SWC) and x_BC.dtype == state_SWC.dtype
    if not compiled or x_BC.stride(1) != 1 or not state_SWC.is_contiguous():
        before = state_SWC[rows_B]
        y = causal_conv_reference(x_BC[:, None], weight_CW, bias_C, state_BWC=before)[:, 0]
        after = torch.cat([before[:, 1:], x_BC[:, None].to(before.dtype)], 1)
        state_SWC[rows_B] = after if active_B is None else torch.where(active_B[:, None, None], after, before)
        return y
    batch, channels = x_BC.shape
    y = torch.empty(batch, channels, dtype=x_BC.dtype)
    active = active_B if active_B is not None else torch.ones(batch, dtype=torch.bool)
    taps = weight_CW.detach().float().t().contiguous()
    args = (flat(x_BC), x_BC.stride(0), flat(taps), bias_C.detach().float().numpy(), flat(state_SWC), rows_B.numpy(), active.numpy(), flat(y), channels)
    over_tiles(lambda a, b: _step(a, b, *args), batch, x_BC.numel() * 4)
    return y


def reach_of(x_BLC: Tensor, seq_idx_BL: Tensor | None, carried: int) -> np.ndarray:
    """How many earlier positions each position may read, 0..W-1: fewer at the start of a row and of a document."""
    batch, length, _ = x_BLC.shape
    position = torch.arange(length)
    if seq_idx_BL is None:
        return position.clamp(max=TAPS - 1).to(torch.uint8).expand(batch, length).contiguous().numpy()
    ids = torch.cat([seq_idx_BL[:, :1].expand(-1, carried), seq_idx_BL], 1) if carried else seq_idx_BL
    starts = torch.zeros(batch, length, dtype=torch.long)
    starts[:, 1:] = position[1:] * (ids[:, 1:] != ids[:, :-1])
    return (position - starts.cummax(1)[0]).clamp_(max=TAPS - 1).to(torch.uint8).numpy()


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, reach):
        y = convolve(x, weight, bias, reach)
        ctx.save_for_backward(x, weight, bias)
        ctx.reach = reach
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype)
        return dx, *convolve_backward(dy.contiguous(), x, weight, bias, ctx.reach, dx), None


def _taps(weight: Tensor, bias: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Weights [W,C] and the bias in float32."""
    return flat(weight.detach().float().t().contiguous()), bias.detach().float().contiguous().numpy()


def convolve(x: Tensor, weight: Tensor, bias: Tensor, reach: np.ndarray) -> Tensor:
    """`causal_conv`, compiled, outside autograd; `reach` is `reach_of` x."""
    batch, length, channels = x.shape
    y = torch.empty(batch, length, channels, dtype=x.dtype)
    args = flat(x), x.stride(0), x.stride(1), *_taps(weight, bias), reach, flat(y), length, channels
    over_tiles(lambda a, b: _forward(a, b, *args), batch * tiles(length), x.numel() * 4)
    return y


def convolve_backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, reach: np.ndarray, dx: Tensor) -> tuple[Tensor, Tensor]:
    """Fills dx, which may be a slice of a wider tensor as x may, and returns the gradients of weight and bias. dy is contiguous."""
    batch, length, channels = x.shape
    count = batch * tiles(length)
    sums = torch.empty(count, TAPS + 1, channels)
    args = (flat(x), x.stride(0), x.stride(1), *_taps(weight, bias), reach, flat(dy), flat(dx), dx.stride(0), dx.stride(1), sums.view(count, -1).numpy(),
            length, channels)
    over_tiles(lambda a, b: _backward(a, b, *args), count, x.numel() * 8)
    total = sums.sum(0)
    return total[:TAPS].t().to(weight.dtype), total[TAPS].to(bias.dtype)


# The forward walks one position's channels, 16 at a time: memory is read and written in its own order, and what a position needs of the three
# before it is still in the first-level cache.


@njit(**JIT)
def _window(at, stride, reach):
    """Where the position at `at` and the three before it begin, and whether each of the three is within reach."""
    return (at, at - stride * min(reach, 1), at - stride * min(reach, 2), at - stride * reach), (reach >= 1, reach >= 2, reach >= 3)


@njit(**JIT)
def _read(x, begins, within, c):
    """Channels c to c + 15 of the window, the latest position first; 0 out of reach."""
    return (vload(x, begins[0] + c), keep_if(vload(x, begins[1] + c), within[0]), keep_if(vload(x, begins[2] + c), within[1]),
            keep_if(vload(x, begins[3] + c), within[2]))


@njit(**JIT)
def _weights(taps, within, channels, c):
    """Of channels c to c + 15, the latest position's first; 0 out of reach."""
    return (vload(taps, 3 * channels + c), keep_if(vload(taps, 2 * channels + c), within[0]), keep_if(vload(taps, channels + c), within[1]),
            keep_if(vload(taps, c), within[2]))


@njit(**JIT)
def _dot(x, w, bias):
    """The sum before SiLU."""
    return fma(w[3], x[3], fma(w[2], x[2], fma(w[1], x[1], fma(w[0], x[0], bias))))


@njit(**JIT)
def _forward(first, last, x, x_batch, x_row, taps, bias, reach, y, length, channels):
    per_row = (length + ROWS - 1) // ROWS
    for tile in range(first, last):
        b, start = tile // per_row, tile % per_row * ROWS
        for t in range(start, min(start + ROWS, length)):
            begins, within = _window(b * x_batch + t * x_row, x_row, np.int64(reach[b, t]))
            out = (b * length + t) * channels
            for c in range(0, channels, LANES):
                total = _dot(_read(x, begins, within, c), _weights(taps, within, channels, c), vload(bias, c))
                vstore(y, out + c, vmul(total, vsigmoid(total)))
                prefetch(x, begins[0] + AHEAD * x_row + c)


@njit(**JIT)
def _backward(first, last, x, x_batch, x_row, taps, bias, reach, dy, dx, dx_batch, dx_row, sums, length, channels):
    """A position's slope (the gradient of its sum before SiLU) goes to the weights, and to dx of its window.

    Sixteen channels of a tile walk down its positions: window, sums for the weights and unfinished dx stay in registers. The three positions after the tile
    are read for what they give its own dx.
    """
    per_row, one, none, line = (length + ROWS - 1) // ROWS, splat(np.float32(1.0)), splat(np.float32(0.0)), LANES * per(x)
    for tile in range(first, last):
        b, start = tile // per_row, tile % per_row * ROWS
        stop = min(start + ROWS, length)
        reading = min(stop + TAPS - 1, length)
        for c in range(0, channels, LANES):
            at, at_dy, at_dx = b * x_batch + start * x_row + c, (b * length + start) * channels + c, b * dx_batch + start * dx_row + c
            w, add = _weights(taps, (True, True, True), channels, c), vload(bias, c)
            x1, x2, x3 = (vload(x, at - x_row), vload(x, at - 2 * x_row), vload(x, at - 3 * x_row)) if start else (none, none, none)
            sum0, sum1, sum2, sum3, total, dx1, dx2, dx3 = none, none, none, none, none, none, none, none
            for t in range(start, reading):
                near, x0 = reach[b, t], vload(x, at)
                if near < TAPS - 1:
                    x1, x2, x3 = keep_if(x1, near >= 1), keep_if(x2, near >= 2), none
                before = _dot((x0, x1, x2, x3), w, add)
                s = vsigmoid(before)
                slope = vmul(vmul(vload(dy, at_dy), s), fma(before, vsub(one, s), one))
                slope1 = slope2 = slope3 = slope
                if near < TAPS - 1:
                    slope1, slope2, slope3 = keep_if(slope, near >= 1), keep_if(slope, near >= 2), none
                prefetch(x, at + line)
                prefetch(dy, at_dy + line)
                prefetch(dx, at_dx + line)
                if t - start >= TAPS - 1:
                    vstore(dx, at_dx - (TAPS - 1) * dx_row, fma(slope3, w[3], dx3))
                dx1, dx2, dx3 = vmul(slope, w[0]), fma(slope1, w[1], dx1), fma(slope2, w[2], dx2)
                if t >= stop:
                    slope = none
                sum0, sum1, sum2, sum3, total = fma(slope, x0, sum0), fma(slope, x1, sum1), fma(slope, x2, sum2), fma(slope, x3, sum3), vadd(slope, total)
                x1, x2, x3 = x0, x1, x2
                at, at_dy, at_dx = at + x_row, at_dy + channels, at_dx + dx_row
            for back, left in ((1, dx1), (2, dx2), (3, dx3)):
                if start <= reading - back < stop:
                    vstore(dx, at_dx - back * dx_row, left)
            for tap, value in ((3, sum0), (2, sum1), (1, sum2), (0, sum3), (4, total)):
                vstore(sums[tile], tap * channels + c, value)


@njit(**JIT)
def _step(first, last, x, x_row, taps, bias, state, rows, active, y, channels):
    for b in range(first, last):
        oldest, new, out = rows[b] * 3 * channels, b * x_row, b * channels
        for c in range(0, channels, LANES):
            at = oldest + c
            window = vload(x, new + c), vload(state, at + 2 * channels), vload(state, at + channels), vload(state, at)
            total = _dot(window, _weights(taps, (True, True, True), channels, c), vload(bias, c))
            vstore(y, out + c, vmul(total, vsigmoid(total)))
            if active[b]:
                vstore(state, at, window[2])
                vstore(state, at + channels, window[1])
                vstore(state, at + 2 * channels, window[0])
