"""bfloat16 tensors handled as their bits (uint16), in loops that LLVM turns into vector code: the alphabet of the fast kernels.

Three rules bought the speed here (5x over the obvious loops over blocks): integer maxima instead of float ones (no fast-math
needed), flat loops over a tile instead of inner loops of 16 (each inner loop pays an aliasing check), and block maxima and
block scales moved by halving and doubling (a loop over 16 neighbours stays scalar).
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numba import njit

from kernels.team import together

TILE = 4096  # elements a pass: a tile's float32 scratch stays in the first-level cache
JIT = dict(cache=True, error_model="numpy", nogil=True)
PARALLEL_ELEMENTS = 1 << 19  # below this, handing work to a second thread costs more than it saves


def as_bits(x: torch.Tensor) -> np.ndarray:
    """The uint16 bits of a contiguous CPU bfloat16 tensor, sharing its memory."""
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        raise ValueError(f"the fast kernels take bfloat16 tensors on a CPU, not {x.dtype} on {x.device}")
    return x.detach().contiguous().view(torch.uint16).numpy()


def in_spans(run: Callable, blocks: int, elements: int) -> list:
    """[run(start, stop), ...] over blocks, cut in one span a torch thread when the tensor is large enough."""
    workers = min(torch.get_num_threads(), blocks) if elements >= PARALLEL_ELEMENTS else 1
    if workers == 1:
        return [run(0, blocks)]
    return together([partial(run, blocks * i // workers, blocks * (i + 1) // workers) for i in range(workers)])


@njit(inline="always", **JIT)
def f32(bits):
    return np.uint32(bits).view(np.float32)


@njit(inline="always", **JIT)
def u32(value):
    return np.float32(value).view(np.uint32)


@njit(inline="always", **JIT)
def magnitude(bits):
    """|x| in float32."""
    return f32(np.uint32(bits & np.uint16(0x7FFF)) << np.uint32(16))


@njit(inline="always", **JIT)
def to_bf16(value):
    """bfloat16 bits of a float32, nearest even (finite values; infinities stay)."""
    bits = u32(value)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@njit(inline="always", **JIT)
def e4m3(v):
    """Nearest E4M3 (ties to even) of 0 <= v <= 448: three mantissa bits from 2^-6 up, steps of 2^-9 below."""
    bits = u32(v)
    normal = f32((bits + np.uint32(0x7FFFF) + ((bits >> np.uint32(20)) & np.uint32(1))) & np.uint32(0xFFF00000))
    subnormal = (v + np.float32(24576.0)) - np.float32(24576.0)  # 1.5 * 2^14: its last bit is worth 2^-9
    return normal if v >= np.float32(0.015625) else subnormal


@njit(**JIT)
def halve(a, out):
    """out[i] = max(a[2i], a[2i+1])."""
    for i in range(a.size // 2):
        out[i] = max(a[2 * i], a[2 * i + 1])


@njit(**JIT)
def double(a, out):
    """out[2i] = out[2i+1] = a[i]."""
    for i in range(a.size):
        out[2 * i] = a[i]
        out[2 * i + 1] = a[i]


@njit(**JIT)
def amax_span(x):
    """Largest |x| as bfloat16 bits (magnitudes order as integers do)."""
    m = np.uint16(0)
    for i in range(x.size):
        m = max(m, np.uint16(x[i] & np.uint16(0x7FFF)))
    return m


def amax_bits(x: np.ndarray) -> np.uint16:
    """Largest |x| of a whole tensor, as bfloat16 bits (memory speed on one core: not worth threads)."""
    return np.uint16(amax_span(x.reshape(-1)))


def bf16_value(bits: int) -> np.float32:
    return (np.uint32(bits) << np.uint32(16)).view(np.float32)
