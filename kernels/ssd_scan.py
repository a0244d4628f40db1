"""The SSD scan in chunks, the compiled loops: forward and backward as small products that never leave the caches. `kernels.ssd` calls them.

Inside a chunk of Q positions every one reads every earlier one through a Q x Q matrix of scores C Bᵀ, masked by decays; what came before the chunk is in one
state. Per head that is three products forward and six backward, of 32 x 64 matrices: `kernels.products` does them at the speed of the multiply-adds,
between masks and scalings that are in the first-level cache already. Nothing of size Q x Q outlives its chunk: the backward has inputs and the states
between chunks, and computes scores and decays again.

States and all sums are float32. bfloat16 inputs are multiplied as they are; what meets them (states, their slopes, scores and inputs times decays) is rounded
to bfloat16 for the product, as Mamba's own GPU kernels do, and so are the states kept for the backward.

Decays are products of the positions' own, never exp of a sum of logs: a document's first position decays all before it by 0, and no case is left over.
The gradient of log decay at t is what passes from before t to t and later: from the state that entered the chunk or an earlier position s, to a position of
the chunk or the state that leaves it. Each of the four is summed from its own products; a difference of larger sums (dy·y less dt x·dxdt, say) would be
simpler, but where decay is strong nothing but rounding is left of it.

States are [N, P] inside. Shapes: B batch, L length, H heads, P head_dim, G groups, N state size, Q = CHUNK.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kernels.lanes import JIT
from kernels.products import ROWS, multiply, per, put_both, put_rows, put_turned, transpose
from kernels.simd import WIDTH as LANES
from kernels.simd import fma, prefetch, scratch, scratch_of, splat, vadd, vload, vmul, vstore, vsum, vsum8, within

CHUNK = 32  # positions, a multiple of 16: products within a chunk grow with it, states kept and turned shrink

# Matrices are flat, in the words of `kernels.products` (`_rows`: by rows, `_turned`: transposed): a state is [N, P], a chunk's x, dy, ... are [CHUNK, P], its B
# and C [CHUNK, N], its scores [t, s]. A tensor is its memory, where it begins, and the distance between positions.


@njit(**JIT)
def _copy(source, at, size, target, to):
    """target[to:to+size] = source[at:at+size], from either dtype to either."""
    for i in range(0, size, LANES):
        vstore(target, to + i, vload(source, at + i))


@njit(**JIT)
def _gather(source, at, step, count, width, rows):
    """`count` rows, `step` apart, as [CHUNK, width]; zeros past them."""
    for i in range(count):
        _copy(source, at + i * step, width, rows, i * width)
    rows[count * width:] = 0


@njit(**JIT)
def _ask(memory, at, step, rows, size):
    """Rows that will be read or written soon are asked for: pieces of wider rows, which no hardware foresees."""
    for i in range(rows):
        for p in range(0, size, LANES * per(memory)):
            prefetch(memory, at + i * step + p)


@njit(**JIT)
def _group(B, at_B, B_t, C, at_C, C_t, count, size, keys, keys_rows, keys_turned, queries, queries_rows, scores):
    """One group's part of a chunk: its B and C, zeros past `count`, and scores[t, s] = C_t · B_s."""
    word = per(keys)
    _gather(B, at_B, B_t, count, size, keys)
    _gather(C, at_C, C_t, count, size, queries)
    put_turned(keys, CHUNK, size, keys_rows)
    put_turned(queries, CHUNK, size, queries_rows)
    transpose(keys, 0, size, CHUNK, size, keys_turned, 0, word * CHUNK)
    multiply(queries, 0, size, word, keys_turned, 0, word * CHUNK, CHUNK, size, CHUNK, scores, 0, CHUNK, 0.0)


@njit(**JIT)
def _decays(dt, decay, b, h, start, count, steps, reach, from_start):
    """One head's dt, and reach[t, s] = the decay from position s to t >= s of the chunk (0 above the diagonal), from_start[t] = from the state before it.

    Past `count` dt is 0 and all is kept, so that the last row of `reach` is the decay to the state that leaves."""
    running, one = np.float32(1.0), splat(np.float32(1.0))
    for t in range(CHUNK):
        steps[t] = dt[b, start + t, h] if t < count else np.float32(0.0)
        running *= decay[b, start + t, h] if t < count else np.float32(1.0)
        from_start[t] = running
    for s in range(0, CHUNK, LANES):
        row = splat(np.float32(0.0))
        for t in range(CHUNK):
            keep = decay[b, start + t, h] if t < count else np.float32(1.0)
            row = fma(row, splat(keep), within(one, s, t, t + 1, np.float32(0.0)))
            vstore(reach, t * CHUNK + s, row)


