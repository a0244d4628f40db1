"""Causal grouped-query attention, compiled: y_t = sum_s softmax_s(q_t·k_s / sqrt D) v_s over the positions s <= t of t's own document.

The query heads of a group read the same keys and values: those of a few positions meet them in one product. Hardly a position is multiplied to be masked
away: a block's keys are a range, from its document's start to itself, which is also all there is to packed documents. Products are float32 whatever the
memory holds. The backward keeps inputs, outputs and the log of each softmax sum, and computes the weights again.

`causal_attention_reference` is torch's, with a mask. It also is the faster one where keys and values outgrow the second-level cache.

Shapes: B batch, T positions, H query heads, J key/value heads (of R = H/J query heads), D head_dim.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from kernels.bits import in_spans
from kernels.lanes import JIT, flat, runs_here
from kernels.products import multiply, transpose
from kernels.simd import WIDTH as LANES
from kernels.simd import fma, scratch, splat, vadd, vexp, vload, vmax, vmul, vpeak, vstore, vsum, within

BLOCK = 4  # positions whose queries meet keys in one product: rows of it come in fours whatever R is
MOST_KEYS = 1 << 17  # T x D up to which the compiled form is known to be the faster: 512 KB of float32 each for keys and values


def causal_attention_reference(q_BTHD: Tensor, k_BTJD: Tensor, v_BTJD: Tensor, seq_idx_BT: Tensor | None = None) -> Tensor:
    """torch's scaled_dot_product_attention; `seq_idx` numbers the documents packed in a row. [B,T,H,D]."""
    mask = None if seq_idx_BT is None else document_mask(seq_idx_BT)
    q, k, v = (t.transpose(1, 2) for t in (q_BTHD, k_BTJD, v_BTJD))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


def document_mask(seq_idx_BT: Tensor) -> Tensor:
    """[B,1,T,T] bool: causal, and inside one document."""
    length = seq_idx_BT.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=seq_idx_BT.device).tril_()
    return ((seq_idx_BT[:, :, None] == seq_idx_BT[:, None, :]) & causal)[:, None]


def causal_attention(q_BTHD: Tensor, k_BTJD: Tensor, v_BTJD: Tensor, seq_idx_BT: Tensor | None = None) -> Tensor:
    """`causal_attention_reference`, compiled where it applies. A document is a run of equal numbers in `seq_idx`."""
    heads, kv_heads, width = q_BTHD.shape[2], k_BTJD.shape[2], q_BTHD.shape[3]
    fits = heads % kv_heads == 0 and width % LANES == 0 and q_BTHD.shape[1] * width <= MOST_KEYS
    if not fits or not runs_here(q_BTHD, k_BTJD, v_BTJD) or not q_BTHD.dtype == k_BTJD.dtype == v_BTJD.dtype:
        return causal_attention_reference(q_BTHD, k_BTJD, v_BTJD, seq_idx_BT)
    return _Attention.apply(q_BTHD, k_BTJD, v_BTJD, _starts(q_BTHD, seq_idx_BT))


def _starts(q_BTHD: Tensor, seq_idx_BT: Tensor | None) -> Tensor:
    """The first position of each position's document, int64 [B,T]."""
    starts_BT = torch.zeros(q_BTHD.shape[:2], dtype=torch.int64)
    if seq_idx_BT is not None:
        starts_BT[:, 1:] = torch.arange(1, starts_BT.shape[1]) * (seq_idx_BT[:, 1:] != seq_idx_BT[:, :-1])
        starts_BT = starts_BT.cummax(1)[0]
    return starts_BT


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, starts):
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        batch, length, heads, width = q.shape
        y, partition = torch.empty_like(q), torch.empty(batch, length, heads)
        sizes = length, heads, k.shape[2], width
        args = flat(q), flat(k), flat(v), starts.numpy(), flat(y), partition.numpy(), sizes
        in_spans(lambda a, b: _forward(a, b, *args), batch * k.shape[2], q.numel() * length)
        ctx.save_for_backward(q, k, v, starts, y, partition)
        return y

    @staticmethod
    def backward(ctx, dy):
        q, k, v, starts, y, partition = ctx.saved_tensors
        batch, length, heads, width = q.shape
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        sizes = length, heads, k.shape[2], width
        args = flat(q), flat(k), flat(v), starts.numpy(), flat(y), partition.numpy(), flat(dy.contiguous()), flat(dq), flat(dk), flat(dv), sizes
        in_spans(lambda a, b: _backward(a, b, *args), batch * k.shape[2], 2 * q.numel() * length)
        return dq, dk, dv, None


