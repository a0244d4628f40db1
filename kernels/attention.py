"""Causal grouped-query attention, compiled: y_t = sum_s softmax_s(q_t·k_s / sqrt D) v_s over the positions s <= t of t's own document.

The query heads of a group read the same keys and values: those of a few positions meet them in one product. Hardly a position is multiplied to be masked
away: a block's keys are a range, from its document's start to itself, which is also all there is to packed documents. Sums are float32 whatever the
memory holds; bfloat16 inputs are multiplied as they are, and softmax's weights and their slopes are rounded to bfloat16 before they are multiplied, as flash
attention does on GPUs (Dao et al. 2022). The backward keeps inputs, outputs and the log of each softmax sum, and computes the weights again.

`causal_attention_reference` is torch's, with a mask.

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
from kernels.products import multiply, per, put_rows, put_turned, transpose, words_for
from kernels.simd import WIDTH as LANES
from kernels.simd import fma, scratch, scratch_of, splat, vadd, vexp_negative, vlarger, vload, vmul, vpeak, vstore, vsum, within

BLOCK = 4  # positions whose queries meet keys in one product: rows of it come in fours whatever R is
KEYS = 128  # positions of keys a block meets at once in the backward: its scores, their slopes and both rounded stay in the first-level cache


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
    fits = heads % kv_heads == 0 and width % LANES == 0
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
        args = flat(q), flat(k), flat(v), starts.numpy(), flat(y), partition.numpy(), sizes, words_for(q.dtype, width)
        in_spans(lambda a, b: _forward(a, b, *args), batch * k.shape[2], q.numel() * length)
        ctx.save_for_backward(q, k, v, starts, y, partition)
        return y

    @staticmethod
    def backward(ctx, dy):
        q, k, v, starts, y, partition = ctx.saved_tensors
        batch, length, heads, width = q.shape
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        sizes = length, heads, k.shape[2], width
        gradients = flat(dy.contiguous()), flat(dq), flat(dk), flat(dv)
        args = flat(q), flat(k), flat(v), starts.numpy(), flat(y), partition.numpy(), *gradients, sizes, words_for(q.dtype, width)
        in_spans(lambda a, b: _backward(a, b, *args), batch * k.shape[2], 2 * q.numel() * length)
        return dq, dk, dv, None


# Matrices are flat, in the words of `kernels.products`: keys and values [T', D] with zeros from T to T' = T padded to whole vectors, their transposes [D, T'],
# a block's queries [BLOCK R, D]. Scores lack their factor 1 / sqrt(D): it is the softmax's.


@njit(**JIT)
def _padded(length):
    """Whole vectors, an odd number of them: rows a power of two apart would fall into few sets of the first-level cache."""
    return ((length + LANES - 1) // LANES | 1) * LANES


@njit(**JIT)
def _gather(source, at, step, length, width, rows):
    """One head of [B,T,J,D] as rows [T',D]."""
    for t in range(length):
        for d in range(0, width, LANES):
            vstore(rows, t * width + d, vload(source, at + t * step + d))
    rows[length * width:] = 0


@njit(**JIT)
def _block(source, b, start, count, sizes, first_head, repeat, out):
    """A block's rows of [B,T,H,D], those of a position's `repeat` heads together; zeros past `count`."""
    length, heads, _, width = sizes
    for i in range(count):
        at = ((b * length + start + i) * heads + first_head) * width
        for d in range(0, repeat * width, LANES):
            vstore(out, i * repeat * width + d, vload(source, at + d))
    out[count * repeat * width:] = 0


@njit(**JIT)
def _scale(source, at, size, factor, target, to):
    for i in range(0, size, LANES):
        vstore(target, to + i, vmul(vload(source, at + i), splat(factor)))


@njit(**JIT)
def _softmax(scores, at, span, low, high, factor, weights):
    """exp(factor (score - peak)) from low to high, 0 in the rest of the span; factor peak, and the sum of what is left."""
    lead, sums, none = splat(np.float32(-np.inf)), splat(np.float32(0.0)), np.float32(0.0)
    for s in range(0, span, LANES):
        lead = vlarger(lead, within(vload(scores, at + s), s, low, high, np.float32(-np.inf)))
    peak = vpeak(lead) * factor
    for s in range(0, span, LANES):
        power = within(vexp_negative(fma(vload(scores, at + s), splat(factor), splat(-peak))), s, low, high, none)
        vstore(weights, at + s, power)
        sums = vadd(sums, power)
    return peak, vsum(sums)


@njit(**JIT)
def _weight_and_slope(scores, slopes, at, s, low, high, factor, level, mean):
    """Of sixteen keys: the weight exp(factor score - level), and the slope of the score from that of the weight; 0 outside low to high."""
    weight = within(vexp_negative(fma(vload(scores, at + s), splat(factor), splat(-level))), s, low, high, np.float32(0.0))
    return weight, vmul(weight, vadd(vload(slopes, at + s), splat(-mean)))


@njit(**JIT)
def _dot(a, b, at, size):
    total = splat(np.float32(0.0))
    for i in range(0, size, LANES):
        total = fma(vload(a, at + i), vload(b, at + i), total)
    return vsum(total)


@njit(**JIT)
def _forward(first, last, q, k, v, starts, y, partition, sizes, words):
    length, heads, kv_heads, width = sizes
    padded, repeat, word, scale = _padded(length), heads // kv_heads, per(words), np.float32(1.0) / np.sqrt(np.float32(width))
    block = BLOCK * repeat
    rows, keys, values = scratch_of(words, padded * width), scratch_of(words, padded * width), scratch_of(words, padded * width)
    queries, scores, weights = scratch_of(words, block * width), scratch(block * padded), scratch_of(words, block * padded)
    mixed, shares = scratch(block * width), scratch(block)
    weights[:] = 0
    for task in range(first, last):
        b, j = task // kv_heads, task % kv_heads
        at = (b * length * kv_heads + j) * width
        _gather(k, at, kv_heads * width, length, width, rows)
        transpose(rows, 0, width, padded, width, keys, 0, word * padded)
        _gather(v, at, kv_heads * width, length, width, rows)
        put_turned(rows, padded, width, values)
        for start in range(0, length, BLOCK):
            count = min(BLOCK, length - start)
            begin = starts[b, start] // LANES * LANES
            span = (start + count - begin + LANES - 1) // LANES * LANES
            _block(q, b, start, count, sizes, j * repeat, repeat, queries)
            multiply(queries, 0, width, word, keys, begin * word, word * padded, block, width, span, scores, 0, padded, 0.0)
            for row in range(count * repeat):
                t = start + row // repeat
                peak, total = _softmax(scores, row * padded, span, starts[b, t] - begin, t + 1 - begin, scale, weights)
                partition[b, t, j * repeat + row % repeat] = np.log(total) + peak
                shares[row] = np.float32(1.0) / total
            multiply(weights, 0, padded, word, values, begin * width, word * width, block, span, width, mixed, 0, width, 0.0)
            for row in range(count * repeat):
                at = ((b * length + start + row // repeat) * heads + j * repeat + row % repeat) * width
                _scale(mixed, row * width, width, shares[row], y, at)


@njit(**JIT)
def _backward(first, last, q, k, v, starts, y, partition, dy, dq, dk, dv, sizes, words):
    length, heads, kv_heads, width = sizes
    padded, repeat, word = _padded(length), heads // kv_heads, per(words)
    block, one, scale = BLOCK * repeat, np.float32(1.0), np.float32(1.0) / np.sqrt(np.float32(width))
    rows, keys, keys_turned, values = (scratch_of(words, padded * width), scratch_of(words, padded * width), scratch_of(words, padded * width),
                                       scratch_of(words, padded * width))
    queries, queries_turned = scratch_of(words, block * width), scratch_of(words, block * width)
    above, above_turned = scratch_of(words, block * width), scratch_of(words, block * width)
    scores, slopes, mixed = scratch(block * KEYS), scratch(block * KEYS), scratch(block * width)
    weights_turned, slopes_rounded, slopes_turned = scratch_of(words, block * KEYS), scratch_of(words, block * KEYS), scratch_of(words, block * KEYS)
    to_keys, to_values = scratch(padded * width), scratch(padded * width)
    lows, highs, levels, means = np.empty(block, np.int64), np.empty(block, np.int64), scratch(block), scratch(block)
    for task in range(first, last):
        b, j = task // kv_heads, task % kv_heads
        at_keys = (b * length * kv_heads + j) * width
        _gather(v, at_keys, kv_heads * width, length, width, rows)
        transpose(rows, 0, width, padded, width, values, 0, word * padded)
        _gather(k, at_keys, kv_heads * width, length, width, rows)
        transpose(rows, 0, width, padded, width, keys, 0, word * padded)
        put_turned(rows, padded, width, keys_turned)
        to_keys[:] = np.float32(0.0)
        to_values[:] = np.float32(0.0)
        for start in range(0, length, BLOCK):
            count = min(BLOCK, length - start)
            begin = starts[b, start] // LANES * LANES
            end = (start + count + LANES - 1) // LANES * LANES
            _block(q, b, start, count, sizes, j * repeat, repeat, queries)
            _block(dy, b, start, count, sizes, j * repeat, repeat, above)
            put_turned(queries, block, width, queries_turned)
            put_turned(above, block, width, above_turned)
            for row in range(block):  # those past `count` reach no key
                t, h = start + row // repeat, j * repeat + row % repeat
                inside = t < length
                lows[row], highs[row] = starts[b, t] if inside else 0, t + 1 if inside else 0
                levels[row] = partition[b, t, h] if inside else np.float32(0.0)
                means[row] = _dot(y, dy, ((b * length + t) * heads + h) * width, width) if inside else np.float32(0.0)
            for s in range(begin, end, KEYS):
                columns = min(KEYS, end - s)
                multiply(queries, 0, width, word, keys, s * word, word * padded, block, width, columns, scores, 0, KEYS, 0.0)
                multiply(above, 0, width, word, values, s * word, word * padded, block, width, columns, slopes, 0, KEYS, 0.0)
                for row in range(0, block, 2):
                    low, high, level, mean = lows[row] - s, highs[row] - s, levels[row], means[row]
                    low_2, high_2, level_2, mean_2 = lows[row + 1] - s, highs[row + 1] - s, levels[row + 1], means[row + 1]
                    for i in range(0, columns, LANES):
                        at, turned = row * KEYS, row * KEYS + word * i
                        weight, slope = _weight_and_slope(scores, slopes, at, i, low, high, scale, level, mean)
                        weight_2, slope_2 = _weight_and_slope(scores, slopes, at + KEYS, i, low_2, high_2, scale, level_2, mean_2)
                        put_rows(weights_turned, turned, KEYS, weight, weight_2)
                        put_rows(slopes_turned, turned, KEYS, slope, slope_2)
                        vstore(slopes_rounded, at + i, slope)
                        vstore(slopes_rounded, at + KEYS + i, slope_2)
                multiply(slopes_rounded, 0, KEYS, word, keys_turned, s * width, word * width, block, columns, width, mixed, 0, width, np.float32(s > begin))
                multiply(slopes_turned, 0, word, word * KEYS, queries_turned, 0, word * width, columns, block, width, to_keys, s * width, width, 1.0)
                multiply(weights_turned, 0, word, word * KEYS, above_turned, 0, word * width, columns, block, width, to_values, s * width, width, 1.0)
            for row in range(count * repeat):
                at = ((b * length + start + row // repeat) * heads + j * repeat + row % repeat) * width
                _scale(mixed, row * width, width, scale, dq, at)
        for t in range(length):
            at = at_keys + t * kv_heads * width
            _scale(to_keys, t * width, width, scale, dk, at)
            _scale(to_values, t * width, width, one, dv, at)