@njit(**JIT)
def _dot(a, at, b, size):
    """Of a[at:at+size] and b, a multiple of 32."""
    even = odd = splat(np.float32(0.0))
    for i in range(0, size, 2 * LANES):
        even, odd = fma(vload(a, at + i), vload(b, i), even), fma(vload(a, at + i + LANES), vload(b, i + LANES), odd)
    return vsum(vadd(even, odd))


@njit(**JIT)
def _inputs(x, at, x_t, count, width, steps, to_end, inputs_rows, added_rows):
    """One head's x, and what each position adds to the state that leaves: x times dt and decay."""
    none = splat(np.float32(0.0))
    for i in range(0, CHUNK, 2):
        add, add_2 = splat(steps[i] * to_end[i]), splat(steps[i + 1] * to_end[i + 1])
        for p in range(0, width, LANES):
            value = vload(x, at + i * x_t + p) if i < count else none
            value_2 = vload(x, at + (i + 1) * x_t + p) if i + 1 < count else none
            to = i * width + per(inputs_rows) * p
            put_rows(inputs_rows, to, width, value, value_2)
            put_rows(added_rows, to, width, vmul(value, add), vmul(value_2, add_2))


@njit(**JIT)
def forward(begin, end, x, x_b, x_t, B, B_b, B_t, C, C_b, C_t, dt, decay, D, between, y, last, sizes, words):
    """y, and the state `last` moved on in place; the states that enter chunks, and the last, go to `between` unless it is empty."""
    groups, size, width = sizes
    length, heads = dt.shape[1:]
    repeat, chunks, whole, word = heads // groups, (length + CHUNK - 1) // CHUNK, size * width, per(words)
    keys, keys_rows, keys_turned = scratch_of(words, CHUNK * size), scratch_of(words, CHUNK * size), scratch_of(words, CHUNK * size)
    queries, queries_rows, scores = scratch_of(words, CHUNK * size), scratch_of(words, CHUNK * size), scratch(CHUNK * CHUNK)
    steps, reach, from_start, weights = scratch(CHUNK), scratch(CHUNK * CHUNK), scratch(CHUNK), scratch_of(words, CHUNK * CHUNK)
    inputs_rows, added_rows, out = scratch_of(words, CHUNK * width), scratch_of(words, CHUNK * width), scratch(CHUNK * width)
    unkept, state_rows, to_end = scratch_of(words, whole), scratch_of(words, whole), reach[(CHUNK - 1) * CHUNK:]
    keep = between.size > 0
    for task in range(begin, end):
        b, g = task // groups, task % groups
        for k in range(chunks):
            start, count = k * CHUNK, min(CHUNK, length - k * CHUNK)
            at_B, at_C = b * B_b + start * B_t + g * size, b * C_b + start * C_t + g * size
            _group(B, at_B, B_t, C, at_C, C_t, count, size, keys, keys_rows, keys_turned, queries, queries_rows, scores)
            for h in range(g * repeat, (g + 1) * repeat):
                at, at_y, kept = b * x_b + start * x_t + h * width, ((b * length + start) * heads + h) * width, ((b * heads + h) * (chunks + 1) + k) * whole
                state = last[(b * heads + h) * whole:(b * heads + h + 1) * whole]
                right, down = (1, 0) if h + 1 < (g + 1) * repeat else (1 - repeat, 1)  # to the next head, or the first of the next chunk
                _ask(x, at + right * width + down * CHUNK * x_t, x_t, CHUNK, width)
                _ask(y, at_y + (right + down * CHUNK * heads) * width, heads * width, CHUNK, width)
                if keep:
                    _ask(between, kept + (right * (chunks + 1) + down) * whole, 0, 1, whole)
                    put_both(state, 0, size, width, between, kept, state_rows)
                else:
                    put_both(state, 0, size, width, unkept, 0, state_rows)
                _decays(dt, decay, b, h, start, count, steps, reach, from_start)
                for t in range(0, CHUNK * CHUNK, CHUNK):
                    for s in range(0, CHUNK, LANES):
                        vstore(weights, t + s, vmul(vmul(vload(scores, t + s), vload(reach, t + s)), vload(steps, s)))
                _inputs(x, at, x_t, count, width, steps, to_end, inputs_rows, added_rows)
                multiply(queries, 0, size, word, state_rows, 0, word * width, CHUNK, size, width, out, 0, width, 0.0)  # what came before the chunk,
                for t in range(0, CHUNK, ROWS):  # and its own positions
                    before = from_start[t:t + ROWS]
                    multiply(weights, t * CHUNK, CHUNK, word, inputs_rows, 0, word * width, ROWS, t + ROWS, width, out, t * width, width, before)
                skip = splat(D[h])
                for i in range(count):
                    for p in range(0, width, LANES):
                        vstore(y, at_y + i * heads * width + p, fma(skip, vload(x, at + i * x_t + p), vload(out, i * width + p)))
                multiply(keys_rows, 0, word, word * size, added_rows, 0, word * width, size, CHUNK, width, state, 0, width, from_start[CHUNK - 1])
        if keep:
            for h in range(g * repeat, (g + 1) * repeat):
                _copy(last, (b * heads + h) * whole, whole, between, ((b * heads + h) * (chunks + 1) + chunks) * whole)


