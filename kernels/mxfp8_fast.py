"""MXFP8 at training speed on a CPU: bfloat16 in, the dequantized values in bfloat16 out (exact), equal to `kernels.mxfp8`.

Powers of two need no alpha: the GEMM is a plain bfloat16 product. Same plan of loops as `kernels/nvfp4_fast.py`; the column
copy keeps the tensor's layout and scales blocks of 32 rows.
"""

import numpy as np
import torch
from numba import njit

from kernels.bits import JIT, TILE, as_bits, double, e4m3, f32, halve, in_spans, magnitude, u32

_BLOCK = 32
_RECIPROCAL = np.float32(1 / 448)


def rows(x: torch.Tensor) -> torch.Tensor:
    """`mxfp8.quantize(x).dequantize(bfloat16)`: 1x32 blocks along the last axis (a multiple of 32)."""
    if x.numel() == 0 or x.shape[-1] % _BLOCK:
        raise ValueError(f"a {list(x.shape)} tensor does not divide into 1x{_BLOCK} blocks")
    bits = as_bits(x).reshape(-1)
    out = np.empty_like(bits)
    in_spans(lambda start, stop: _rows_span(bits, out, start, stop), bits.size // _BLOCK, bits.size)
    return torch.from_numpy(out).view(torch.bfloat16).view(x.shape)


def columns(x_TK: torch.Tensor) -> torch.Tensor:
    """The transpose of `rows(x.T)`: blocks of 32 down the columns; T padded with zero rows to a multiple of 32."""
    bits = as_bits(x_TK)
    T, K = bits.shape
    out = np.zeros((-(-T // _BLOCK) * _BLOCK, K), np.uint16)
    in_spans(lambda start, stop: _columns_span(bits, out, start, stop), out.shape[0] // _BLOCK, bits.size)
    return torch.from_numpy(out).view(torch.bfloat16)


@njit(inline="always", **JIT)
def _power(biased):
    return f32(biased << np.uint32(23)) if biased > np.uint32(0) else f32(np.uint32(0x400000))


@njit(inline="always", **JIT)
def _biased(amax_bits):
    """E8M0 byte of a block: amax / 448 rounded up to a power of two."""
    bits = u32(f32(np.uint32(amax_bits) << np.uint32(16)) * _RECIPROCAL)
    exponent, mantissa = bits >> np.uint32(23), bits & np.uint32(0x7FFFFF)
    top = exponent >= np.uint32(254) or (exponent == np.uint32(0) and mantissa <= np.uint32(0x400000))
    return exponent if mantissa == np.uint32(0) or top else np.uint32(exponent + np.uint32(1))


@njit(**JIT)
def _round_run(x, out, down, up):
    """out = e4m3(x * down) * up with the signs of x."""
    for i in range(x.size):
        q = e4m3(min(magnitude(x[i]) * down[i], np.float32(448.0)))
        out[i] = np.uint16((u32(q * up[i]) >> np.uint32(16)) | np.uint32(x[i] & np.uint16(0x8000)))


@njit(**JIT)
def _powers(m, down, up):
    for i in range(m.size):
        biased = _biased(m[i])
        up[i] = _power(biased)
        down[i] = _power(np.uint32(np.uint32(254) - biased))


@njit(**JIT)
def _rows_span(x, out, start, stop):
    u16, f = np.uint16, np.float32
    m2, m4, m8 = np.empty(TILE // 2, u16), np.empty(TILE // 4, u16), np.empty(TILE // 8, u16)
    m16, m32 = np.empty(TILE // 16, u16), np.empty(TILE // 32, u16)
    d32, u32_ = np.empty(TILE // 32, f), np.empty(TILE // 32, f)
    f16, f8, f4, f2 = np.empty(TILE // 16, f), np.empty(TILE // 8, f), np.empty(TILE // 4, f), np.empty(TILE // 2, f)
    down, up = np.empty(TILE, f), np.empty(TILE, f)
    for begin in range(start * 32, stop * 32, TILE):
        n = min(TILE, stop * 32 - begin)
        x_n = x[begin:begin + n]
        for i in range(n // 2):
            m2[i] = max(u16(x_n[2 * i] & u16(0x7FFF)), u16(x_n[2 * i + 1] & u16(0x7FFF)))
        halve(m2[:n // 2], m4)
        halve(m4[:n // 4], m8)
        halve(m8[:n // 8], m16)
        halve(m16[:n // 16], m32)
        _powers(m32[:n // 32], d32, u32_)
        for source, spread in ((d32, down), (u32_, up)):
            double(source[:n // 32], f16)
            double(f16[:n // 16], f8)
            double(f8[:n // 8], f4)
            double(f4[:n // 4], f2)
            double(f2[:n // 2], spread)
        _round_run(x_n, out[begin:begin + n], down, up)


@njit(**JIT)
def _columns_span(x_TK, out_TK, start, stop):
    T, K = x_TK.shape
    m, down, up = np.empty(K, np.uint16), np.empty(K, np.float32), np.empty(K, np.float32)
    for block in range(start, stop):
        last = min(T, block * 32 + 32)
        m[:] = np.uint16(0)
        for t in range(block * 32, last):
            x_K = x_TK[t]
            for i in range(K):
                m[i] = max(m[i], np.uint16(x_K[i] & np.uint16(0x7FFF)))
        _powers(m, down, up)
        for t in range(block * 32, last):
            _round_run(x_TK[t], out_TK[t], down, up)
