"""NVFP4 at training speed on a CPU: bfloat16 tensors in, bfloat16 operands q*s out, equal bit for bit to `kernels.nvfp4`.

What it does differently: no codes and no packing. An E2M1 x E4M3 product is exact in bfloat16, so an operand is written as
q*s directly (one read for the maximum, one read and write to quantize), and the GEMM runs on the CPU's bfloat16 units with
the two global scales applied as `alpha` to the float32 accumulator before its only rounding: TransformerEngine's order.
Column copies (the Hadamard-rotated operands of the weight gradient) keep the tensor's own layout and quantize down the
columns, every lane a column, so that nothing is transposed.

What it bought: one Linear forward and backward (2048 x 256 -> 512) costs 1.8 times bfloat16's, a training step of the tiny and small models 1.1 and 1.2
times (CPU time on one core); the share falls with size, since quantizing is O(MK) and the product O(MNK). First use compiles (numba, cached on disk).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit

from kernels.bits import (
    JIT,
    TILE,
    amax_bits,
    amax_span,
    as_bits,
    bf16_value,
    double,
    e4m3,
    f32,
    halve,
    in_spans,
    magnitude,
    to_bf16,
    u32,
)
from kernels.hadamard import SIGNS
from kernels.nvfp4 import gemm_alpha, seed_words

_SIGNS = np.array(SIGNS, dtype=np.float32)
_FLT_MAX = np.float32(np.finfo(np.float32).max)
_SIXTH = np.float32(1) / np.float32(6)
_LANES = 256  # columns a tile of the column kernels: 16 rows of float32 scratch stay in the first-level cache


@dataclass(frozen=True)
class Operand:
    """One GEMM operand: q*s exact in bfloat16, and the tensor maximum its global scale comes from."""

    values: torch.Tensor
    amax: float


def rows(x: torch.Tensor, rounding: str = "nearest", seed: int = 0) -> Operand:
    """1x16 blocks along the last axis (a multiple of 16), as `nvfp4.quantize(x, (1, 16), rounding, seed=seed)`."""
    _check(x, rounding, x.shape[-1], "last dimension")
    bits = as_bits(x).reshape(-1)
    out = np.empty_like(bits)
    amax = amax_bits(bits)
    draw = (rounding == "stochastic", *map(np.uint32, seed_words(seed)))
    in_spans(lambda start, stop: _rows_span(bits, out, start, stop, amax, *draw), bits.size // 16, bits.size)
    return _operand(out, x.shape, amax)


def tiles(w_NK: torch.Tensor) -> Operand:
    """16x16 blocks, as `nvfp4.quantize(w, (16, 16))`: N and K multiples of 16. Serves W and W^T alike."""
    _check(w_NK, "nearest", w_NK.shape[-1], "last dimension")
    _check(w_NK, "nearest", w_NK.shape[0], "number of rows")
    bits = as_bits(w_NK)
    out = np.empty_like(bits)
    amax = amax_bits(bits)
    _tiles(bits, out, amax)
    return _operand(out, w_NK.shape, amax)


def columns(x_TK: torch.Tensor, rounding: str = "nearest", seed: int = 0) -> Operand:
    """Hadamard-rotated 1x16 blocks down the columns: the transpose of `nvfp4.quantize(x.T, hadamard=True, ...)`.

    T is padded with zero rows to a multiple of 16; the result has the padded number of rows.
    """
    _check(x_TK, rounding, 16, "")
    bits = as_bits(x_TK)
    T, K = bits.shape
    rotated = np.empty((-(-T // 16) * 16, K), np.uint16)
    out = np.empty_like(rotated)  # not in place: the loops vectorise only over arrays that do not overlap
    draw = (rounding == "stochastic", *map(np.uint32, seed_words(seed)))
    blocks = out.shape[0] // 16
    amax = max(in_spans(lambda start, stop: _rotate_span(bits, rotated, start, stop), blocks, bits.size))
    in_spans(lambda start, stop: _columns_span(rotated, out, start, stop, amax, *draw), blocks, bits.size)
    return _operand(out, out.shape, amax)


def matmul(a_MK: Operand, b_KN: Operand) -> torch.Tensor:
    """bfloat16 [M, N] of two operands: exact products, float32 sums, alpha, one rounding."""
    return multiply(a_MK.values, b_KN.values, float(gemm_alpha(a_MK.amax, b_KN.amax)))


def multiply(a_MK: torch.Tensor, b_KN: torch.Tensor, alpha: float) -> torch.Tensor:
    """alpha * (a @ b) in bfloat16, alpha on the float32 accumulator (what oneDNN does with addmm's alpha, at no cost)."""
    return torch.addmm(a_MK.new_zeros(1), a_MK, b_KN, beta=0, alpha=alpha)


def _check(x: torch.Tensor, rounding: str, divisible: int, what: str) -> None:
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f'rounding is "nearest" or "stochastic", not {rounding!r}')
    if divisible % 16 or x.numel() == 0 or x.numel() >= 1 << 32:
        raise ValueError(f"cannot quantize a {list(x.shape)} tensor: the {what} must be a multiple of 16 and the tensor below 2^32 elements")