@njit(**JIT)
def _slopes(dy, at, dy_t, count, width, from_start, above, above_rows, early, early_rows):
    """One head's dy, and the same times the decay from the state that entered."""
    none = splat(np.float32(0.0))
    for i in range(0, CHUNK, 2):
        keep, keep_2 = splat(from_start[i]), splat(from_start[i + 1])
        for p in range(0, width, LANES):
            slope = vload(dy, at + i * dy_t + p) if i < count else none
            slope_2 = vload(dy, at + (i + 1) * dy_t + p) if i + 1 < count else none
            to = i * width + p
            vstore(above, to, slope)
            vstore(above, to + width, slope_2)
            put_rows(above_rows, i * width + per(above_rows) * p, width, slope, slope_2)
            slope, slope_2 = vmul(slope, keep), vmul(slope_2, keep_2)
            vstore(early, to, slope)
            vstore(early, to + width, slope_2)
            put_rows(early_rows, i * width + per(early_rows) * p, width, slope, slope_2)


@njit(**JIT)
def _scale(source, width, steps, to_end, added):
    """Rows times what each position's dt and decay leave of it."""
    for i in range(CHUNK):
        add = splat(steps[i] * to_end[i])
        for p in range(i * width, (i + 1) * width, LANES):
            vstore(added, p, vmul(vload(source, p), add))


@njit(**JIT)
def _weights(scores, reach, weights_rows):
    for t in range(0, CHUNK, 2):
        for s in range(0, CHUNK, LANES):
            at = t * CHUNK + s
            weight, weight_2 = vmul(vload(scores, at), vload(reach, at)), vmul(vload(scores, at + CHUNK), vload(reach, at + CHUNK))
            put_rows(weights_rows, t * CHUNK + per(weights_rows) * s, CHUNK, weight, weight_2)


@njit(**JIT)
def _meetings(meets, steps, reach, scores, meetings, received, given):
    """From dy_t · x_s: scores' gradients, added up over heads, and what passes between positions, to each t and from each s."""
    given[:] = np.float32(0.0)
    for t in range(CHUNK):
        row = splat(np.float32(0.0))
        for s in range(0, CHUNK, LANES):
            at = t * CHUNK + s
            slope = vmul(vmul(vload(meets, at), vload(steps, s)), vload(reach, at))
            vstore(meetings, at, vadd(vload(meetings, at), slope))
            passing = vmul(slope, vload(scores, at))
            vstore(given, s, vadd(vload(given, s), passing))
            row = vadd(row, passing)
        received[t] = vsum(row)


@njit(**JIT)
def _collect(rows, columns, width, total, first, second):
    """total += rows, of positions `first` and `second`; and each one's dot product with `columns`, in lanes."""
    along, along_2 = splat(np.float32(0.0)), splat(np.float32(0.0))
    for p in range(0, width, LANES):
        a, b = first + p, second + p
        value, value_2 = vload(rows, a), vload(rows, b)
        vstore(total, a, vadd(vload(total, a), value))
        vstore(total, b, vadd(vload(total, b), value_2))
        along, along_2 = fma(value, vload(columns, a), along), fma(value_2, vload(columns, b), along_2)
    return along, along_2


