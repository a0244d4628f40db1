"""Small float32 matrix products and transposes inside compiled code, where a call of a library for matrices of 32 x 64 would cost more than the product.

`multiply` walks tiles of 4 rows by 4 vectors, whose 16 sums stay in registers while the inner dimension passes by: two vectors loaded for four
multiply-adds. Tiles are written out in LLVM by a Python loop over their sums, for numba has no arrays of registers. Matrices lie in flat arrays; a place
in one is its first element and the distances between rows (and, on the left, between columns: a transposed left side costs nothing).

numba's on-disk cache watches only the file a compiled function is written in: after changing this file, delete `kernels/__pycache__/*.nb[ci]`.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.lanes import JIT
from kernels.simd import WIDTH

ROWS = 4  # of a tile; with 4 vectors its 16 sums, a row of the right side and a broadcast fit in 32 registers
_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)


def _memory(context, builder, signature, arguments, argument, vector=_VECTOR):
    """index -> pointer to a vector (or a number) of a 1-D float32 array argument."""
    data = context.make_array(signature.args[argument])(context, builder, arguments[argument]).data
    return lambda index: builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _tile(vectors: int):
    """The compiled product of a ROWS x `vectors` tile."""
    @intrinsic
    def tile(typing_context, left, at, row, step, right, at_right, step_right, depth, out, at_out, row_out, scale):
        def emit(context, builder, signature, arguments):
            at, row, step = arguments[1:4]
            at_right, step_right, depth = arguments[5:8]
            at_out, row_out, scale = arguments[9:]
            number = _memory(context, builder, signature, arguments, 0, ir.FloatType())
            column, place = _memory(context, builder, signature, arguments, 4), _memory(context, builder, signature, arguments, 8)
            word = at.type
            shift = lambda base, count, distance: builder.add(base, builder.mul(ir.Constant(word, count), distance) if count else ir.Constant(word, 0))
            lead = lambda base, v: builder.add(base, ir.Constant(word, v * WIDTH))
            add = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), "llvm.fma.v16f32")
            undefined, zeros = ir.Constant(_VECTOR, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
            spread = lambda value: builder.shuffle_vector(builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0)), undefined, zeros)
            sums = [[cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * WIDTH)) for _ in range(vectors)] for _ in range(ROWS)]
            with cgutils.for_range(builder, depth, intp=word) as loop:
                base = builder.add(at_right, builder.mul(loop.index, step_right))
                columns = [builder.load(column(lead(base, v)), align=4) for v in range(vectors)]
                for r in range(ROWS):
                    factor = spread(builder.load(number(builder.add(shift(at, r, row), builder.mul(loop.index, step)))))
                    for v in range(vectors):
                        builder.store(builder.call(add, [factor, columns[v], builder.load(sums[r][v])]), sums[r][v])
            keep, kept = builder.fcmp_unordered("!=", scale, ir.Constant(ir.FloatType(), 0.0)), spread(scale)
            for r in range(ROWS):
                for v in range(vectors):
                    target = place(lead(shift(at_out, r, row_out), v))
                    with builder.if_then(keep):
                        builder.store(builder.call(add, [kept, builder.load(target, align=4), builder.load(sums[r][v])]), sums[r][v])
                    builder.store(builder.load(sums[r][v]), target, align=4)
            return context.get_dummy_value()
        array, whole = left, types.intp
        return types.void(array, whole, whole, whole, right, whole, whole, whole, out, whole, whole, types.float32), emit
    return tile


_four, _two, _one = _tile(4), _tile(2), _tile(1)


@njit(**JIT)
def multiply(left, at, row, step, right, at_right, step_right, rows, depth, columns, out, at_out, row_out, scale):
    """out = scale * out + left @ right: left [rows, depth] at left[at + r row + k step], right [depth, columns] at right[at_right + k step_right + c].

    `rows` is a multiple of 4, `columns` of 16. With a scale of 0 what `out` held is not read.
    """
    scale, c = np.float32(scale), 0
    while c + 4 * WIDTH <= columns:  # columns outside: four vectors of the right side stay in the first-level cache while rows pass by
        for r in range(0, rows, ROWS):
            _four(left, at + r * row, row, step, right, at_right + c, step_right, depth, out, at_out + r * row_out + c, row_out, scale)
        c += 4 * WIDTH
    if c + 2 * WIDTH <= columns:
        for r in range(0, rows, ROWS):
            _two(left, at + r * row, row, step, right, at_right + c, step_right, depth, out, at_out + r * row_out + c, row_out, scale)
        c += 2 * WIDTH
    if c < columns:
        for r in range(0, rows, ROWS):
            _one(left, at + r * row, row, step, right, at_right + c, step_right, depth, out, at_out + r * row_out + c, row_out, scale)


@intrinsic
def _turn(typing_context, source, at, row, out, at_out, row_out):
    """A 16 x 16 transpose: four rounds, each of which interleaves the halves of pairs of vectors."""
    def emit(context, builder, signature, arguments):
        at, row = arguments[1:3]
        at_out, row_out = arguments[4:]
        take, put = _memory(context, builder, signature, arguments, 0), _memory(context, builder, signature, arguments, 3)
        times = lambda distance, count: builder.mul(distance, ir.Constant(distance.type, count))
        rows = [builder.load(take(builder.add(at, times(row, i))), align=4) for i in range(WIDTH)]
        half = WIDTH // 2
        for _ in range(4):
            masks = [ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [x for i in range(start, start + half) for x in (i, WIDTH + i)]) for start in (0, half)]
            rows = [builder.shuffle_vector(rows[i], rows[i + half], mask) for i in range(half) for mask in masks]
        for i in range(WIDTH):
            builder.store(rows[i], put(builder.add(at_out, times(row_out, i))), align=4)
        return context.get_dummy_value()
    return types.void(source, types.intp, types.intp, out, types.intp, types.intp), emit


@njit(**JIT)
def transpose(source, at, row, rows, columns, out, at_out, row_out):
    """out[c, r] = source[r, c]; both sizes multiples of 16."""
    for r in range(0, rows, WIDTH):
        for c in range(0, columns, WIDTH):
            _turn(source, at + r * row + c, row, out, at_out + c * row_out + r, row_out)
