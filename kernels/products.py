"""Small matrix products and transposes inside compiled code, where a call of a library for matrices of 32 x 64 would cost more than the product.

`multiply` walks tiles of 4 rows by 4 vectors, whose 16 sums stay in registers while the inner dimension passes by: two vectors loaded for four
multiply-adds. Tiles are written out in LLVM by a Python loop over their sums, for numba has no arrays of registers. Sums are float32.

Matrices lie in flat arrays of float32 or of bfloat16 bits (uint16), in words of 32 bits: a word is a number, or two bfloat16 neighbours along the dimension
summed over, whose products one instruction adds (twice float32's rate). Hence two layouts, and `per` numbers in a word:

    by columns  a matrix [rows, K] as it is: on the left of a product over K
    by rows     a matrix [K, columns], where the numbers of rows k and k + 1 alternate (bfloat16 only; K / per rows of per x columns numbers): on the right of
                a product over K, or transposed on its left

A place in a matrix is its first number's, and distances are numbers. `put_rows` writes the second layout; `transpose` turns the first into the second.
Where the machine has no such instruction (`kernels.simd.HAS_PAIRS`) kernels keep bfloat16 inputs as float32 (`words_for`).

numba's on-disk cache watches only the file a compiled function is written in: after changing this file, delete `kernels/__pycache__/*.nb[ci]`.
"""

from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from kernels.lanes import JIT
from kernels.simd import HAS_PAIRS, WIDTH, multiply_pairs, rounded, vload, vstore, vstore_pairs

ROWS = 4  # of a tile; with 4 vectors its 16 sums, a row of the right side and a broadcast fit in 32 registers
_VECTOR, _WORDS, _HALVES = (ir.VectorType(kind, WIDTH) for kind in (ir.FloatType(), ir.IntType(32), ir.IntType(16)))


def words_for(dtype: torch.dtype, *inner: int) -> np.ndarray:
    """An empty array of the dtype in which a kernel keeps the matrices it multiplies: bits for bfloat16 if `inner` sizes, those turned, are whole vectors."""
    pairs = dtype == torch.bfloat16 and HAS_PAIRS and all(size % (2 * WIDTH) == 0 for size in inner)
    return np.empty(0, np.uint16 if pairs else np.float32)


def per(memory):
    """Numbers in a word of an array. Compiled code only."""
    raise AssertionError("compiled code only")


@overload(per, inline="always")
def _per(memory):
    numbers = 2 if memory.dtype == types.uint16 else 1
    return lambda memory: numbers


def put_rows(memory, at, columns, a, b):
    """Sixteen columns of two neighbouring rows, by rows: `at` is where the first row's lie. Compiled code only."""
    raise AssertionError("compiled code only")


@overload(put_rows, inline="always")
def _put_rows(memory, at, columns, a, b):
    if memory.dtype == types.uint16:
        return lambda memory, at, columns, a, b: vstore_pairs(memory, at, a, b)

    def put_rows(memory, at, columns, a, b):
        vstore(memory, at, a)
        vstore(memory, at + columns, b)
    return put_rows


def _memory(context, builder, signature, arguments, argument, kind=_VECTOR):
    """index -> pointer to a `kind` in a 1-D array argument."""
    data = context.make_array(signature.args[argument])(context, builder, arguments[argument]).data
    return lambda index: builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def _spread(builder, value, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0)), undefined, ir.Constant(_WORDS, [0] * WIDTH))


def tile(rows: int, vectors: int):
    """The compiled product of a `rows` x `vectors` tile. An `out` of bfloat16 bits is rounded once, and never read: its scale is 0."""
    @intrinsic
    def product(typing_context, left, at, row, step, right, at_right, step_right, depth, out, at_out, row_out, scale, at_scale):
        pairs, by_row, narrow = left.dtype == types.uint16, isinstance(scale, types.Array), out.dtype == types.uint16
        vector, result = _WORDS if pairs else _VECTOR, _HALVES if narrow else _VECTOR

        def fma(builder, total, a, b):
            return builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), "llvm.fma.v16f32"), [a, b, total])

        multiply_add = multiply_pairs if pairs else fma

        def emit(context, builder, signature, arguments):
            at, row, step = arguments[1:4]
            at_right, step_right, depth = arguments[5:8]
            at_out, row_out, scale, at_scale = arguments[9:]
            number = _memory(context, builder, signature, arguments, 0, vector.element)
            column, place = _memory(context, builder, signature, arguments, 4, vector), _memory(context, builder, signature, arguments, 8, result)
            word = at.type
            shift = lambda base, count, distance: builder.add(base, builder.mul(ir.Constant(word, count), distance) if count else ir.Constant(word, 0))
            lead = lambda base, v, numbers=1: builder.add(base, ir.Constant(word, v * WIDTH * numbers))
            sums = [[cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * WIDTH)) for _ in range(vectors)] for _ in range(rows)]
            with cgutils.for_range(builder, depth, intp=word) as loop:
                base = builder.add(at_right, builder.mul(loop.index, step_right))
                columns = [builder.load(column(lead(base, v, 2 if pairs else 1)), align=2) for v in range(vectors)]
                for r in range(rows):
                    factor = _spread(builder, builder.load(number(builder.add(shift(at, r, row), builder.mul(loop.index, step))), align=2), vector)
                    for v in range(vectors):
                        builder.store(multiply_add(builder, builder.load(sums[r][v]), factor, columns[v]), sums[r][v])
            read = ir.Constant(ir.IntType(1), 1) if by_row else builder.fcmp_unordered("!=", scale, ir.Constant(ir.FloatType(), 0.0))
            for r in range(rows):
                if by_row:
                    factor = _memory(context, builder, signature, arguments, 11, ir.FloatType())(shift(at_scale, r, ir.Constant(word, 1)))
                kept = _spread(builder, builder.load(factor) if by_row else scale, _VECTOR)
                for v in range(vectors):
                    target = place(lead(shift(at_out, r, row_out), v))
                    if narrow:
                        builder.store(rounded(builder, builder.load(sums[r][v])), target, align=2)
                        continue
                    with builder.if_then(read):
                        builder.store(fma(builder, builder.load(sums[r][v]), kept, builder.load(target, align=4)), sums[r][v])
                    builder.store(builder.load(sums[r][v]), target, align=4)
            return context.get_dummy_value()
        whole = types.intp
        return types.void(left, whole, whole, whole, right, whole, whole, whole, out, whole, whole, scale if by_row else types.float32, whole), emit
    return product