@njit(**JIT)
def _positions(inputs, above, into, steps, skip, dx, at, dx_t, count, width, leaving, keys, to_keys, entering, queries, to_queries, size, sums):
    """dx; keys' and queries' gradients added up over heads; and four sums of each position i, at sums[4 i]: dstep·x, dy·x, and what passes from it to the state
    that leaves and to it from the one that entered."""
    none, skip = splat(np.float32(0.0)), splat(skip)
    for i in range(0, CHUNK, 2):
        inner, passed, inner_2, passed_2, step, step_2 = none, none, none, none, splat(steps[i]), splat(steps[i + 1])
        for p in range(0, width, LANES):
            a, b, to = i * width + p, (i + 1) * width + p, at + i * dx_t + p
            value, rise, slope = vload(inputs, a), vload(above, a), vload(into, a)
            value_2, rise_2, slope_2 = vload(inputs, b), vload(above, b), vload(into, b)
            inner, passed = fma(slope, value, inner), fma(rise, value, passed)
            inner_2, passed_2 = fma(slope_2, value_2, inner_2), fma(rise_2, value_2, passed_2)
            if i < count:
                vstore(dx, to, fma(step, slope, vmul(skip, rise)))
            if i + 1 < count:
                vstore(dx, to + dx_t, fma(step_2, slope_2, vmul(skip, rise_2)))
        left, left_2 = _collect(leaving, keys, size, to_keys, i * size, (i + 1) * size)
        read, read_2 = _collect(entering, queries, size, to_queries, i * size, (i + 1) * size)
        vstore(sums, 4 * i, vsum8(inner, passed, left, read, inner_2, passed_2, left_2, read_2))


