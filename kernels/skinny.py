"""Products of a few rows with a large matrix, for decoding: weights packed once, streamed once, every output summed in one order.

A step of decoding is bound by reading weights. They are laid out as panels of 32 outputs, [N/32, K, 32], so that a product reads them from front to
end, and up to eight rows of activations stay in registers while a panel passes. An output is one chain of multiply-adds over k = 0, 1, 2, ...
whatever the number of rows or threads: a row's result is the same bits alone or in a batch, which library products do not promise.

Both formats are arrays of 32-bit words. float32: a word is a weight. bfloat16: a uint32 word holds the weights of k and k + 1, and the row of
activations is rounded to the same pairs; one instruction (AVX512-BF16 vdpbf16ps) multiplies and adds a pair in each of 16 lanes, two fused
multiply-adds of widened halves do so elsewhere.

Shapes: M rows, K inputs, N outputs, W words a row (K, or K/2 for pairs).
"""

from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload
from torch import Tensor

from kernels.lanes import JIT, store
from kernels.simd import lanes, multiply_pairs, prefetch, splat, vstore

PANEL = 32  # outputs: two vectors
AHEAD = 2048  # words asked for before their turn where two to four rows meet a weight: experts of a batch, whose weights come from memory


@njit(**JIT)
def padded(outputs):
    """Outputs rounded up to whole panels: the stride of a product's result."""
    return (outputs + PANEL - 1) // PANEL * PANEL


def words_of(inputs, words):
    """Words a row of so many inputs takes in the format of `words`."""
    return inputs // 2 if words.dtype == np.uint32 else inputs


@overload(words_of, inline="always")
def _words_of(inputs, words):
    if words.dtype == types.uint32:
        return lambda inputs, words: inputs // 2
    return lambda inputs, words: inputs


def as_words(rows, words):
    """Float32 rows in the format of `words`: themselves, or rounded to pairs. Compiled code only."""
    raise AssertionError("compiled code only")


@overload(as_words)
def _as_words(rows, words):
    if words.dtype == types.uint32:
        def round_to_pairs(rows, words):
            out = np.empty(len(rows), np.uint16)
            for i in range(len(rows)):
                store(out, i, rows[i])
            return out.view(np.uint32)
        return round_to_pairs
    return lambda rows, words: rows


def pack(weight_NK: Tensor, words: np.ndarray) -> None:
    """Fill `words` (1-D, float32 or uint32: padded(N) * W of them) with a matrix in panels."""
    outputs = len(weight_NK)
    pairs = words.dtype == np.uint32
    weight_NK = weight_NK.detach().to(torch.bfloat16 if pairs else torch.float32)
    if padded(outputs) > outputs:
        weight_NK = torch.nn.functional.pad(weight_NK, (0, 0, 0, padded(outputs) - outputs))
    source = weight_NK.contiguous().view(torch.int32 if pairs else torch.float32)  # [N, W]
    target = torch.from_numpy(words.view(np.int32) if pairs else words)
    target.view(-1, source.shape[1], PANEL).copy_(source.view(-1, PANEL, source.shape[1]).transpose(1, 2))


@intrinsic
def multiply_add(typing_context, total, words, i, inputs, j):
    """total + words[i:i+16] * inputs[j] lane by lane; for pairs the lower product first where the machine has no instruction for both."""
    float_16, word_16 = ir.VectorType(ir.FloatType(), 16), ir.VectorType(ir.IntType(32), 16)

    def emit(context, builder, signature, arguments):
        sums, weights, at, row, j = arguments
        pointers = [context.make_array(t)(context, builder, a).data for t, a in ((signature.args[1], weights), (signature.args[3], row))]
        weight_pointer, input_pointer = (builder.gep(p, [index]) for p, index in zip(pointers, (at, j)))

        def spread(value, vector):
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(word_16, [0] * 16))

        def fma(a, b, c):
            function = builder.module.globals.get("llvm.fma.v16f32") or ir.Function(
                builder.module, ir.FunctionType(float_16, [float_16] * 3), "llvm.fma.v16f32")
            return builder.call(function, [a, b, c])

        if signature.args[1].dtype == types.float32:
            weight = builder.load(builder.bitcast(weight_pointer, float_16.as_pointer()), align=4)
            return fma(weight, spread(builder.load(input_pointer), float_16), sums)
        weight = builder.load(builder.bitcast(weight_pointer, word_16.as_pointer()), align=4)
        pair = spread(builder.load(input_pointer), word_16)
        return multiply_pairs(builder, sums, weight, pair)
    return lanes(lanes, words, types.intp, inputs, types.intp), emit