_four, _two, _tall, _one = tile(ROWS, 4), tile(ROWS, 2), tile(2 * ROWS, 2), tile(ROWS, 1)


@njit(**JIT)
def multiply(left, at, row, step, right, at_right, step_right, rows, depth, columns, out, at_out, row_out, scale):
    """out = scale * out + left @ right, out float32 [rows, columns]. With a scale of 0 what `out` held is not read; an array has a scale for each row.

    The word of left's row r and k, k + per - 1 is at left[at + r row + k / per step] (by columns: step = per; by rows, transposed: row = per), that of right's
    column c at right[at_right + k / per step_right + per c]. `depth`, the numbers summed over, is a multiple of per, `rows` of 4, `columns` of 16.
    """
    words, c = depth // per(left), 0
    while c + 4 * WIDTH <= columns:  # columns outside: four vectors of the right side stay in the first-level cache while rows pass by
        for r in range(0, rows, ROWS):
            _four(left, at + r * row, row, step, right, at_right + c * per(left), step_right, words, out, at_out + r * row_out + c, row_out, scale, r)
        c += 4 * WIDTH
    if c + 2 * WIDTH <= columns:
        r = 0
        while r + 2 * ROWS <= rows:
            _tall(left, at + r * row, row, step, right, at_right + c * per(left), step_right, words, out, at_out + r * row_out + c, row_out, scale, r)
            r += 2 * ROWS
        if r < rows:
            _two(left, at + r * row, row, step, right, at_right + c * per(left), step_right, words, out, at_out + r * row_out + c, row_out, scale, r)
        c += 2 * WIDTH
    if c < columns:
        for r in range(0, rows, ROWS):
            _one(left, at + r * row, row, step, right, at_right + c * per(left), step_right, words, out, at_out + r * row_out + c, row_out, scale, r)


@njit(**JIT)
def put_both(source, at, rows, columns, by_columns, at_columns, by_rows):
    """A float32 matrix in both layouts; `rows` is even, `columns` a multiple of 16."""
    for r in range(0, rows, 2):
        for c in range(0, columns, WIDTH):
            a, b = vload(source, at + r * columns + c), vload(source, at + (r + 1) * columns + c)
            vstore(by_columns, at_columns + r * columns + c, a)
            vstore(by_columns, at_columns + (r + 1) * columns + c, b)
            put_rows(by_rows, r * columns + per(by_rows) * c, columns, a, b)


@njit(**JIT)
def put_turned(source, rows, columns, by_rows):
    """A matrix by columns, by rows; sizes as in `put_both`."""
    for r in range(0, rows, 2):
        for c in range(0, columns, WIDTH):
            put_rows(by_rows, r * columns + per(by_rows) * c, columns, vload(source, r * columns + c), vload(source, (r + 1) * columns + c))


@intrinsic
def _turn(typing_context, source, at, row, out, at_out, row_out):
    """A transpose of 16 x 16 words: four rounds, each of which interleaves the halves of pairs of vectors."""
    def emit(context, builder, signature, arguments):
        at, row = arguments[1:3]
        at_out, row_out = arguments[4:]
        take, put = (_memory(context, builder, signature, arguments, i, _WORDS) for i in (0, 3))
        times = lambda distance, count: builder.mul(distance, ir.Constant(distance.type, count))
        rows = [builder.load(take(builder.add(at, times(row, i))), align=2) for i in range(WIDTH)]
        half = WIDTH // 2
        for _ in range(4):
            masks = [ir.Constant(_WORDS, [x for i in range(start, start + half) for x in (i, WIDTH + i)]) for start in (0, half)]
            rows = [builder.shuffle_vector(rows[i], rows[i + half], mask) for i in range(half) for mask in masks]
        for i in range(WIDTH):
            builder.store(rows[i], put(builder.add(at_out, times(row_out, i))), align=2)
        return context.get_dummy_value()
    return types.void(source, types.intp, types.intp, out, types.intp, types.intp), emit


@njit(**JIT)
def transpose(source, at, row, rows, columns, out, at_out, row_out):
    """Columns of a matrix by columns, as rows of one by rows: out[c, r] = source[r, c]. Rows are a multiple of 16, columns of 16 words; `row_out` is per x rows
    or more."""
    for r in range(0, rows, WIDTH):
        for c in range(0, columns // per(source), WIDTH):
            _turn(source, at + r * row + c * per(source), row, out, at_out + c * row_out + r * per(source), row_out)