# Matrices are flat: keys and values [T', D] with zeros from T to T' = T padded to whole vectors, their transposes [D, T'], a block's weights [BLOCK R, T'].


@njit(**JIT)
def _padded(length):
    """Whole vectors, an odd number of them: rows a power of two apart would fall into few sets of the first-level cache."""
    return ((length + LANES - 1) // LANES | 1) * LANES


@njit(**JIT)
def _gather(source, at, step, length, width, rows, columns, padded):
    """One head of [B,T,J,D] as float32 rows [T',D] and columns [D,T']."""
    for t in range(length):
        for d in range(0, width, LANES):
            vstore(rows, t * width + d, vload(source, at + t * step + d))
    transpose(rows, 0, width, padded, width, columns, 0, padded)


@njit(**JIT)
def _rows(source, b, start, count, sizes, first_head, repeat, factor, out):
    """A block's rows of [B,T,H,D], those of a position's `repeat` heads together, times `factor`; zeros past `count`."""
    length, heads, _, width = sizes
    for i in range(count):
        at = ((b * length + start + i) * heads + first_head) * width
        for d in range(0, repeat * width, LANES):
            vstore(out, i * repeat * width + d, vmul(vload(source, at + d), splat(factor)))
    out[count * repeat * width:] = np.float32(0.0)


@njit(**JIT)
def _scale(source, at, size, factor, target, to):
    for i in range(0, size, LANES):
        vstore(target, to + i, vmul(vload(source, at + i), splat(factor)))


@njit(**JIT)
def _softmax(scores, at, span, low, high):
    """exp(scores - peak) in place from low to high and 0 in the rest of the span; the peak and the sum of what is left."""
    lead, sums = splat(np.float32(-np.inf)), splat(np.float32(0.0))
    for s in range(0, span, LANES):
        lead = vmax(lead, within(vload(scores, at + s), s, low, high, np.float32(-np.inf)))
    peak = vpeak(lead)
    for s in range(0, span, LANES):
        power = within(vexp(vadd(vload(scores, at + s), splat(-peak))), s, low, high, np.float32(0.0))
        vstore(scores, at + s, power)
        sums = vadd(sums, power)
    return peak, vsum(sums)


@njit(**JIT)
def _softmax_slopes(scores, slopes, at, span, low, high, level, mean):
    """Scores become weights exp(scores - level), slopes of the weights those of the scores; 0 outside low to high."""
    for s in range(0, span, LANES):
        weight = within(vexp(vadd(vload(scores, at + s), splat(-level))), s, low, high, np.float32(0.0))
        vstore(scores, at + s, weight)
        vstore(slopes, at + s, vmul(weight, vadd(vload(slopes, at + s), splat(-mean))))


@njit(**JIT)
def _dot(a, b, at, size):
    total = splat(np.float32(0.0))
    for i in range(0, size, LANES):
        total = fma(vload(a, at + i), vload(b, at + i), total)
    return vsum(total)


@njit(**JIT)
def _forward(first, last, q, k, v, starts, y, partition, sizes):
    length, heads, kv_heads, width = sizes
    padded, repeat = _padded(length), heads // kv_heads
    block, scale = BLOCK * repeat, np.float32(1.0) / np.sqrt(np.float32(width))
    rows, values, columns, unused = scratch(padded * width), scratch(padded * width), scratch(padded * width), scratch(padded * width)
    queries, weights, mixed, shares = scratch(block * width), scratch(block * padded), scratch(block * width), scratch(block)
    rows[:] = np.float32(0.0)
    values[:] = np.float32(0.0)
    for task in range(first, last):
        b, j = task // kv_heads, task % kv_heads
        at = (b * length * kv_heads + j) * width
        _gather(k, at, kv_heads * width, length, width, rows, columns, padded)
        _gather(v, at, kv_heads * width, length, width, values, unused, padded)
        for start in range(0, length, BLOCK):
            count = min(BLOCK, length - start)
            begin = starts[b, start] // LANES * LANES
            span = (start + count - begin + LANES - 1) // LANES * LANES
            _rows(q, b, start, count, sizes, j * repeat, repeat, scale, queries)
            multiply(queries, 0, width, 1, columns, begin, padded, block, width, span, weights, 0, padded, 0.0)
            for row in range(count * repeat):
                t = start + row // repeat
                peak, total = _softmax(weights, row * padded, span, starts[b, t] - begin, t + 1 - begin)
                partition[b, t, j * repeat + row % repeat] = np.log(total) + peak
                shares[row] = np.float32(1.0) / total
            multiply(weights, 0, padded, 1, values, begin * width, width, block, span, width, mixed, 0, width, 0.0)
            for row in range(count * repeat):
                at = ((b * length + start + row // repeat) * heads + j * repeat + row % repeat) * width
                _scale(mixed, row * width, width, shares[row], y, at)


@njit(**JIT)
def _backward(first, last, q, k, v, starts, y, partition, dy, dq, dk, dv, sizes):
    length, heads, kv_heads, width = sizes
    padded, repeat = _padded(length), heads // kv_heads
    block, one, scale = BLOCK * repeat, np.float32(1.0), np.float32(1.0) / np.sqrt(np.float32(width))
    rows, unused, columns, value_columns = scratch(padded * width), scratch(padded * width), scratch(padded * width), scratch(padded * width)
    queries, above, out, mixed = scratch(block * width), scratch(block * width), scratch(block * width), scratch(block * width)
    weights, slopes, to_keys, to_values = scratch(block * padded), scratch(block * padded), scratch(padded * width), scratch(padded * width)
    rows[:] = np.float32(0.0)
    unused[:] = np.float32(0.0)
    for task in range(first, last):
        b, j = task // kv_heads, task % kv_heads
        at_keys = (b * length * kv_heads + j) * width
        _gather(k, at_keys, kv_heads * width, length, width, rows, columns, padded)
        _gather(v, at_keys, kv_heads * width, length, width, unused, value_columns, padded)
        to_keys[:] = np.float32(0.0)
        to_values[:] = np.float32(0.0)
        for start in range(0, length, BLOCK):
            count = min(BLOCK, length - start)
            begin = starts[b, start] // LANES * LANES
            span = (start + count - begin + LANES - 1) // LANES * LANES
            _rows(q, b, start, count, sizes, j * repeat, repeat, scale, queries)
            _rows(dy, b, start, count, sizes, j * repeat, repeat, one, above)
            _rows(y, b, start, count, sizes, j * repeat, repeat, one, out)
            multiply(queries, 0, width, 1, columns, begin, padded, block, width, span, weights, 0, padded, 0.0)
            multiply(above, 0, width, 1, value_columns, begin, padded, block, width, span, slopes, 0, padded, 0.0)
            for row in range(block):
                t = start + row // repeat
                low = starts[b, t] - begin if t < length else span
                high = t + 1 - begin if t < length else span
                level = partition[b, t, j * repeat + row % repeat] if t < length else np.float32(0.0)
                _softmax_slopes(weights, slopes, row * padded, span, low, high, level, _dot(out, above, row * width, width))
            multiply(slopes, 0, padded, 1, rows, begin * width, width, block, span, width, mixed, 0, width, 0.0)
            for row in range(count * repeat):
                at = ((b * length + start + row // repeat) * heads + j * repeat + row % repeat) * width
                _scale(mixed, row * width, width, scale, dq, at)
            multiply(slopes, 0, 1, padded, queries, 0, width, span, block, width, to_keys, begin * width, width, 1.0)
            multiply(weights, 0, 1, padded, above, 0, width, span, block, width, to_values, begin * width, width, 1.0)
        for t in range(length):
            at = at_keys + t * kv_heads * width
            _scale(to_keys, t * width, width, one, dk, at)
            _scale(to_values, t * width, width, one, dv, at)