def _operand(out: np.ndarray, shape, amax) -> Operand:
    return Operand(torch.from_numpy(out).view(torch.bfloat16).view(shape), float(bf16_value(amax)))


@njit(inline="always", **JIT)
def _global_encode(amax):
    value = f32(np.uint32(amax) << np.uint32(16))
    encode = min(np.float32(2688.0) / value, _FLT_MAX)
    return np.float32(1.0) if value == np.float32(0.0) or encode == np.float32(0.0) else encode


@njit(inline="always", **JIT)
def _scales(block_amax, global_encode):
    """(decode scale s, encode multiplier) of a block."""
    s = e4m3(min(block_amax * (global_encode * _SIXTH), np.float32(448.0)))
    return s, min(np.float32(1.0) / (s * (np.float32(1.0) / global_encode)), _FLT_MAX)


@njit(inline="always", **JIT)
def _signed_product(x, a, q, s):
    """bfloat16 bits of sign(x) * q * s; the sign is kept where x * encode (a) was not zero."""
    sign = np.uint32(x & np.uint16(0x8000)) if a > np.float32(0.0) else np.uint32(0)
    return np.uint16((u32(q * s) >> np.uint32(16)) | sign)


@njit(inline="always", **JIT)
def _nearest(x, encode, s):
    a = min(magnitude(x) * encode, np.float32(6.0))
    bits = u32(a)
    normal = f32((bits + np.uint32(0x1FFFFF) + ((bits >> np.uint32(22)) & np.uint32(1))) & np.uint32(0xFFC00000))
    small = (a + np.float32(6291456.0)) - np.float32(6291456.0)  # 1.5 * 2^22: its last bit is worth 0.5
    return _signed_product(x, a, normal if a >= np.float32(1.0) else small, s)


@njit(inline="always", **JIT)
def _stochastic(x, encode, s, index, key0, key1):
    h = np.uint32(np.uint32(index * np.uint32(0x9E3779B1)) + key0)
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
    h = np.uint32((h ^ (h >> np.uint32(15)) ^ key1) * np.uint32(0x846CA68B))
    r = np.float32(np.int32(h >> np.uint32(24))) * np.float32(1 / 256)
    a = min(magnitude(x) * encode, np.float32(6.0))
    step = np.float32(0.5) if a < np.float32(2.0) else (np.float32(1.0) if a < np.float32(4.0) else np.float32(2.0))
    t = min(a + r * step, np.float32(6.0))
    small = np.float32(0.5) if t >= np.float32(0.5) else np.float32(0.0)
    return _signed_product(x, a, f32(u32(t) & np.uint32(0xFFC00000)) if t >= np.float32(1.0) else small, s)