@intrinsic
def turn(typing_context, source, i, source_step, target, j, target_step):
    """target[j + d * target_step + s] = source[i + s * source_step + d], 16 x 16, as float32: four rounds of swapping ever larger blocks of lanes."""
    def emit(context, builder, signature, arguments):
        memory, i, source_step, panel, j, target_step = arguments
        kinds, float_16, mask = signature.args, ir.VectorType(ir.FloatType(), 16), ir.VectorType(ir.IntType(32), 16)
        narrow = kinds[0].dtype == types.uint16
        stored = ir.VectorType(ir.IntType(16), 16) if narrow else float_16
        here, there = context.make_array(kinds[0])(context, builder, memory).data, context.make_array(kinds[3])(context, builder, panel).data
        place = lambda base, at, step, n, vector: builder.bitcast(
            builder.gep(base, [builder.add(at, builder.mul(step, ir.Constant(step.type, n)))]), vector.as_pointer())
        rows = []
        for s in range(16):
            value = builder.load(place(here, i, source_step, s, stored), align=2 if narrow else 4)
            if narrow:
                value = builder.bitcast(builder.shl(builder.zext(value, mask), ir.Constant(mask, [16] * 16)), float_16)
            rows.append(value)
        for size in (1, 2, 4, 8):
            low = [n if not n & size else 16 + n - size for n in range(16)]
            high = [n + size if not n & size else 16 + n for n in range(16)]
            for s in range(16):
                if not s & size:
                    a, b = rows[s], rows[s + size]
                    rows[s] = builder.shuffle_vector(a, b, ir.Constant(mask, low))
                    rows[s + size] = builder.shuffle_vector(a, b, ir.Constant(mask, high))
        for d in range(16):
            builder.store(rows[d], place(there, j, target_step, d, float_16), align=4)
        return context.get_dummy_value()
    return types.void(source, types.intp, types.intp, target, types.intp, types.intp), emit


