"""RMSNorm and the gated group RMSNorm on a GPU, rounding where `kernels.norms` rounds.

One program a row (and group) forward. Backward, a program walks ROWS rows and keeps their part of the weight gradient in registers; the parts are
summed afterwards, in one order, so that gradients are the same bits every run. Only the inputs are kept.
Proved with Triton's interpreter and compiled for sm_90 and sm_100; never yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16  # rows of a backward program


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """`kernels.norms.rms_norm_reference`; x of any leading shape."""
    return _RMSNorm.apply(x, weight_D, eps)


def gated_rms_norm(y: Tensor, z: Tensor, weight_D: Tensor, eps: float, groups: int) -> Tensor:
    """`kernels.norms.gated_rms_norm_reference`; z may be a slice of a wider tensor [B,L,*]."""
    if z.ndim != 3 or z.stride(-1) != 1:
        z = z.contiguous()
    z_BLD = z if z.ndim == 3 else z.reshape(1, -1, z.shape[-1])
    return _GatedRMSNorm.apply(y.reshape(z_BLD.shape), z_BLD, weight_D, eps, groups).reshape(z.shape)


def _warps(block: int) -> int:
    return min(max(block // 512, 1), 16)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        x = x.contiguous()
        width = x.shape[-1]
        y, block = torch.empty_like(x), triton.next_power_of_2(width)
        _rms_forward[(x.numel() // width,)](x, weight, y, eps, width, BLOCK=block, num_warps=_warps(block))
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        width = x.shape[-1]
        rows, block = x.numel() // width, triton.next_power_of_2(width)
        programs = triton.cdiv(rows, ROWS)
        dx, sums = torch.empty_like(x), torch.empty(programs, width, device=x.device)
        _rms_backward[(programs,)](x, weight, dy.contiguous(), dx, sums, ctx.eps, rows, width, BLOCK=block, ROWS=ROWS, num_warps=_warps(block))
        return dx, sums.sum(0).to(weight.dtype), None


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, z, weight, eps, groups):
        batch, length, width = z.shape
        y, size = y.contiguous(), width // groups
        out, block = torch.empty(batch, length, width, dtype=z.dtype, device=z.device), triton.next_power_of_2(size)
        _gated_forward[(batch * length, groups)](y, z, weight, out, eps, length, width, size, z.stride(0), z.stride(1), BLOCK=block, num_warps=_warps(block))
        ctx.save_for_backward(y, z, weight)
        ctx.eps, ctx.groups = eps, groups
        return out

    @staticmethod
    def backward(ctx, dout):
        y, z, weight = ctx.saved_tensors
        batch, length, width = z.shape
        rows, size = batch * length, width // ctx.groups
        programs, block = triton.cdiv(rows, ROWS), triton.next_power_of_2(size)
        dy, dz = torch.empty_like(y), torch.empty(batch, length, width, dtype=z.dtype, device=z.device)
        sums = torch.empty(programs, width, device=z.device)
        _gated_backward[(programs, ctx.groups)](y, z, weight, dout.contiguous(), dy, dz, sums, ctx.eps, rows, length, width, size, z.stride(0), z.stride(1),
                                                BLOCK=block, ROWS=ROWS, num_warps=_warps(block))
        return dy, dz, sums.sum(0).to(weight.dtype), None, None


@triton.jit
def _rms_forward(x, weight, y, eps, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row + at, inside, 0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value) / width + eps)
    tl.store(y + row + at, (tl.load(weight + at, inside, 0.0).to(tl.float32) * (value * scale)).to(y.dtype.element_ty), inside)


@triton.jit
def _rms_backward(x, weight, dy, dx, sums, eps, rows, width, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    w = tl.load(weight + at, inside, 0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(ROWS):
        row = program * ROWS + i
        here = at < tl.where(row < rows, width, 0)
        value, slope = tl.load(x + row * width + at, here, 0.0).to(tl.float32), tl.load(dy + row * width + at, here, 0.0).to(tl.float32)
        scale = 1.0 / tl.sqrt(tl.sum(value * value) / width + eps)
        pull = tl.sum(value * (w * slope)) * scale * scale * scale / width
        total += slope * (value * scale)
        tl.store(dx + row * width + at, (scale * (w * slope) - value * pull).to(dx.dtype.element_ty), here)
    tl.store(sums + program * width + at, total, inside)


@triton.jit
def _gated_forward(y, z, weight, out, eps, length, width, size, z_batch, z_row, BLOCK: tl.constexpr):
    row, offset = tl.program_id(0).to(tl.int64), tl.program_id(1) * size
    at = offset + tl.arange(0, BLOCK)
    inside = at < offset + size
    gate = tl.load(z + row // length * z_batch + row % length * z_row + at, inside, 0.0).to(tl.float32)
    gated = tl.load(y + row * width + at, inside, 0.0).to(tl.float32) * (gate * tl.sigmoid(gate))
    scale = 1.0 / tl.sqrt(tl.sum(gated * gated) / size + eps)
    dtype = out.dtype.element_ty
    cast = (gated * scale).to(dtype).to(tl.float32)                                         # cast first,
    w = tl.load(weight + at, inside, 0.0).to(dtype).to(tl.float32)
    tl.store(out + row * width + at, (cast * w).to(dtype), inside)                          # then the weight


@triton.jit
def _gated_backward(y, z, weight, dout, dy, dz, sums, eps, rows, length, width, size, z_batch, z_row, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    program, offset = tl.program_id(0).to(tl.int64), tl.program_id(1) * size
    at = offset + tl.arange(0, BLOCK)
    inside = at < offset + size
    w = tl.load(weight + at, inside, 0.0).to(dz.dtype.element_ty).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(ROWS):
        row = program * ROWS + i
        here = at < tl.where(row < rows, offset + size, 0)
        gate = tl.load(z + row // length * z_batch + row % length * z_row + at, here, 0.0).to(tl.float32)
        value, slope = tl.load(y + row * width + at, here, 0.0).to(tl.float32), tl.load(dout + row * width + at, here, 0.0).to(tl.float32)
        open = tl.sigmoid(gate)
        silu = gate * open
        gated = value * silu
        scale = 1.0 / tl.sqrt(tl.sum(gated * gated) / size + eps)
        pull = tl.sum(gated * (w * slope)) * scale * scale * scale / size
        total += slope * (gated * scale)
        dgated = scale * (w * slope) - gated * pull
        tl.store(dz + row * width + at, (dgated * value * (open * (1.0 + gate * (1.0 - open)))).to(dz.dtype.element_ty), here)
        tl.store(dy + row * width + at, (dgated * silu).to(dy.dtype.element_ty), here)
    tl.store(sums + program * width + at, total, inside)
