"""RMSNorm and the gated group RMSNorm of the Mamba mixer.

The two round at different places, and bf16 parity needs both as the released models do it: the block norm multiplies by the weight in float32
and casts once; the gated norm casts the normalised value first and multiplies by the weight in the activation dtype.
The fast versions make one compiled pass over each row in each direction, and keep only their inputs for the backward.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from kernels.lanes import JIT, ROWS, flat, load, over_tiles, runs_here, sigmoid, store, tiles
from kernels.triton.dispatch import twin


def rms_norm_reference(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last axis; statistics and weight in float32, one cast at the end."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (weight_D.to(wide.dtype) * (wide * scale)).to(x.dtype)


def gated_rms_norm_reference(y: Tensor, z: Tensor, weight_D: Tensor, eps: float, groups: int) -> Tensor:
    """norm(y * silu(z)) * weight, normalised in `groups` equal slices of the last axis; the result has the dtype of z."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    gated = y.to(dtype) * F.silu(z.to(dtype))
    sliced = gated.unflatten(-1, (groups, -1))
    normed = (sliced * torch.rsqrt(sliced.square().mean(-1, keepdim=True) + eps)).flatten(-2)
    return normed.to(z.dtype) * weight_D.to(z.dtype)


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """`rms_norm_reference`, compiled for float32 and bfloat16 on CPU and GPU."""
    if gpu := twin("norms", x, weight_D):
        return gpu.rms_norm(x, weight_D, eps)
    if not runs_here(x, weight_D):
        return rms_norm_reference(x, weight_D, eps)
    return _RMSNorm.apply(x, weight_D, eps) if torch.is_grad_enabled() else _normed(x.contiguous(), weight_D.float(), eps)  # decoding feels the wrapper


def gated_rms_norm(y: Tensor, z: Tensor, weight_D: Tensor, eps: float, groups: int) -> Tensor:
    """`gated_rms_norm_reference`, compiled. z may be a slice of a wider tensor [B,L,*]; y is contiguous."""
    if gpu := twin("norms", y, z, weight_D):
        return gpu.gated_rms_norm(y, z, weight_D, eps, groups)
    if not runs_here(y, z, weight_D) or z.ndim != 3 or z.stride(2) != 1:
        return gated_rms_norm_reference(y, z, weight_D, eps, groups)
    return _GatedRMSNorm.apply(y, z, weight_D, eps, groups)


def _normed(x: Tensor, weight32_D: Tensor, eps: float) -> Tensor:
    """x contiguous, the weight float32."""
    width = x.shape[-1]
    rows, y = x.numel() // width, torch.empty_like(x)
    args = flat(x), weight32_D.detach().numpy(), np.float32(eps), flat(y), rows, width
    over_tiles(lambda a, b: _rms_forward(a, b, *args), tiles(rows), x.numel())
    return y


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        x, weight32 = x.contiguous(), weight.detach().float()
        y = _normed(x, weight32, eps)
        ctx.save_for_backward(x, weight, weight32)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, weight32 = ctx.saved_tensors
        dy = dy.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        dx, sums = torch.empty_like(x), torch.empty(tiles(rows), width)
        args = flat(x), weight32.numpy(), np.float32(ctx.eps), flat(dy), flat(dx), sums.numpy(), rows, width
        over_tiles(lambda a, b: _rms_backward(a, b, *args), tiles(rows), x.numel() * 2)
        return dx, sums.sum(0).to(weight.dtype), None


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, z, weight, eps, groups):
        batch, length, width = z.shape
        y = y.contiguous()
        out = torch.empty(batch, length, width, dtype=z.dtype)
        cast = weight.detach().to(z.dtype).float()
        args = flat(y), flat(z), z.stride(0), z.stride(1), cast.numpy(), np.float32(eps), groups, flat(out), batch * length, length, width
        over_tiles(lambda a, b: _gated_forward(a, b, *args), tiles(batch * length), z.numel() * 4)
        ctx.save_for_backward(y, z, weight, cast)
        ctx.eps, ctx.groups = eps, groups
        return out

    @staticmethod
    def backward(ctx, dout):
        y, z, weight, cast = ctx.saved_tensors
        batch, length, width = z.shape
        dout = dout.contiguous()
        dy, dz = torch.empty_like(y), torch.empty(batch, length, width, dtype=z.dtype)
        sums = torch.empty(tiles(batch * length), width)
        args = (flat(y), flat(z), z.stride(0), z.stride(1), cast.numpy(), np.float32(ctx.eps), ctx.groups, flat(dout), flat(dy), flat(dz),
                sums.numpy(), batch * length, length, width)
        over_tiles(lambda a, b: _gated_backward(a, b, *args), tiles(batch * length), z.numel() * 8)
        return dy, dz, sums.sum(0).to(weight.dtype), None, None