@njit(**JIT)
def linear(words, at, inputs, count, inputs_wide, outputs):
    """x Wᵀ for packed W: [count, padded(outputs)] float32."""
    stride = padded(outputs)
    out = np.empty(count * stride, np.float32)
    product(words, at, inputs, count, words_of(inputs_wide, words), 0, stride // PANEL, out, stride)
    return out


@njit(**JIT)
def product(words, at, inputs, count, width, first, last, out, stride):
    """out[m * stride + n] = sum_k w[n, k] x[m, k] for m < count and the outputs of panels first <= n / 32 < last.

    words[at:]: a packed matrix; inputs: the rows, `width` words each."""
    for panel in range(first, last):
        here, to = at + panel * width * PANEL, panel * PANEL
        m = 0
        while count - m > 4:
            _eight(words, here, inputs, m, count - 1, width, out, to, stride)
            m += 8
        if count - m > 1:
            _four(words, here, inputs, m, count - 1, width, out, to, stride)
        elif count - m == 1:
            _one(words, here, inputs, m, width, out, to, stride)


@njit(**JIT)
def _one(words, at, inputs, m, width, out, to, stride):
    a, b = splat(np.float32(0.0)), splat(np.float32(0.0))
    row = m * width
    for k in range(width):
        a = multiply_add(a, words, at + k * PANEL, inputs, row + k)
        b = multiply_add(b, words, at + k * PANEL + 16, inputs, row + k)
    vstore(out, m * stride + to, a)
    vstore(out, m * stride + to + 16, b)


@njit(**JIT)
def _four(words, at, inputs, m, most, width, out, to, stride):
    """Rows m .. m+3; those beyond `most` repeat it, to no effect."""
    none = splat(np.float32(0.0))
    a0, a1, a2, a3, b0, b1, b2, b3 = none, none, none, none, none, none, none, none
    m1, m2, m3 = min(m + 1, most), min(m + 2, most), min(m + 3, most)
    r0, r1, r2, r3 = m * width, m1 * width, m2 * width, m3 * width
    for k in range(width):
        i = at + k * PANEL
        prefetch(words, i + AHEAD)
        prefetch(words, i + AHEAD + 16)
        a0, b0 = multiply_add(a0, words, i, inputs, r0 + k), multiply_add(b0, words, i + 16, inputs, r0 + k)
        a1, b1 = multiply_add(a1, words, i, inputs, r1 + k), multiply_add(b1, words, i + 16, inputs, r1 + k)
        a2, b2 = multiply_add(a2, words, i, inputs, r2 + k), multiply_add(b2, words, i + 16, inputs, r2 + k)
        a3, b3 = multiply_add(a3, words, i, inputs, r3 + k), multiply_add(b3, words, i + 16, inputs, r3 + k)
    for row, a, b in ((m, a0, b0), (m1, a1, b1), (m2, a2, b2), (m3, a3, b3)):
        vstore(out, row * stride + to, a)
        vstore(out, row * stride + to + 16, b)


@njit(**JIT)
def _eight(words, at, inputs, m, most, width, out, to, stride):
    none = splat(np.float32(0.0))
    a0, a1, a2, a3, b0, b1, b2, b3 = none, none, none, none, none, none, none, none
    a4, a5, a6, a7, b4, b5, b6, b7 = none, none, none, none, none, none, none, none
    m1, m2, m3, m4 = min(m + 1, most), min(m + 2, most), min(m + 3, most), min(m + 4, most)
    m5, m6, m7 = min(m + 5, most), min(m + 6, most), min(m + 7, most)
    r0, r1, r2, r3, r4, r5, r6, r7 = m * width, m1 * width, m2 * width, m3 * width, m4 * width, m5 * width, m6 * width, m7 * width
    for k in range(width):
        i = at + k * PANEL
        prefetch(words, i + width * PANEL)
        prefetch(words, i + width * PANEL + 16)
        a0, b0 = multiply_add(a0, words, i, inputs, r0 + k), multiply_add(b0, words, i + 16, inputs, r0 + k)
        a1, b1 = multiply_add(a1, words, i, inputs, r1 + k), multiply_add(b1, words, i + 16, inputs, r1 + k)
        a2, b2 = multiply_add(a2, words, i, inputs, r2 + k), multiply_add(b2, words, i + 16, inputs, r2 + k)
        a3, b3 = multiply_add(a3, words, i, inputs, r3 + k), multiply_add(b3, words, i + 16, inputs, r3 + k)
        a4, b4 = multiply_add(a4, words, i, inputs, r4 + k), multiply_add(b4, words, i + 16, inputs, r4 + k)
        a5, b5 = multiply_add(a5, words, i, inputs, r5 + k), multiply_add(b5, words, i + 16, inputs, r5 + k)
        a6, b6 = multiply_add(a6, words, i, inputs, r6 + k), multiply_add(b6, words, i + 16, inputs, r6 + k)
        a7, b7 = multiply_add(a7, words, i, inputs, r7 + k), multiply_add(b7, words, i + 16, inputs, r7 + k)
    for row, a, b in ((m, a0, b0), (m1, a1, b1), (m2, a2, b2), (m3, a3, b3), (m4, a4, b4), (m5, a5, b5), (m6, a6, b6), (m7, a7, b7)):
        vstore(out, row * stride + to, a)
        vstore(out, row * stride + to + 16, b)
