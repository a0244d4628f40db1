"""Sixteen float32 lanes as one value of compiled code: loops that say which numbers stay in registers.

The loops of `kernels.lanes` leave vectors to LLVM, which is enough for one pass over memory. Kernels that multiply (scan, attention) live on reusing a
value many times before it is stored, and LLVM, which cannot know that two arrays do not overlap, stores and loads it every time. A `Lanes` value is an
LLVM <16 x float>: one AVX-512 register, two of AVX2, four of SSE or NEON; only bfloat16 asks what the machine has (`HAS_PAIRS`): AVX512-BF16 rounds
in one instruction, and multiplies and adds two neighbours of a 32-bit lane in another.

numba's on-disk cache watches only the file a compiled function is written in: after changing this file, delete `kernels/__pycache__/*.nb[ci]`.
"""

from __future__ import annotations

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from kernels.lanes import JIT, load

WIDTH = 16
HAS_PAIRS = bool(binding.get_host_cpu_features().get("avx512bf16", False))
_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
_HALVES = ir.VectorType(ir.IntType(16), WIDTH)


class BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes16xFloat32")


lanes = _LanesType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind) -> None:
        super().__init__(manager, kind, _VECTOR)


def _address(context, builder, array_type, array, index, vector):
    """Pointer to `vector` at array[index:] (a 1-D contiguous array; no bounds, no wrap-around)."""
    memory = context.make_array(array_type)(context, builder, array)
    return builder.bitcast(builder.gep(memory.data, [index]), vector.as_pointer())


@intrinsic
def vload(typing_context, memory, i):
    """memory[i:i+16] of a contiguous 1-D array of float32, or of bfloat16 as uint16 bits."""
    def emit(context, builder, signature, arguments):
        if signature.args[0].dtype == types.uint16:
            word = ir.VectorType(ir.IntType(32), WIDTH)
            narrow = ir.VectorType(ir.IntType(16), WIDTH)
            bits = builder.load(_address(context, builder, signature.args[0], *arguments, narrow), align=2)
            return builder.bitcast(builder.shl(builder.zext(bits, word), ir.Constant(word, [16] * WIDTH)), _VECTOR)
        return builder.load(_address(context, builder, signature.args[0], *arguments, _VECTOR), align=4)
    return lanes(memory, types.intp), emit


@intrinsic
def keep_if(typing_context, value, condition):
    """value, or 0 in all lanes; of a value just loaded it costs nothing where loads take masks."""
    def emit(context, builder, signature, arguments):
        bit = ir.VectorType(ir.IntType(1), WIDTH)
        first = builder.insert_element(ir.Constant(bit, ir.Undefined), arguments[1], ir.Constant(ir.IntType(32), 0))
        mask = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH))
        return builder.select(mask, arguments[0], ir.Constant(_VECTOR, [0.0] * WIDTH))
    return lanes(lanes, types.boolean), emit


def rounded(builder, vector):
    """The bfloat16 bits of sixteen lanes, nearest even: what LLVM emits for them."""
    if HAS_PAIRS:
        return builder.bitcast(builder.fptrunc(vector, ir.VectorType(BFloat(), WIDTH)), _HALVES)
    word = ir.VectorType(ir.IntType(32), WIDTH)
    bits, full = builder.bitcast(vector, word), lambda number: ir.Constant(word, [number] * WIDTH)
    odd = builder.and_(builder.lshr(bits, full(16)), full(1))
    return builder.trunc(builder.lshr(builder.add(builder.add(bits, full(0x7FFF)), odd), full(16)), _HALVES)


