"""bfloat16 matrix products on a CPU that multiplies pairs: packing, and the tile all of them are made of.

AVX512-BF16's vdpbf16ps multiplies two neighbouring bfloat16 numbers of each 32-bit lane and adds both products to a float32 lane. A word here is such
a pair, two numbers that are neighbours along the dimension summed over. A tile keeps 8 rows by 32 columns of sums in 16 registers while words pass by:
two loads and eight broadcasts for 16 instructions, which is the machine's full rate. The right side lies in panels of 32 columns, packed just before use
(`pack_down`, `pack_turned`: they also round float32 masters), small enough for the second-level cache.

Elsewhere the same tile is two multiply-adds of widened halves: right, not fast.

numba's on-disk cache watches only the file a compiled function is written in: after changing this file, delete `kernels/__pycache__/*.nb[ci]`.
"""

from __future__ import annotations

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.lanes import JIT

_features = binding.get_host_cpu_features()
HAS_PAIRS = bool(_features.get("avx512bf16", False))
HAS_TILES = bool(_features.get("amx-bf16", False))  # AMX multiplies several times faster; torch's library uses it
ROWS, WIDTH, PANEL = 8, 16, 32

_WORD, _FLOAT, _HALF = ir.IntType(32), ir.FloatType(), ir.IntType(16)
_WORDS, _FLOATS, _HALVES = (ir.VectorType(kind, WIDTH) for kind in (_WORD, _FLOAT, _HALF))
_MASK = lambda lanes: ir.Constant(ir.VectorType(_WORD, len(lanes)), list(lanes))


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


def _call(builder, name: str, result, values: list):
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [value.type for value in values]), name)
    return builder.call(function, values)


def _spread(builder, value, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(undefined, value, ir.Constant(_WORD, 0)), undefined, _MASK([0] * WIDTH))


def multiply_pairs(builder, sums, left, right):
    """sums + the lower products + the upper products of two vectors of words, each a <16 x i32>."""
    if HAS_PAIRS:
        halves = ir.VectorType(_BFloat(), 2 * WIDTH)
        return _call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", _FLOATS, [sums, builder.bitcast(left, halves), builder.bitcast(right, halves)])
    low = lambda word: builder.bitcast(builder.shl(word, ir.Constant(_WORDS, [16] * WIDTH)), _FLOATS)
    high = lambda word: builder.bitcast(builder.and_(word, ir.Constant(_WORDS, [0xFFFF0000] * WIDTH)), _FLOATS)
    sums = _call(builder, "llvm.fma.v16f32", _FLOATS, [low(left), low(right), sums])
    return _call(builder, "llvm.fma.v16f32", _FLOATS, [high(left), high(right), sums])


def _rounded(builder, value):
    """<16 x float> -> the bits of <16 x bfloat>, nearest even."""
    return builder.bitcast(builder.fptrunc(value, ir.VectorType(_BFloat(), WIDTH)), _HALVES)


def _at(context, builder, signature, arguments, argument):
    """(index, vector) -> pointer into a 1-D array argument."""
    data = context.make_array(signature.args[argument])(context, builder, arguments[argument]).data
    return lambda index, vector: builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def fetch(builder, pointer, to_write: bool):
    """Ask for a cache line early."""
    flag = lambda n: ir.Constant(_WORD, n)
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [pointer.type, _WORD, _WORD, _WORD]), "llvm.prefetch.p0")
    builder.call(function, [pointer, flag(int(to_write)), flag(3), flag(1)])


@intrinsic
def ask(typing_context, memory, i):
    """Asks for the cache line of memory[i] early."""
    def emit(context, builder, signature, arguments):
        fetch(builder, _at(context, builder, signature, arguments, 0)(arguments[1], ir.IntType(8)), False)
        return context.get_dummy_value()
    return types.void(memory, types.intp), emit