# Rows are sliced before the inner loops: an index that is plainly a loop's own counter needs no test for negative indices, and such a test
# would keep the loop scalar.


@njit(**JIT)
def _rms_forward(first, last, x, weight, eps, y, rows, width):
    for row in range(first * ROWS, min(last * ROWS, rows)):
        xs, ys = x[row * width:(row + 1) * width], y[row * width:(row + 1) * width]
        squares = np.float32(0.0)
        for i in range(width):
            squares += load(xs, i) * load(xs, i)
        scale = np.float32(1.0) / np.sqrt(squares / np.float32(width) + eps)
        for i in range(width):
            store(ys, i, weight[i] * (load(xs, i) * scale))


@njit(**JIT)
def _rms_backward(first, last, x, weight, eps, dy, dx, sums, rows, width):
    for tile in range(first, last):
        total = sums[tile]
        total[:] = np.float32(0.0)
        for row in range(tile * ROWS, min((tile + 1) * ROWS, rows)):
            xs, slopes, out = x[row * width:(row + 1) * width], dy[row * width:(row + 1) * width], dx[row * width:(row + 1) * width]
            squares, along = np.float32(0.0), np.float32(0.0)
            for i in range(width):
                value = load(xs, i)
                squares += value * value
                along += value * (weight[i] * load(slopes, i))
            scale = np.float32(1.0) / np.sqrt(squares / np.float32(width) + eps)
            pull = along * scale * scale * scale / np.float32(width)
            for i in range(width):
                total[i] += load(slopes, i) * (load(xs, i) * scale)
            for i in range(width):
                store(out, i, scale * (weight[i] * load(slopes, i)) - load(xs, i) * pull)


@njit(**JIT)
def _gated_forward(first, last, y, z, z_batch, z_row, weight, eps, groups, out, rows, length, width):
    size = width // groups
    gated = np.empty(size, np.float32)
    for row in range(first * ROWS, min(last * ROWS, rows)):
        for group in range(groups):
            at, at_z = row * width + group * size, row // length * z_batch + row % length * z_row + group * size
            ys, zs, outs, weights = y[at:at + size], z[at_z:at_z + size], out[at:at + size], weight[group * size:(group + 1) * size]
            squares = np.float32(0.0)
            for i in range(size):
                gate = load(zs, i)
                value = load(ys, i) * (gate * sigmoid(gate))
                gated[i] = value
                squares += value * value
            scale = np.float32(1.0) / np.sqrt(squares / np.float32(size) + eps)
            for i in range(size):
                store(outs, i, gated[i] * scale)               # cast first,
            for i in range(size):
                store(outs, i, load(outs, i) * weights[i])     # then the weight


@njit(**JIT)
def _gated_backward(first, last, y, z, z_batch, z_row, weight, eps, groups, dout, dy, dz, sums, rows, length, width):
    size = width // groups
    gate_slope, silu, gated = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    for tile in range(first, last):
        sums[tile][:] = np.float32(0.0)
        for row in range(tile * ROWS, min((tile + 1) * ROWS, rows)):
            for group in range(groups):
                offset = group * size
                at, at_z = row * width + offset, row // length * z_batch + row % length * z_row + offset
                ys, zs, slopes, total = y[at:at + size], z[at_z:at_z + size], dout[at:at + size], sums[tile][offset:offset + size]
                weights, out_y, out_z = weight[offset:offset + size], dy[at:at + size], dz[at:at + size]
                squares, along = np.float32(0.0), np.float32(0.0)
                for i in range(size):
                    gate = load(zs, i)
                    s = sigmoid(gate)
                    silu[i] = gate * s
                    gate_slope[i] = s * (np.float32(1.0) + gate * (np.float32(1.0) - s))
                    value = load(ys, i) * silu[i]
                    gated[i] = value
                    squares += value * value
                    along += value * (weights[i] * load(slopes, i))
                scale = np.float32(1.0) / np.sqrt(squares / np.float32(size) + eps)
                pull = along * scale * scale * scale / np.float32(size)
                for i in range(size):
                    total[i] += load(slopes, i) * (gated[i] * scale)
                for i in range(size):
                    gated[i] = scale * (weights[i] * load(slopes, i)) - gated[i] * pull   # now its gradient
                for i in range(size):
                    store(out_z, i, gated[i] * load(ys, i) * gate_slope[i])
                for i in range(size):
                    store(out_y, i, gated[i] * silu[i])
