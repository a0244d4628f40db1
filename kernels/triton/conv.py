"""The causal convolution of `kernels.conv` on a GPU: width 4, bias and SiLU in one pass each way, and its decoding step.

A program owns a tile of positions x channels. The backward computes the sum before SiLU again, for the tile and the three positions that read it, and
writes each tile's part of the weight gradient apart: no atomics, the same bits every run. A tap counts if its position is in the row and in the same
document; a carried state is put in front of the row as positions of its first document.
Proved with Triton's interpreter and compiled for sm_90 and sm_100; never yet run on a GPU.

Shapes as in `kernels.conv`; in kernels T positions and C channels of a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TAPS = 4
POSITIONS, CHANNELS = 32, 64  # a tile
STEP_CHANNELS = 256  # channels of a program of the decoding step


def causal_conv(x_BLC: Tensor, weight_CW: Tensor, bias_C: Tensor, seq_idx_BL: Tensor | None, state_BWC: Tensor | None) -> Tensor:
    """`kernels.conv.causal_conv`; x may be a slice of a wider tensor."""
    if state_BWC is None:
        return _Conv.apply(x_BLC, weight_CW, bias_C, seq_idx_BL)
    length = x_BLC.shape[1]
    ids = None if seq_idx_BL is None else torch.cat([seq_idx_BL[:, :1].expand(-1, TAPS - 1), seq_idx_BL], 1)
    return _Conv.apply(torch.cat([state_BWC.to(x_BLC.dtype), x_BLC], 1), weight_CW, bias_C, ids)[:, -length:]


def causal_conv_step(x_BC: Tensor, weight_CW: Tensor, bias_C: Tensor, state_SWC: Tensor, rows_B: Tensor, active_B: Tensor | None) -> Tensor:
    """`kernels.conv.causal_conv_step`: moves rows `rows` of the state on in place, where active."""
    batch, channels = x_BC.shape
    y_BC = torch.empty(batch, channels, dtype=x_BC.dtype, device=x_BC.device)
    _step[(batch, triton.cdiv(channels, STEP_CHANNELS))](x_BC, weight_CW.contiguous(), bias_C, state_SWC, rows_B, active_B, y_BC, channels, *x_BC.stride(),
                                                         state_SWC.stride(0), C=STEP_CHANNELS)
    return y_BC


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, ids):
        x = x if x.stride(2) == 1 else x.contiguous()
        batch, length, channels = x.shape
        weight_c, ids = weight.contiguous(), None if ids is None else ids.contiguous()
        y = torch.empty(batch, length, channels, dtype=x.dtype, device=x.device)
        grid = (triton.cdiv(length, POSITIONS), triton.cdiv(channels, CHANNELS), batch)
        _forward[grid](x, weight_c, bias, ids, y, length, channels, x.stride(0), x.stride(1), T=POSITIONS, C=CHANNELS)
        ctx.save_for_backward(x, weight_c, bias, ids)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, ids = ctx.saved_tensors
        batch, length, channels = x.shape
        tiles = triton.cdiv(length, POSITIONS)
        dx = torch.empty(batch, length, channels, dtype=x.dtype, device=x.device)
        parts = torch.empty(batch, tiles, TAPS + 1, channels, device=x.device)
        _backward[(tiles, triton.cdiv(channels, CHANNELS), batch)](x, weight, bias, ids, dy.contiguous(), dx, parts, length, channels, tiles,
                                                                   x.stride(0), x.stride(1), T=POSITIONS, C=CHANNELS)
        total = parts.sum((0, 1))
        return dx, total[:TAPS].t().to(weight.dtype), total[TAPS].to(bias.dtype), None


@triton.jit
def _tap(x, ids, row, t, c, back: tl.constexpr, length, channels, x_row, x_t):
    """float32 [T,C]: the inputs `back` positions before t, zero outside the row and in another document."""
    seen = (t >= back) & (t < length)
    if ids is not None:
        seen = seen & (tl.load(ids + row * length + t - back, seen, 0) == tl.load(ids + row * length + t, seen, 0))
    return tl.load(x + row * x_row + (t - back)[:, None] * x_t + c[None, :], seen[:, None] & (c < channels)[None, :], 0.0).to(tl.float32)


@triton.jit
def _total(x, weight, bias, ids, row, t, c, length, channels, x_row, x_t):
    """float32 [T,C]: the sum before SiLU."""
    total = tl.load(bias + c, c < channels, 0.0).to(tl.float32)[None, :]
    for back in tl.static_range(4):
        tap_C = tl.load(weight + c * 4 + 3 - back, c < channels, 0.0).to(tl.float32)
        total += _tap(x, ids, row, t, c, back, length, channels, x_row, x_t) * tap_C[None, :]
    return total


@triton.jit
def _forward(x, weight, bias, ids, y, length, channels, x_row, x_t, T: tl.constexpr, C: tl.constexpr):
    t, c, row = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.program_id(1) * C + tl.arange(0, C), tl.program_id(2).to(tl.int64)
    total = _total(x, weight, bias, ids, row, t, c, length, channels, x_row, x_t)
    at = y + (row * length + t)[:, None] * channels + c[None, :]
    tl.store(at, (total * tl.sigmoid(total)).to(y.dtype.element_ty), (t < length)[:, None] & (c < channels)[None, :])


@triton.jit
def _backward(x, weight, bias, ids, dy, dx, parts, length, channels, tiles, x_row, x_t, T: tl.constexpr, C: tl.constexpr):
    t, c, row = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.program_id(1) * C + tl.arange(0, C), tl.program_id(2).to(tl.int64)
    part = parts + (row * tiles + tl.program_id(0)) * 5 * channels + c
    dx_TC = tl.zeros([T, C], tl.float32)
    for back in tl.static_range(4):
        reader = t + back                                                    # the position that reads t as its tap
        total = _total(x, weight, bias, ids, row, reader, c, length, channels, x_row, x_t)
        open = tl.sigmoid(total)
        inside = (reader < length)[:, None] & (c < channels)[None, :]
        slope = tl.load(dy + (row * length + reader)[:, None] * channels + c[None, :], inside, 0.0).to(tl.float32)
        slope = slope * open * (1.0 + total * (1.0 - open))
        tap_C = tl.load(weight + c * 4 + 3 - back, c < channels, 0.0).to(tl.float32)
        read = reader < length
        if ids is not None:
            read = read & (tl.load(ids + row * length + reader, read, 0) == tl.load(ids + row * length + t, read, 0))
        used = tl.where(read[:, None], slope, 0.0)
        dx_TC += used * tap_C[None, :]
        value = tl.load(x + row * x_row + t[:, None] * x_t + c[None, :], (t < length)[:, None] & (c < channels)[None, :], 0.0).to(tl.float32)
        tl.store(part + (3 - back) * channels, tl.sum(used * value, 0), c < channels)
        if back == 0:
            tl.store(part + 4 * channels, tl.sum(slope, 0), c < channels)
    tl.store(dx + (row * length + t)[:, None] * channels + c[None, :], dx_TC.to(dx.dtype.element_ty), (t < length)[:, None] & (c < channels)[None, :])


@triton.jit
def _step(x, weight, bias, state, rows, active, y, channels, x_row, x_c, state_row, C: tl.constexpr):
    b, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * C + tl.arange(0, C)
    inside = c < channels
    slot = state + tl.load(rows + b).to(tl.int64) * state_row + c
    new = tl.load(x + b * x_row + c * x_c, inside, 0.0)
    one, two, three = tl.load(slot, inside, 0.0), tl.load(slot + channels, inside, 0.0), tl.load(slot + 2 * channels, inside, 0.0)
    total = tl.load(bias + c, inside, 0.0).to(tl.float32) + new.to(tl.float32) * tl.load(weight + c * 4 + 3, inside, 0.0).to(tl.float32)
    total += one.to(x.dtype.element_ty).to(tl.float32) * tl.load(weight + c * 4, inside, 0.0).to(tl.float32)
    total += two.to(x.dtype.element_ty).to(tl.float32) * tl.load(weight + c * 4 + 1, inside, 0.0).to(tl.float32)
    total += three.to(x.dtype.element_ty).to(tl.float32) * tl.load(weight + c * 4 + 2, inside, 0.0).to(tl.float32)
    tl.store(y + b * channels + c, (total * tl.sigmoid(total)).to(y.dtype.element_ty), inside)
    limit = channels
    if active is not None:
        limit = tl.where(tl.load(active + b) != 0, channels, 0)
    tl.store(slot, two, c < limit)
    tl.store(slot + channels, three, c < limit)
    tl.store(slot + 2 * channels, new.to(state.dtype.element_ty), c < limit)