def _tile(rows: int):
    """The compiled product of `rows` rows with a panel."""
    @intrinsic
    def tile(typing_context, left, at, row, step, panel, at_panel, depth, out, at_out, row_out, continued):
        def emit(context, builder, signature, arguments):
            _, at, row, step, _, at_panel, depth, _, at_out, row_out, continued = arguments
            number, column, place = (_at(context, builder, signature, arguments, i) for i in (0, 4, 7))
            const = lambda n: ir.Constant(at.type, n)
            shift = lambda base, count, distance: builder.add(base, builder.mul(const(count), distance)) if count else base
            lanes = [(r, v) for r in range(rows) for v in range(PANEL // WIDTH)]
            target = lambda r, v: builder.add(shift(at_out, r, row_out), const(v * WIDTH))
            sums = {lane: cgutils.alloca_once(builder, _FLOATS) for lane in lanes}
            for lane in lanes:
                builder.store(ir.Constant(_FLOATS, [0.0] * WIDTH), sums[lane])
            narrow = signature.args[7].dtype == types.uint16
            for r, v in lanes[::2] if narrow else lanes:
                fetch(builder, place(target(r, v), ir.IntType(8)), True)
            with cgutils.for_range(builder, depth, intp=at.type) as loop:
                base = builder.add(at_panel, builder.mul(loop.index, const(PANEL)))
                columns = [builder.load(column(builder.add(base, const(v * WIDTH)), _WORDS), align=4) for v in range(PANEL // WIDTH)]
                for r in range(rows):
                    word = builder.load(number(builder.add(shift(at, r, row), builder.mul(loop.index, step)), _WORD), align=4)
                    factor = _spread(builder, word, _WORDS)
                    for v, words in enumerate(columns):
                        builder.store(multiply_pairs(builder, builder.load(sums[r, v]), factor, words), sums[r, v])
            if not narrow:
                with builder.if_then(continued):
                    for lane in lanes:
                        earlier = builder.load(place(target(*lane), _FLOATS), align=4)
                        builder.store(builder.fadd(earlier, builder.load(sums[lane])), sums[lane])
            for lane in lanes:
                total = builder.load(sums[lane])
                if narrow:
                    builder.store(_rounded(builder, total), place(target(*lane), _HALVES), align=2)
                else:
                    builder.store(total, place(target(*lane), _FLOATS), align=4)
            return context.get_dummy_value()
        i = types.intp
        return types.void(left, i, i, i, panel, i, i, out, i, i, types.boolean), emit
    return tile


tile_8, tile_4, tile_1 = _tile(ROWS), _tile(4), _tile(1)


def _sixteen(context, builder, signature, arguments, argument):
    """index -> the bits of 16 numbers of a float32 or bfloat16 (uint16) array argument as bfloat16."""
    place, kind = _at(context, builder, signature, arguments, argument), signature.args[argument].dtype
    if kind == types.uint16:
        return lambda index: builder.load(place(index, _HALVES), align=2)
    return lambda index: _rounded(builder, builder.load(place(index, _FLOATS), align=4))


@intrinsic
def _pair(typing_context, source, low, high, out, at_out):
    """out[at_out:+16] = words of source[low:+16] and source[high:+16]."""
    def emit(context, builder, signature, arguments):
        take, place = _sixteen(context, builder, signature, arguments, 0), _at(context, builder, signature, arguments, 3)
        lanes = builder.shuffle_vector(take(arguments[1]), take(arguments[2]), _MASK([x for i in range(WIDTH) for x in (i, WIDTH + i)]))
        builder.store(builder.bitcast(lanes, _WORDS), place(arguments[4], _WORDS), align=4)
        return context.get_dummy_value()
    return types.void(source, types.intp, types.intp, out, types.intp), emit


@intrinsic
def _turn(typing_context, source, at, row, out, at_out):
    """out[at_out + PANEL k + r] = word k of row r, 16 of each: four rounds, each of which interleaves the halves of pairs of vectors."""
    def emit(context, builder, signature, arguments):
        _, at, row, _, at_out = arguments
        take, place = _sixteen(context, builder, signature, arguments, 0), _at(context, builder, signature, arguments, 3)
        const = lambda n: ir.Constant(at.type, n)
        rows = []
        for r in range(WIDTH):
            begin = builder.add(at, builder.mul(row, const(r)))
            halves = builder.shuffle_vector(take(begin), take(builder.add(begin, const(WIDTH))), _MASK(range(2 * WIDTH)))
            rows.append(builder.bitcast(halves, _WORDS))
        half = WIDTH // 2
        masks = [_MASK([x for i in range(start, start + half) for x in (i, WIDTH + i)]) for start in (0, half)]
        for _ in range(4):
            rows = [builder.shuffle_vector(rows[i], rows[i + half], mask) for i in range(half) for mask in masks]
        for k, words in enumerate(rows):
            builder.store(words, place(builder.add(at_out, const(k * PANEL)), _WORDS), align=4)
        return context.get_dummy_value()
    return types.void(source, types.intp, types.intp, out, types.intp), emit


@njit(**JIT)
def _patch(source, at, row, rows, columns, patch):
    """The first rows and columns of `patch`, PANEL wide, from source; zeros in the rest."""
    patch[:] = 0
    for r in range(rows):
        for c in range(columns):
            patch[r * PANEL + c] = source[at + r * row + c]


@njit(**JIT)
def pack_down(source, at, row, rows, columns, out):
    """Panels whose words are neighbours in a column: out[p, k, c] = (source[2k, 32p + c], source[2k + 1, 32p + c]); zeros where rows or columns end."""
    words = (rows + 1) // 2
    patch = np.empty(2 * PANEL, source.dtype)
    for k in range(words):
        low, paired = at + 2 * k * row, 2 * k + 1 < rows
        for c in range(0, columns, PANEL):
            place = c * words + k * PANEL
            if paired and c + PANEL <= columns:
                for v in range(0, PANEL, WIDTH):
                    _pair(source, low + c + v, low + row + c + v, out, place + v)
            else:
                _patch(source, low + c, row, min(2, rows - 2 * k), min(PANEL, columns - c), patch)
                for v in range(0, PANEL, WIDTH):
                    _pair(patch, v, PANEL + v, out, place + v)


@njit(**JIT)
def pack_turned(source, at, row, rows, columns, out, at_out):
    """A panel of the transpose, whose words are neighbours in a row: out[k, r] = (source[r, 2k], source[r, 2k + 1]); zeros where rows (<= 32) end.

    `columns` is even. `out` is written in 16 words k at once: up to 15 more than there are.
    """
    patch = np.empty(WIDTH * PANEL, source.dtype)
    for r in range(0, PANEL, WIDTH):
        for k in range(0, columns // 2, WIDTH):
            begin = at + r * row + 2 * k
            if r + WIDTH <= rows and 2 * (k + WIDTH) <= columns:
                _turn(source, begin, row, out, at_out + k * PANEL + r)
            else:
                _patch(source, begin, row, min(max(rows - r, 0), WIDTH), min(columns - 2 * k, PANEL), patch)
                _turn(patch, 0, PANEL, out, at_out + k * PANEL + r)
