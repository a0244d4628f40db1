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

from kernels.lanes import JIT, ROWS, flat, load, over_tiles, runs_here, sigmoid, store, tiles
from kernels.triton.dispatch import twin

TAPS = 4  # the width the compiled loops are written for; others run the reference


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
    if weight_CW.shape[1] != TAPS or not runs_here(x_BLC, state_BWC) or x_BLC.stride(2) != 1:
        return causal_conv_reference(x_BLC, weight_CW, bias_C, seq_idx_BL=seq_idx_BL, state_BWC=state_BWC)
    length = x_BLC.shape[1]
    if state_BWC is None:
        return _Conv.apply(x_BLC, weight_CW, bias_C, _reach(x_BLC, seq_idx_BL, 0))
    window = torch.cat([state_BWC.to(x_BLC.dtype), x_BLC], 1)
    return _Conv.apply(window, weight_CW, bias_C, _reach(window, seq_idx_BL, TAPS - 1))[:, -length:]


def causal_conv_step(x_BC: Tensor, weight_CW: Tensor, bias_C: Tensor, state_SWC: Tensor, rows_B: Tensor, active_B: Tensor | None = None) -> Tensor:
    """One position for each of B sequences, whose last inputs are rows `rows` of `state` [S,W-1,C] and move on in place. Returns [B,C]; no gradient.

    Rows that are not active keep their state, and their output means nothing.
    """
    if weight_CW.shape[1] == TAPS and state_SWC.is_contiguous() and (gpu := twin("conv", x_BC, weight_CW, state_SWC)):
        return gpu.causal_conv_step(x_BC, weight_CW, bias_C, state_SWC, rows_B, active_B)
    compiled = weight_CW.shape[1] == TAPS and runs_here(x_BC, state_SWC) and x_BC.dtype == state_SWC.dtype
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
    args = (flat(x_BC), x_BC.stride(0), taps.numpy(), bias_C.detach().float().numpy(), flat(state_SWC), rows_B.numpy(), active.numpy(), flat(y), channels)
    over_tiles(lambda a, b: _step(a, b, *args), batch, x_BC.numel() * 4)
    return y


def _reach(x_BLC: Tensor, seq_idx_BL: Tensor | None, carried: int) -> np.ndarray:
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
        batch, length, channels = x.shape
        taps = weight.detach().float().t().contiguous()
        bias32 = bias.detach().float().contiguous()
        y = torch.empty(batch, length, channels, dtype=x.dtype)
        args = flat(x), x.stride(0), x.stride(1), taps.numpy(), bias32.numpy(), reach, flat(y), length, channels
        over_tiles(lambda a, b: _forward(a, b, *args), batch * tiles(length), x.numel() * 4)
        ctx.save_for_backward(x, weight, taps, bias32)
        ctx.reach, ctx.bias_dtype = reach, bias.dtype
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, taps, bias32 = ctx.saved_tensors
        batch, length, channels = x.shape
        dy = dy if dy.is_contiguous() else dy.contiguous()
        dx = torch.empty(batch, length, channels, dtype=x.dtype)
        count = batch * tiles(length)
        sums = torch.empty(count, TAPS + 1, channels)
        args = flat(x), x.stride(0), x.stride(1), taps.numpy(), bias32.numpy(), ctx.reach, flat(dy), flat(dx), sums.numpy(), length, channels
        over_tiles(lambda a, b: _backward(a, b, *args), count, x.numel() * 8)
        total = sums.sum(0)
        return dx, total[:TAPS].t().to(weight.dtype), total[TAPS].to(ctx.bias_dtype), None


# Rows are sliced before the inner loops: see norms.


@njit(**JIT)
def _row(x, row, stride, taps, bias, reach, out, channels):
    """out[c] = bias + the taps within reach: the sum before SiLU, of the position whose first element is x[row]. Taps out of reach weigh nothing."""
    one, two, three = np.float32(reach >= 1), np.float32(reach >= 2), np.float32(reach >= 3)
    row1, row2, row3 = row - stride * min(reach, 1), row - stride * min(reach, 2), row - stride * reach
    x0, x1, x2, x3 = x[row:row + channels], x[row1:row1 + channels], x[row2:row2 + channels], x[row3:row3 + channels]
    w0, w1, w2, w3 = taps[3], taps[2], taps[1], taps[0]
    for c in range(channels):
        out[c] = bias[c] + w0[c] * load(x0, c) + one * (w1[c] * load(x1, c)) + two * (w2[c] * load(x2, c)) + three * (w3[c] * load(x3, c))