def multiply_pairs(builder, total, a, b):
    """total + both products of the bfloat16 pairs in sixteen words, lane by lane (LLVM): one instruction, or two multiply-adds of widened halves."""
    word = ir.VectorType(ir.IntType(32), WIDTH)

    def call(name, *values):
        return builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(_VECTOR, [value.type for value in values]), name), values)

    if HAS_PAIRS:
        numbers = ir.VectorType(BFloat(), 2 * WIDTH)
        return call("llvm.x86.avx512bf16.dpbf16ps.512", total, builder.bitcast(a, numbers), builder.bitcast(b, numbers))
    low = lambda pair: builder.bitcast(builder.shl(pair, ir.Constant(word, [16] * WIDTH)), _VECTOR)
    high = lambda pair: builder.bitcast(builder.and_(pair, ir.Constant(word, [0xFFFF0000] * WIDTH)), _VECTOR)
    return call("llvm.fma.v16f32", high(a), high(b), call("llvm.fma.v16f32", low(a), low(b), total))


@intrinsic
def vstore(typing_context, memory, i, value):
    """memory[i:i+16] = value, rounded to nearest even where the array holds bfloat16 bits."""
    def emit(context, builder, signature, arguments):
        array, index, vector = arguments
        if signature.args[0].dtype == types.uint16:
            builder.store(rounded(builder, vector), _address(context, builder, signature.args[0], array, index, _HALVES), align=2)
        else:
            builder.store(vector, _address(context, builder, signature.args[0], array, index, _VECTOR), align=4)
        return context.get_dummy_value()
    return types.void(memory, types.intp, lanes), emit


@intrinsic
def vstore_pairs(typing_context, memory, i, a, b):
    """memory[i:i+32] = a0 b0 a1 b1 ... in bfloat16 bits (a machine of `HAS_PAIRS`)."""
    def emit(context, builder, signature, arguments):
        array, index, a, b = arguments
        bfloats, bits = ir.VectorType(BFloat(), 2 * WIDTH), ir.VectorType(ir.IntType(16), 2 * WIDTH)
        name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
        both = builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(bfloats, [_VECTOR] * 2), name), [b, a])  # the second comes first
        order = ir.Constant(ir.VectorType(ir.IntType(32), 2 * WIDTH), [n for lane in range(WIDTH) for n in (lane, WIDTH + lane)])
        both = builder.bitcast(both, bits)
        builder.store(builder.shuffle_vector(both, both, order), _address(context, builder, signature.args[0], array, index, bits), align=2)
        return context.get_dummy_value()
    return types.void(memory, types.intp, lanes, lanes), emit


@intrinsic
def splat(typing_context, value):
    """A float32 in all lanes."""
    def emit(context, builder, signature, arguments):
        first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), arguments[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH))
    return lanes(types.float32), emit


@intrinsic
def fma(typing_context, a, b, c):
    """a * b + c with one rounding."""
    def emit(context, builder, signature, arguments):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), "llvm.fma.v16f32")
        return builder.call(function, arguments)
    return lanes(lanes, lanes, lanes), emit


def _fetch(nearness: int):
    @intrinsic
    def fetch(typing_context, memory, i):
        def emit(context, builder, signature, arguments):
            pointer = _address(context, builder, signature.args[0], *arguments, ir.IntType(8))
            flags = [ir.Constant(ir.IntType(32), n) for n in (0, nearness, 1)]
            kind = ir.FunctionType(ir.VoidType(), [pointer.type, *(flag.type for flag in flags)])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0"), [pointer, *flags])
            return context.get_dummy_value()
        return types.void(memory, types.intp), emit
    return fetch


fetch, prefetch = _fetch(3), _fetch(2)  # ask for the cache line of memory[i], which may lie beyond the end: into the first-level cache, the second


def _lane_by_lane(operation: str):
    @intrinsic
    def both(typing_context, a, b):
        def emit(context, builder, signature, arguments):
            return getattr(builder, operation)(*arguments)
        return lanes(lanes, lanes), emit
    return both


vadd, vsub, vmul, vdiv = map(_lane_by_lane, ("fadd", "fsub", "fmul", "fdiv"))


