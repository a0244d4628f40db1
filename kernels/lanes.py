"""Fused loops over float32 or bfloat16 memory: load, compute in float32, store once.

What the elementwise rooms (conv, norms) share: a flat view of a strided tensor, typed loads and stores, an exponential that LLVM can turn into
vector code (calling libm's would not), and a runner over row tiles. Tiles have a fixed size whatever the number of threads, so partial sums, and
with them gradients, are the same bits on one core or many.

numba's on-disk cache watches only the file a compiled function is written in: after changing this file, delete `kernels/__pycache__/*.nb[ci]`.
"""

from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from kernels.bits import in_spans

JIT = dict(cache=True, error_model="numpy", nogil=True, fastmath={"reassoc", "contract", "nsz"})
ROWS = 64  # a tile: a few hundred channels of float32 scratch stay in the second-level cache


def runs_here(*tensors: torch.Tensor | None) -> bool:
    """Whether the compiled loops apply: CPU tensors of float32 or bfloat16."""
    return all(t is None or (t.device.type == "cpu" and t.dtype in (torch.float32, torch.bfloat16)) for t in tensors)


def flat(t: torch.Tensor) -> np.ndarray:
    """All memory a tensor spans, from its first element on, as one 1-D array (uint16 bits for bfloat16). Strides are the caller's business."""
    t = t.detach()
    if not t.is_contiguous():
        t = t.as_strided((1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride())),), (1,))
    return (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy().reshape(-1)


def tiles(count: int) -> int:
    return -(-count // ROWS)


def over_tiles(run, count: int, elements: int) -> None:
    """run(start, stop) over `count` tiles, on several threads when there is enough to do."""
    in_spans(run, count, elements)


@intrinsic
def _widen(typing_context, bits):
    """bfloat16 bits -> float32, in 32-bit lanes: numba's own integer arithmetic would go through 64 bits and halve them."""
    def emit(context, builder, signature, arguments):
        wide = builder.zext(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), ir.FloatType())
    return types.float32(types.uint16), emit


@intrinsic
def _narrow(typing_context, value):
    """float32 -> bfloat16 bits, nearest even (as torch rounds; a NaN of the usual payload stays NaN)."""
    def emit(context, builder, signature, arguments):
        word = ir.IntType(32)
        bits = builder.bitcast(arguments[0], word)
        odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
        rounded = builder.add(builder.add(bits, ir.Constant(word, 0x7FFF)), odd)
        return builder.trunc(builder.lshr(rounded, ir.Constant(word, 16)), ir.IntType(16))
    return types.uint16(types.float32), emit


@intrinsic
def _power_of_two(typing_context, n):
    """2^n for a whole float32 n in [-126, 127]."""
    def emit(context, builder, signature, arguments):
        word = ir.IntType(32)
        biased = builder.add(builder.fptosi(arguments[0], word), ir.Constant(word, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(word, 23)), ir.FloatType())
    return types.float32(types.float32), emit


def load(memory, i):
    """memory[i] as float32; `memory` holds float32 or bfloat16 bits. Compiled code only."""
    raise AssertionError("compiled code only")


def store(memory, i, value):
    """memory[i] = value, rounded if `memory` holds bfloat16 bits. Compiled code only."""
    raise AssertionError("compiled code only")


@overload(load, inline="always")
def _load(memory, i):
    if memory.dtype == types.uint16:
        return lambda memory, i: _widen(memory[i])
    return lambda memory, i: memory[i]


@overload(store, inline="always")
def _store(memory, i, value):
    if memory.dtype == types.uint16:
        def store(memory, i, value):
            memory[i] = _narrow(value)
    else:
        def store(memory, i, value):
            memory[i] = value
    return store


@njit(inline="always", **JIT)
def exp(x):
    """e^x to two units in the last place: 2^n times a degree-6 polynomial on |r| <= ln2 / 2 (Cephes expf coefficients); clamped to ±87."""
    x = min(max(x, np.float32(-87.0)), np.float32(87.0))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * _power_of_two(n)


@njit(inline="always", **JIT)
def sigmoid(x):
    return np.float32(1.0) / (np.float32(1.0) + exp(-x))