@njit(**JIT)
def backward(begin, end, x, x_b, x_t, B, B_b, B_t, C, C_b, C_t, dt, decay, D, between, dy, slopes, direct, through, dD, dx, dx_b, dx_t, dB, dB_b, dB_t,
             dC, dC_b, dC_t, sizes, words):
    """dx, dB and dC; `slopes`, the last state's gradient, walked back in place to the first position; dD of each row; and of each position `direct`, dt's
    gradient by what it adds, and `through`, that of the log of its decay."""
    groups, size, width = sizes
    length, heads = dt.shape[1:]
    repeat, chunks, whole, word = heads // groups, (length + CHUNK - 1) // CHUNK, size * width, per(words)
    keys, keys_rows, keys_turned = scratch_of(words, CHUNK * size), scratch_of(words, CHUNK * size), scratch_of(words, CHUNK * size)
    queries, queries_rows, scores = scratch_of(words, CHUNK * size), scratch_of(words, CHUNK * size), scratch(CHUNK * CHUNK)
    to_keys, to_queries, leaving, entering = scratch(CHUNK * size), scratch(CHUNK * size), scratch(CHUNK * size), scratch(CHUNK * size)
    steps, reach, from_start, weights_rows = scratch(CHUNK), scratch(CHUNK * CHUNK), scratch(CHUNK), scratch_of(words, CHUNK * CHUNK)
    inputs, inputs_turned, added = scratch_of(words, CHUNK * width), scratch_of(words, CHUNK * width), scratch_of(words, CHUNK * width)
    above, above_rows, early, early_rows = (scratch_of(words, CHUNK * width), scratch_of(words, CHUNK * width), scratch_of(words, CHUNK * width),
                                            scratch_of(words, CHUNK * width))
    state, state_rows, state_turned = scratch_of(words, whole), scratch_of(words, whole), scratch_of(words, whole)
    meets, meetings, meetings_rows = scratch(CHUNK * CHUNK), scratch(CHUNK * CHUNK), scratch_of(words, CHUNK * CHUNK)
    into, sums, received, given = scratch(CHUNK * width), scratch(4 * CHUNK + LANES), scratch(CHUNK), scratch(CHUNK)
    to_end = reach[(CHUNK - 1) * CHUNK:]
    for task in range(begin, end):
        b, g = task // groups, task % groups
        dD[b, g * repeat:(g + 1) * repeat] = np.float32(0.0)
        for k in range(chunks - 1, -1, -1):
            start, count = k * CHUNK, min(CHUNK, length - k * CHUNK)
            at_B, at_C = b * B_b + start * B_t + g * size, b * C_b + start * C_t + g * size
            _group(B, at_B, B_t, C, at_C, C_t, count, size, keys, keys_rows, keys_turned, queries, queries_rows, scores)
            to_keys[:], to_queries[:], meetings[:] = np.float32(0.0), np.float32(0.0), np.float32(0.0)
            for h in range(g * repeat, (g + 1) * repeat):
                at_x, at_y, at_dx = b * x_b + start * x_t + h * width, ((b * length + start) * heads + h) * width, b * dx_b + start * dx_t + h * width
                kept, slope = ((b * heads + h) * (chunks + 1) + k) * whole, slopes[(b * heads + h) * whole:(b * heads + h + 1) * whole]
                right, up = (1, 0) if h + 1 < (g + 1) * repeat else (1 - repeat, min(k, 1))  # to the next head, or the first of the chunk before
                _ask(x, at_x + right * width - up * CHUNK * x_t, x_t, CHUNK, width)
                _ask(dy, at_y + (right - up * CHUNK * heads) * width, heads * width, CHUNK, width)
                _ask(dx, at_dx + right * width - up * CHUNK * dx_t, dx_t, CHUNK, width)
                _ask(between, kept + (right * (chunks + 1) - up) * whole, 0, 1, whole)
                _decays(dt, decay, b, h, start, count, steps, reach, from_start)
                _weights(scores, reach, weights_rows)
                _gather(x, at_x, x_t, count, width, inputs)
                transpose(inputs, 0, width, CHUNK, width, inputs_turned, 0, word * CHUNK)
                _scale(inputs, width, steps, to_end, added)
                _slopes(dy, at_y, heads * width, count, width, from_start, above, above_rows, early, early_rows)
                passing = from_start[CHUNK - 1] * _dot(between, kept, slope, whole)  # from the state that enters to the one that leaves
                # gradient of the steps, dt x: through the state that leaves, and from later positions
                put_both(slope, 0, size, width, state, 0, state_rows)
                multiply(keys, 0, size, word, state_rows, 0, word * width, CHUNK, size, width, into, 0, width, 0.0)
                for s in range(0, CHUNK, ROWS):
                    multiply(weights_rows, s * CHUNK + word * s, word, word * CHUNK, above_rows, s * width, word * width, ROWS, CHUNK - s, width,
                             into, s * width, width, to_end[s:s + ROWS])
                multiply(above, 0, width, word, inputs_turned, 0, word * CHUNK, CHUNK, width, CHUNK, meets, 0, CHUNK, 0.0)
                _meetings(meets, steps, reach, scores, meetings, received, given)
                # gradient of keys and queries through the states, and of the state that enters
                transpose(state, 0, width, size, width, state_turned, 0, word * size)
                multiply(added, 0, width, word, state_turned, 0, word * size, CHUNK, width, size, leaving, 0, size, 0.0)
                transpose(between, kept, width, size, width, state_turned, 0, word * size)
                multiply(early, 0, width, word, state_turned, 0, word * size, CHUNK, width, size, entering, 0, size, 0.0)
                multiply(queries_rows, 0, word, word * size, early_rows, 0, word * width, size, CHUNK, width, slope, 0, width, from_start[CHUNK - 1])
                _positions(inputs, above, into, steps, D[h], dx, at_dx, dx_t, count, width, leaving, keys, to_keys, entering, queries, to_queries, size, sums)
                for i in range(count):  # from the state that enters or an earlier position, to the one that leaves
                    through[b, start + i, h] = passing
                    passing += sums[4 * i + 2]
                read, inside = np.float32(0.0), np.float32(0.0)
                for i in range(count - 1, -1, -1):  # from the state that enters, or from an earlier position, to this one or a later
                    t = start + i
                    read += sums[4 * i + 3]
                    inside = inside + received[i] - given[i] if decay[b, t, h] > np.float32(0.0) else np.float32(0.0)  # exactly: a document begins
                    direct[b, t, h], through[b, t, h] = sums[4 * i], through[b, t, h] + read + inside
                    dD[b, h] += sums[4 * i + 1]
            put_both(meetings, 0, CHUNK, CHUNK, weights_rows, 0, meetings_rows)
            for s in range(0, CHUNK, ROWS):
                multiply(meetings_rows, s * CHUNK + word * s, word, word * CHUNK, queries_rows, s * size, word * size, ROWS, CHUNK - s, size,
                         to_keys, s * size, size, 1.0)
                multiply(weights_rows, s * CHUNK, CHUNK, word, keys_rows, 0, word * size, ROWS, s + ROWS, size, to_queries, s * size, size, 1.0)
            for i in range(count):
                _copy(to_keys, i * size, size, dB, b * dB_b + (start + i) * dB_t + g * size)
                _copy(to_queries, i * size, size, dC, b * dC_b + (start + i) * dC_t + g * size)