@intrinsic
def vsum8(typing_context, a, b, c, d, e, f, g, h):
    """Lane i = the sum of the i-th vector's lanes, eight of them; the other lanes are 0. Pairs share their additions: a third of eight sums' work."""
    def emit(context, builder, signature, arguments):
        def fold(first, second, run):
            """Runs of `run` lanes, halved by adding their two halves; those of `first`, then those of `second`."""
            low = [start + lane for start in range(0, 2 * WIDTH, run) for lane in range(run // 2)]
            mask = ir.VectorType(ir.IntType(32), WIDTH)
            pick = lambda lanes: builder.shuffle_vector(first, second, ir.Constant(mask, lanes))
            return builder.fadd(pick(low), pick([lane + run // 2 for lane in low]))
        vectors, run = list(arguments), WIDTH
        while len(vectors) > 1:
            vectors = [fold(vectors[i], vectors[i + 1], run) for i in range(0, len(vectors), 2)]
            run //= 2
        return fold(vectors[0], ir.Constant(_VECTOR, [0.0] * WIDTH), run)
    return lanes(*[lanes] * 8), emit


@intrinsic
def vlarger(typing_context, a, b):
    """The larger of each pair of lanes, a where one is NaN: a single instruction, where care for NaN takes three."""
    def emit(context, builder, signature, arguments):
        a, b = arguments
        return builder.select(builder.fcmp_ordered(">", b, a), b, a)
    return lanes(lanes, lanes), emit


@intrinsic
def within(typing_context, a, i, low, high, other):
    """Lanes of `a`, read at i, whose places i, i+1, ... lie in [low, high); `other` (a float32) in the rest."""
    def emit(context, builder, signature, arguments):
        a, i, low, high, other = arguments
        word, mask = ir.VectorType(ir.IntType(32), WIDTH), ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
        spread = lambda one, kind: builder.shuffle_vector(builder.insert_element(ir.Constant(kind, ir.Undefined), one, ir.Constant(ir.IntType(32), 0)),
                                                          ir.Constant(kind, ir.Undefined), mask)
        begin, size = (spread(builder.trunc(n, ir.IntType(32)), word) for n in (builder.sub(low, i), builder.sub(high, low)))
        inside = builder.icmp_unsigned("<", builder.sub(ir.Constant(word, list(range(WIDTH))), begin), size)
        return builder.select(inside, a, spread(other, _VECTOR))
    return lanes(lanes, types.intp, types.intp, types.intp, types.float32), emit


@intrinsic
def vpeak(typing_context, a):
    """The largest lane (none of them NaN), as a float32."""
    def emit(context, builder, signature, arguments):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.FloatType(), [_VECTOR]), "llvm.vector.reduce.fmax.v16f32")
        return builder.call(function, arguments, fastmath=("nnan",))
    return types.float32(lanes), emit


@intrinsic
def vsum(typing_context, a):
    """The sum of the lanes, halves added to halves, as a float32."""
    def emit(context, builder, signature, arguments):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.FloatType(), [ir.FloatType(), _VECTOR]), "llvm.vector.reduce.fadd.v16f32")
        return builder.call(function, [ir.Constant(ir.FloatType(), -0.0), *arguments], fastmath=("reassoc",))
    return types.float32(lanes), emit


@intrinsic
def lane(typing_context, a, i):
    def emit(context, builder, signature, arguments):
        return builder.extract_element(arguments[0], builder.trunc(arguments[1], ir.IntType(32)))
    return types.float32(lanes, types.intp), emit


@intrinsic
def _clamped(typing_context, a, limit):
    """a clamped to [-limit, limit]; by comparisons, which are one instruction each where maxnum's care for NaN takes three."""
    def emit(context, builder, signature, arguments):
        value, high = arguments
        low = builder.fneg(high)
        value = builder.select(builder.fcmp_ordered("<", value, high), value, high)
        return builder.select(builder.fcmp_ordered(">", value, low), value, low)
    return lanes(lanes, lanes), emit


@intrinsic
def _low_bits_as_exponent(typing_context, a):
    """The float32 whose exponent field is the low byte of a's bits."""
    def emit(context, builder, signature, arguments):
        word = ir.VectorType(ir.IntType(32), WIDTH)
        return builder.bitcast(builder.shl(builder.bitcast(arguments[0], word), ir.Constant(word, [23] * WIDTH)), _VECTOR)
    return lanes(lanes), emit


@njit(**JIT)
def _power(f):
    """2^f for f in [-1/2, 1/2]: 1 + the degree-5 polynomial of least relative error (1e-7; weighted least squares at Chebyshev points)."""
    p = fma(splat(np.float32(1.326472614891827e-3)), f, splat(np.float32(9.671512991189957e-3)))
    p = fma(p, f, splat(np.float32(5.550733581185341e-2)))
    p = fma(p, f, splat(np.float32(2.4022242426872253e-1)))
    p = fma(p, f, splat(np.float32(6.931470036506653e-1)))
    return fma(p, f, splat(np.float32(1.0)))


@njit(**JIT)
def vexp_negative(x):
    """e^x for x <= 0 to two units in the last place, 0 from -87.7 down: what a softmax asks for, in few instructions. Rounded as in `vsigmoid`."""
    x, log2e, shift = vlarger(x, splat(np.float32(-88.0))), splat(np.float32(1.4426950408889634)), splat(np.float32(12583039.0))
    shifted = fma(x, log2e, shift)
    return vmul(_power(fma(x, log2e, vsub(shift, shifted))), _low_bits_as_exponent(shifted))


@njit(**JIT)
def vsigmoid(x):
    """1 / (1 + e^-x) to four units in the last place for |x| < 16, to 2e-6 of itself beyond.

    e^-x is 2^n 2^f, f in [-1/2, 1/2]. Adding 1.5 * 2^23 + 127 rounds to the whole number n and leaves it, biased as an exponent is, in the low bits.
    """
    x, one = _clamped(x, splat(np.float32(87.0))), splat(np.float32(1.0))
    minus_log2e, shift = splat(np.float32(-1.4426950408889634)), splat(np.float32(12583039.0))
    shifted = fma(x, minus_log2e, shift)
    f = fma(x, minus_log2e, vsub(shift, shifted))
    return vdiv(one, fma(_power(f), _low_bits_as_exponent(shifted), one))


@njit(**JIT)
def largest(memory, start, stop):
    """Maximum of memory[start:stop] (float32, or bfloat16 bits); comparisons of scalars would stay scalars for fear of NaN."""
    found = np.float32(-np.inf)
    if stop - start >= WIDTH:
        first = second = third = fourth = splat(np.float32(-np.inf))  # never NaN: what is, is passed over
        for i in range(start, stop - 4 * WIDTH + 1, 4 * WIDTH):  # four chains: each waits on itself
            first, second = vlarger(first, vload(memory, i)), vlarger(second, vload(memory, i + WIDTH))
            third, fourth = vlarger(third, vload(memory, i + 2 * WIDTH)), vlarger(fourth, vload(memory, i + 3 * WIDTH))
        for i in range(max(start, stop - 4 * WIDTH), stop - WIDTH + 1, WIDTH):
            first = vlarger(first, vload(memory, i))
        first = vlarger(first, vload(memory, stop - WIDTH))
        return vpeak(vlarger(vlarger(first, second), vlarger(third, fourth)))
    row = memory[start:stop]
    for j in range(stop - start):
        found = max(found, load(row, j))
    return found


@njit(**JIT)
def scratch(size):
    """`size` float32 that begin on a cache line: a vector across two lines costs two accesses."""
    memory = np.empty(size + WIDTH, np.float32)
    skip = -(memory.ctypes.data // 4) % WIDTH
    return memory[skip:skip + size]


def scratch_of(kind, size):
    """`scratch` of the dtype of array `kind`: float32, or bfloat16 bits. Compiled code only."""
    raise AssertionError("compiled code only")


@overload(scratch_of)
def _scratch_of(kind, size):
    if kind.dtype == types.uint16:
        return lambda kind, size: scratch((size + 1) // 2).view(np.uint16)
    return lambda kind, size: scratch(size)
