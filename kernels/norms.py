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

from kernels.lanes import JIT, ROWS, flat, load, over_tiles, runs_here, store, tiles
from kernels.simd import WIDTH as LANES
from kernels.simd import fma, prefetch, scratch, splat, vload, vmul, vsigmoid, vstore, vsub, vsum
from kernels.triton.dispatch import twin

AHEAD = 2  # rows the gated norm asks for before their turn


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
    if not runs_here(y, z, weight_D) or z.ndim != 3 or z.stride(2) != 1 or z.shape[2] % (groups * LANES):
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
        y = y.contiguous()
        ctx.save_for_backward(y, z, weight)
        ctx.eps, ctx.groups = eps, groups
        return gate(y, z, weight, eps, groups)

    @staticmethod
    def backward(ctx, dout):
        y, z, weight = ctx.saved_tensors
        dy, dz = torch.empty_like(y), torch.empty(z.shape, dtype=z.dtype)
        return dy, dz, gate_backward(dout.contiguous(), y, z, weight, ctx.eps, ctx.groups, dy, dz), None, None


def gate(y: Tensor, z: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
    """`gated_rms_norm`, compiled, outside autograd."""
    batch, length, width = z.shape
    out = torch.empty(batch, length, width, dtype=z.dtype)
    args = flat(y), flat(z), z.stride(0), z.stride(1), flat(weight.to(z.dtype).float()), np.float32(eps), groups, flat(out), batch * length, length, width
    over_tiles(lambda a, b: _gated_forward(a, b, *args), tiles(batch * length), z.numel() * 4)
    return out


def gate_backward(dout: Tensor, y: Tensor, z: Tensor, weight: Tensor, eps: float, groups: int, dy: Tensor, dz: Tensor) -> Tensor:
    """Fills dy, contiguous, and dz, which may be a slice as z may; returns the weight's gradient. dout is contiguous."""
    batch, length, width = z.shape
    sums = torch.empty(tiles(batch * length), width)
    args = (flat(y), flat(z), z.stride(0), z.stride(1), flat(weight.to(z.dtype).float()), np.float32(eps), groups, flat(dout), flat(dy), flat(dz),
            dz.stride(0), dz.stride(1), sums.numpy(), batch * length, length, width)
    over_tiles(lambda a, b: _gated_backward(a, b, *args), tiles(batch * length), z.numel() * 8)
    return sums.sum(0).to(weight.dtype)


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


# The gated loops say their vectors themselves: LLVM would go over a row five times, and keeps no sigmoid in a register.


@njit(**JIT)
def _scale(squares, size, eps):
    """1 / rms, from sums of squares in 16 lanes."""
    return np.float32(1.0) / np.sqrt(vsum(squares) / np.float32(size) + eps)


@njit(**JIT)
def _pull(along, scale, size):
    """The gradient of x (scale times the slope) is less this times x: `along` sums slope times x, in 16 lanes."""
    return vsum(along) * scale * scale * scale / np.float32(size)


@njit(**JIT)
def _gated_forward(first, last, y, z, z_batch, z_row, weight, eps, groups, out, rows, length, width):
    size = width // groups
    gated = scratch(size)
    for row in range(first * ROWS, min(last * ROWS, rows)):
        for offset in range(0, width, size):
            at, at_z = row * width + offset, row // length * z_batch + row % length * z_row + offset
            squares = splat(np.float32(0.0))
            for i in range(0, size, LANES):
                gate = vload(z, at_z + i)
                value = vmul(vload(y, at + i), vmul(gate, vsigmoid(gate)))
                vstore(gated, i, value)
                squares = fma(value, value, squares)
                prefetch(y, at + i + AHEAD * width)
                prefetch(z, at_z + i + AHEAD * z_row)
            scale = splat(_scale(squares, size, eps))
            for i in range(0, size, LANES):
                vstore(out, at + i, vmul(vload(gated, i), scale))                          # cast first,
                vstore(out, at + i, vmul(vload(out, at + i), vload(weight, offset + i)))   # then the weight


@njit(**JIT)
def _gated_backward(first, last, y, z, z_batch, z_row, weight, eps, groups, dout, dy, dz, dz_batch, dz_row, sums, rows, length, width):
    size = width // groups
    one = splat(np.float32(1.0))
    sigmoids, gated = scratch(size), scratch(size)
    for tile in range(first, last):
        total = sums[tile]
        total[:] = np.float32(0.0)
        for row in range(tile * ROWS, min((tile + 1) * ROWS, rows)):
            for offset in range(0, width, size):
                at, at_z = row * width + offset, row // length * z_batch + row % length * z_row + offset
                at_dz = row // length * dz_batch + row % length * dz_row + offset
                squares, along = splat(np.float32(0.0)), splat(np.float32(0.0))
                for i in range(0, size, LANES):
                    gate = vload(z, at_z + i)
                    s = vsigmoid(gate)
                    value = vmul(vload(y, at + i), vmul(gate, s))
                    vstore(sigmoids, i, s)
                    vstore(gated, i, value)
                    squares = fma(value, value, squares)
                    along = fma(value, vmul(vload(weight, offset + i), vload(dout, at + i)), along)
                    prefetch(y, at + i + AHEAD * width)
                    prefetch(z, at_z + i + AHEAD * z_row)
                    prefetch(dout, at + i + AHEAD * width)
                    prefetch(dz, at_dz + i + AHEAD * dz_row)
                rms = _scale(squares, size, eps)
                scale, pull = splat(rms), splat(-_pull(along, rms, size))
                for i in range(0, size, LANES):
                    gate, s, value, slope = vload(z, at_z + i), vload(sigmoids, i), vload(gated, i), vload(dout, at + i)
                    vstore(total, offset + i, fma(slope, vmul(value, scale), vload(total, offset + i)))
                    inner = fma(value, pull, vmul(scale, vmul(vload(weight, offset + i), slope)))  # gradient of y * silu(z)
                    vstore(dy, at + i, vmul(inner, vmul(gate, s)))
                    vstore(dz, at_dz + i, vmul(vmul(inner, vload(y, at + i)), vmul(s, fma(gate, vsub(one, s), one))))
