"""Causal grouped-query attention, compiled: y_t = sum_s softmax_s(q_t·k_s / sqrt D) v_s over the positions s <= t of t's own document.

The query heads of a group read the same keys and values, four of them in one pass. No position is multiplied to be masked away: a query's keys are a
range, from its document's start to itself, which is also all there is to packed documents. Products are float32 whatever the memory holds. The backward
keeps inputs, outputs and the log of each softmax sum, and computes the weights again.

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
from kernels.lanes import JIT, exp, flat, load, runs_here, store
from kernels.simd import fma, largest, splat, vload, vstore

HEADS = 4  # query heads in one pass over keys
LANES = 16
MOST_KEYS = 1 << 16  # T x D up to which the compiled form is used: 256 KB of float32 each for keys and values


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
    fits = (heads // kv_heads) % HEADS == 0 and width % (2 * LANES) == 0 and q_BTHD.shape[1] * width <= MOST_KEYS
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


# Scratch is flat: keys [T, D], transposed keys [D, T'] with T' = T padded to whole pairs of vectors, four query rows [4, D], weights [4, T'].


@njit(**JIT)
def _gather(source, at, step, length, width, rows, columns, padded):
    """One head of [B,T,J,D] as float32 rows [T,D] and columns [D,T']."""
    for t in range(length):
        line = source[at + t * step:at + t * step + width]
        for d in range(width):
            value = load(line, d)
            rows[t * width + d] = value
            columns[d * padded + t] = value


@njit(**JIT)
def _products(rows, columns, begin, end, width, padded, out):
    """out[r, s] = rows[r] · column s for four rows and at least the columns begin <= s < end."""
    none = splat(np.float32(0.0))
    for s in range(begin // (2 * LANES) * (2 * LANES), end, 2 * LANES):
        a0, a1, a2, a3, b0, b1, b2, b3 = none, none, none, none, none, none, none, none
        for d in range(width):
            left, right = vload(columns, d * padded + s), vload(columns, d * padded + s + LANES)
            r0, r1, r2, r3 = splat(rows[d]), splat(rows[d + width]), splat(rows[d + 2 * width]), splat(rows[d + 3 * width])
            a0, a1, a2, a3 = fma(r0, left, a0), fma(r1, left, a1), fma(r2, left, a2), fma(r3, left, a3)
            b0, b1, b2, b3 = fma(r0, right, b0), fma(r1, right, b1), fma(r2, right, b2), fma(r3, right, b3)
        vstore(out, s, a0)
        vstore(out, s + padded, a1)
        vstore(out, s + 2 * padded, a2)
        vstore(out, s + 3 * padded, a3)
        vstore(out, s + LANES, b0)
        vstore(out, s + LANES + padded, b1)
        vstore(out, s + LANES + 2 * padded, b2)
        vstore(out, s + LANES + 3 * padded, b3)


@njit(**JIT)
def _mix(weights, rows, begin, end, width, padded, out):
    """out[r] = sum_s weights[r, s] rows[s] for four weightings."""
    none = splat(np.float32(0.0))
    for d in range(0, width, 2 * LANES):
        a0, a1, a2, a3, b0, b1, b2, b3 = none, none, none, none, none, none, none, none
        for s in range(begin, end):
            left, right = vload(rows, s * width + d), vload(rows, s * width + d + LANES)
            w0, w1, w2, w3 = splat(weights[s]), splat(weights[s + padded]), splat(weights[s + 2 * padded]), splat(weights[s + 3 * padded])
            a0, a1, a2, a3 = fma(w0, left, a0), fma(w1, left, a1), fma(w2, left, a2), fma(w3, left, a3)
            b0, b1, b2, b3 = fma(w0, right, b0), fma(w1, right, b1), fma(w2, right, b2), fma(w3, right, b3)
        vstore(out, d, a0)
        vstore(out, d + width, a1)
        vstore(out, d + 2 * width, a2)
        vstore(out, d + 3 * width, a3)
        vstore(out, d + LANES, b0)
        vstore(out, d + LANES + width, b1)
        vstore(out, d + LANES + 2 * width, b2)
        vstore(out, d + LANES + 3 * width, b3)


@njit(**JIT)
def _spread(weights, rows, begin, end, width, padded, out):
    """out[s] += sum_r weights[r, s] rows[r] for four rows: the transpose of `_mix`."""
    for d in range(0, width, 2 * LANES):
        a0, a1, a2, a3 = vload(rows, d), vload(rows, d + width), vload(rows, d + 2 * width), vload(rows, d + 3 * width)
        e = d + LANES
        b0, b1, b2, b3 = vload(rows, e), vload(rows, e + width), vload(rows, e + 2 * width), vload(rows, e + 3 * width)
        for s in range(begin, end):
            w0, w1, w2, w3 = splat(weights[s]), splat(weights[s + padded]), splat(weights[s + 2 * padded]), splat(weights[s + 3 * padded])
            at = s * width + d
            vstore(out, at, fma(w0, a0, fma(w1, a1, fma(w2, a2, fma(w3, a3, vload(out, at))))))
            vstore(out, at + LANES, fma(w0, b0, fma(w1, b1, fma(w2, b2, fma(w3, b3, vload(out, at + LANES))))))


@njit(**JIT)
def _forward(first, last, q, k, v, starts, y, partition, sizes):
    length, heads, kv_heads, width = sizes
    padded, repeat = (length + 2 * LANES - 1) // (2 * LANES) * (2 * LANES), heads // kv_heads
    scale = np.float32(1.0) / np.sqrt(np.float32(width))
    rows, values = np.empty(length * width, np.float32), np.empty(length * width, np.float32)
    columns, unused = np.zeros(width * padded, np.float32), np.empty(width * padded, np.float32)
    queries, weights, mixed = np.empty(HEADS * width, np.float32), np.empty(HEADS * padded, np.float32), np.empty(HEADS * width, np.float32)
    share = np.empty(HEADS, np.float32)
    for task in range(first, last):
        b, j = task // kv_heads, task % kv_heads
        at = (b * length * kv_heads + j) * width
        _gather(k, at, kv_heads * width, length, width, rows, columns, padded)
        _gather(v, at, kv_heads * width, length, width, values, unused, padded)
        for t in range(length):
            begin, end = starts[b, t], t + 1
            for h in range(j * repeat, (j + 1) * repeat, HEADS):
                at = ((b * length + t) * heads + h) * width
                source, target = q[at:at + HEADS * width], y[at:at + HEADS * width]
                for i in range(HEADS * width):
                    queries[i] = load(source, i) * scale
                _products(queries, columns, begin, end, width, padded, weights)
                for r in range(HEADS):
                    row, total = weights[r * padded + begin:r * padded + end], np.float32(0.0)
                    peak = largest(row, 0, end - begin)
                    for s in range(end - begin):
                        power = exp(row[s] - peak)
                        row[s] = power
                        total += power
                    partition[b, t, h + r] = np.log(total) + peak
                    share[r] = np.float32(1.0) / total
                _mix(weights, values, begin, end, width, padded, mixed)
                for r in range(HEADS):
                    mixed_row, out = mixed[r * width:(r + 1) * width], target[r * width:(r + 1) * width]
                    for i in range(width):
                        store(out, i, mixed_row[i] * share[r])


@njit(**JIT)
def _backward(first, last, q, k, v, starts, y, partition, dy, dq, dk, dv, sizes):
    length, heads, kv_heads, width = sizes
    padded, repeat = (length + 2 * LANES - 1) // (2 * LANES) * (2 * LANES), heads // kv_heads
    scale = np.float32(1.0) / np.sqrt(np.float32(width))
    rows, unused = np.empty(length * width, np.float32), np.empty(length * width, np.float32)
    columns, value_columns = np.zeros(width * padded, np.float32), np.zeros(width * padded, np.float32)
    queries, above, mixed = np.empty(HEADS * width, np.float32), np.empty(HEADS * width, np.float32), np.empty(HEADS * width, np.float32)
    weights, slopes = np.empty(HEADS * padded, np.float32), np.empty(HEADS * padded, np.float32)
    to_keys, to_values = np.empty(length * width, np.float32), np.empty(length * width, np.float32)
    for task in range(first, last):
        b, j = task // kv_heads, task % kv_heads
        at_keys = (b * length * kv_heads + j) * width
        _gather(k, at_keys, kv_heads * width, length, width, rows, columns, padded)
        _gather(v, at_keys, kv_heads * width, length, width, unused, value_columns, padded)
        to_keys[:] = np.float32(0.0)
        to_values[:] = np.float32(0.0)
        for t in range(length):
            begin, end = starts[b, t], t + 1
            for h in range(j * repeat, (j + 1) * repeat, HEADS):
                at = ((b * length + t) * heads + h) * width
                source, out, slope, target = q[at:at + HEADS * width], y[at:at + HEADS * width], dy[at:at + HEADS * width], dq[at:at + HEADS * width]
                for i in range(HEADS * width):
                    queries[i] = load(source, i) * scale
                for i in range(HEADS * width):
                    above[i] = load(slope, i)
                _products(queries, columns, begin, end, width, padded, weights)
                _products(above, value_columns, begin, end, width, padded, slopes)
                for r in range(HEADS):
                    mean = np.float32(0.0)
                    out_row, above_row = out[r * width:(r + 1) * width], above[r * width:(r + 1) * width]
                    for d in range(width):
                        mean += load(out_row, d) * above_row[d]
                    row, fall, level = weights[r * padded + begin:r * padded + end], slopes[r * padded + begin:r * padded + end], partition[b, t, h + r]
                    for s in range(end - begin):
                        weight = exp(row[s] - level)
                        row[s] = weight
                        fall[s] = weight * (fall[s] - mean)
                _mix(slopes, rows, begin, end, width, padded, mixed)
                for i in range(HEADS * width):
                    store(target, i, mixed[i] * scale)
                _spread(slopes, queries, begin, end, width, padded, to_keys)
                _spread(weights, above, begin, end, width, padded, to_values)
        for t in range(length):
            at = at_keys + t * kv_heads * width
            key_row, value_row = dk[at:at + width], dv[at:at + width]
            key_sum, value_sum = to_keys[t * width:(t + 1) * width], to_values[t * width:(t + 1) * width]
            for d in range(width):
                store(key_row, d, key_sum[d])
            for d in range(width):
                store(value_row, d, value_sum[d])