@njit(**JIT)
def _spread_scales(m2, global_encode, s1, e1, u, f):
    """Scale s1 and encode multiplier e1 of every element, from maxima m2 of neighbouring pairs (16-element blocks).

    u, f: uint16 and float32 scratch of at least as many elements (allocating here would cost a fifth of the kernel).
    """
    n = m2.size * 2
    m4, m8, m16 = u[:n // 4], u[n // 4:3 * n // 8], u[3 * n // 8:7 * n // 16]
    f16, g16 = f[:n // 16], f[n // 16:n // 8]
    f8, f4, f2 = f[n // 8:n // 4], f[n // 4:n // 2], f[n // 2:n]
    halve(m2, m4)
    halve(m4, m8)
    halve(m8, m16)
    for b in range(n // 16):
        f16[b], g16[b] = _scales(f32(np.uint32(m16[b]) << np.uint32(16)), global_encode)
    for source, spread in ((f16, s1), (g16, e1)):
        double(source, f8)
        double(f8, f4)
        double(f4, f2)
        double(f2, spread)


@njit(**JIT)
def _quantize_run(x, out, e, s, stochastic, index, offset, key0, key1):
    """Quantizes a run of elements with their own multipliers; element i has random index `index[i] + offset`."""
    if stochastic:
        for i in range(x.size):
            out[i] = _stochastic(x[i], e[i], s[i], np.uint32(index[i] + offset), key0, key1)
    else:
        for i in range(x.size):
            out[i] = _nearest(x[i], e[i], s[i])


@njit(**JIT)
def _rows_span(x, out, start, stop, amax, stochastic, key0, key1):
    """Quantizes blocks start..stop of a flat tensor (rows are whole numbers of blocks)."""
    global_encode = _global_encode(amax)
    m2, s1, e1 = np.empty(TILE // 2, np.uint16), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    index, u, f = np.arange(TILE).astype(np.uint32), np.empty(TILE, np.uint16), np.empty(TILE, np.float32)
    for begin in range(start * 16, stop * 16, TILE):
        n = min(TILE, stop * 16 - begin)
        x_n = x[begin:begin + n]
        for i in range(n // 2):
            m2[i] = max(np.uint16(x_n[2 * i] & np.uint16(0x7FFF)), np.uint16(x_n[2 * i + 1] & np.uint16(0x7FFF)))
        _spread_scales(m2[:n // 2], global_encode, s1, e1, u, f)
        _quantize_run(x_n, out[begin:begin + n], e1, s1, stochastic, index, np.uint32(begin), key0, key1)


@njit(**JIT)
def _column_maxima(x_16L, m):
    """m[l] = largest |x[:, l]| as bits."""
    m[:] = np.uint16(0)
    for j in range(x_16L.shape[0]):
        row = x_16L[j]
        for i in range(m.size):
            m[i] = max(m[i], np.uint16(row[i] & np.uint16(0x7FFF)))


@njit(**JIT)
def _tiles(x_NK, out_NK, amax):
    N, K = x_NK.shape
    global_encode = _global_encode(amax)
    m1, m2 = np.empty(K, np.uint16), np.empty(K // 2, np.uint16)
    s1, e1, u, f = np.empty(K, np.float32), np.empty(K, np.float32), np.empty(K, np.uint16), np.empty(K, np.float32)
    unused, zero = np.empty(0, np.uint32), np.uint32(0)
    for n in range(0, N, 16):
        _column_maxima(x_NK[n:n + 16], m1)
        halve(m1, m2)
        _spread_scales(m2, global_encode, s1, e1, u, f)
        for j in range(n, n + 16):
            _quantize_run(x_NK[j], out_NK[j], e1, s1, False, unused, zero, zero, zero)


@njit(**JIT)
def _butterflies(a, b, c, d):
    """Two stages of sums and differences over four rows: (a, b), (c, d), then (a, c), (b, d)."""
    for i in range(a.size):
        p, q, r, t = a[i] + b[i], a[i] - b[i], c[i] + d[i], c[i] - d[i]
        a[i] = p + r
        b[i] = q + t
        c[i] = p - r
        d[i] = q - t


@njit(**JIT)
def _rotate_span(x_TK, out_TK, start, stop):
    """Rotates blocks start..stop of 16 rows into out (bfloat16 bits); returns the largest magnitude written."""
    T, K = x_TK.shape
    f = np.empty((16, _LANES), np.float32)
    largest = np.uint16(0)
    for block in range(start, stop):
        for k in range(0, K, _LANES):
            n = min(_LANES, K - k)
            for j in range(16):
                f_j = f[j, :n]
                if block * 16 + j < T:
                    x_j, sign = x_TK[block * 16 + j, k:k + n], _SIGNS[j]
                    for i in range(n):
                        f_j[i] = f32(np.uint32(x_j[i]) << np.uint32(16)) * sign
                else:
                    f_j[:] = np.float32(0.0)
            for j in range(0, 16, 4):
                _butterflies(f[j, :n], f[j + 1, :n], f[j + 2, :n], f[j + 3, :n])
            for j in range(4):
                _butterflies(f[j, :n], f[j + 4, :n], f[j + 8, :n], f[j + 12, :n])
            for j in range(16):
                f_j, out_j = f[j, :n], out_TK[block * 16 + j, k:k + n]
                for i in range(n):
                    out_j[i] = to_bf16(f_j[i] * np.float32(0.25))
                largest = max(largest, amax_span(out_j))
    return largest


@njit(**JIT)
def _columns_span(x_TK, out_TK, start, stop, amax, stochastic, key0, key1):
    """Quantizes blocks start..stop of 16 rows down the columns. Random index: that of the transposed tensor."""
    T, K = out_TK.shape
    global_encode = _global_encode(amax)
    m, s, e = np.empty(K, np.uint16), np.empty(K, np.float32), np.empty(K, np.float32)
    index = (np.arange(K) * T).astype(np.uint32)
    for block in range(start, stop):
        _column_maxima(x_TK[block * 16:block * 16 + 16], m)
        for i in range(K):
            s[i], e[i] = _scales(f32(np.uint32(m[i]) << np.uint32(16)), global_encode)
        for t in range(block * 16, block * 16 + 16):
            _quantize_run(x_TK[t], out_TK[t], e, s, stochastic, index, np.uint32(t), key0, key1)