@njit(**JIT)
def _forward(first, last, x, x_batch, x_row, taps, bias, reach, y, length, channels):
    per_row = (length + ROWS - 1) // ROWS
    before = np.empty(channels, np.float32)
    for tile in range(first, last):
        b, start = tile // per_row, tile % per_row * ROWS
        for t in range(start, min(start + ROWS, length)):
            _row(x, b * x_batch + t * x_row, x_row, taps, bias, np.int64(reach[b, t]), before, channels)
            out = y[(b * length + t) * channels:(b * length + t + 1) * channels]
            for c in range(channels):
                store(out, c, before[c] * sigmoid(before[c]))


@njit(**JIT)
def _backward(first, last, x, x_batch, x_row, taps, bias, reach, dy, dx, sums, length, channels):
    per_row = (length + ROWS - 1) // ROWS
    slope = np.empty((ROWS + TAPS - 1, channels), np.float32)  # gradient of the sum before SiLU, for the tile and the positions that read it
    w0, w1, w2, w3 = taps[3], taps[2], taps[1], taps[0]
    for tile in range(first, last):
        b, start = tile // per_row, tile % per_row * ROWS
        stop = min(start + ROWS, length)
        reading = min(stop + TAPS - 1, length)
        for t in range(start, reading):
            row = slope[t - start]
            _row(x, b * x_batch + t * x_row, x_row, taps, bias, np.int64(reach[b, t]), row, channels)
            slopes = dy[(b * length + t) * channels:(b * length + t + 1) * channels]
            for c in range(channels):
                s = sigmoid(row[c])
                row[c] = load(slopes, c) * s * (np.float32(1.0) + row[c] * (np.float32(1.0) - s))
        total = sums[tile]
        total[:] = np.float32(0.0)
        for t in range(start, stop):
            back = np.int64(reach[b, t])
            row = slope[t - start]
            total_bias = total[4]
            for c in range(channels):
                total_bias[c] += row[c]
            for tap in range(back + 1):
                at = b * x_batch + (t - tap) * x_row
                read, total_tap = x[at:at + channels], total[TAPS - 1 - tap]
                for c in range(channels):
                    total_tap[c] += row[c] * load(read, c)
            r1, r2, r3 = min(t + 1, reading - 1), min(t + 2, reading - 1), min(t + 3, reading - 1)
            m1 = np.float32(t + 1 < reading and reach[b, r1] >= 1)
            m2 = np.float32(t + 2 < reading and reach[b, r2] >= 2)
            m3 = np.float32(t + 3 < reading and reach[b, r3] >= 3)
            next1, next2, next3 = slope[r1 - start], slope[r2 - start], slope[r3 - start]
            out = dx[(b * length + t) * channels:(b * length + t + 1) * channels]
            for c in range(channels):
                store(out, c, w0[c] * row[c] + m1 * (w1[c] * next1[c]) + m2 * (w2[c] * next2[c]) + m3 * (w3[c] * next3[c]))


@njit(**JIT)
def _step(first, last, x, x_row, taps, bias, state, rows, active, y, channels):
    w0, w1, w2, w3 = taps[0], taps[1], taps[2], taps[3]
    for b in range(first, last):
        at = rows[b] * 3 * channels
        s0, s1, s2 = state[at:at + channels], state[at + channels:at + 2 * channels], state[at + 2 * channels:at + 3 * channels]
        new, out = x[b * x_row:b * x_row + channels], y[b * channels:(b + 1) * channels]
        for c in range(channels):
            total = bias[c] + w0[c] * load(s0, c) + w1[c] * load(s1, c) + w2[c] * load(s2, c) + w3[c] * load(new, c)
            store(out, c, total * sigmoid(total))
        if active[b]:
            s0[:] = s1
            s1[:] = s2
            s2[:] = new
