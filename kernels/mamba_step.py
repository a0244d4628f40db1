"""All of a Mamba-2 layer between its two projections, for new positions of running sequences: convolution, dt, state update, gated norm.

Position by position, as the recurrence is written: a decoding step is one position, a piece of a prompt is many, and since every position does the
same sums in the same order, a prompt read in one piece or in ten ends in the same state, bit for bit. One head's state stays in the first-level cache
while its positions pass; for the state sizes in use this costs no more than the chunked form's products would.

Shapes: A sequences, M rows (all their new positions, one after another), C conv channels [x | B | C], H heads, P head_dim, G groups, N state size.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kernels.lanes import JIT, exp, sigmoid, store
from kernels.simd import WIDTH, fma, prefetch, splat, vload, vmul, vsigmoid, vstore, vsum8

TAPS = 4
ROWS = 8  # of a state at a time
AHEAD = 1024  # numbers: states are large, and no one else will have asked for this one


@njit(**JIT)
def mamba_step(projected, stride, starts, places, small, at, conv, ssm, sizes, eps, keep, later_inputs, later_states, later):
    """in_proj's rows [z | x | B | C | dt] -> what out_proj reads, float32 [M, H*P].

    starts [A+1]: each sequence's first row; places [A]: its index in conv [., TAPS-1, C] and ssm [., H, P, N]; small[at:]: taps [TAPS,C], bias [C],
    dt_bias, A, D [H] and norm weight. Conv and ssm move on in place; with `keep` they stay, and from row `later` on later_inputs [., TAPS-1+T, C] (a
    sequence a row) and later_states [., H, P, N] (a position a row) receive the convolution's inputs and the state after every position."""
    heads, width, size, groups = sizes.mamba_heads, sizes.mamba_width, sizes.state_size, sizes.groups
    inner = heads * width
    channels = inner + 2 * groups * size
    at_dt_bias = at + (TAPS + 1) * channels
    whole = width * size
    out, longest = np.empty(starts[-1] * inner, np.float32), np.max(starts[1:] - starts[:-1])
    room, mixed, sums = np.empty((TAPS - 1 + longest) * channels, conv.dtype), np.empty(longest * channels, np.float32), np.empty(WIDTH, np.float32)
    for a in range(len(places)):
        first, length = starts[a], starts[a + 1] - starts[a]
        inputs = room[:(TAPS - 1 + length) * channels]
        memory = places[a] * (TAPS - 1) * channels
        inputs[:(TAPS - 1) * channels] = conv[memory:memory + (TAPS - 1) * channels]
        for t in range(length):
            row, to = projected[(first + t) * stride + inner:], inputs[(TAPS - 1 + t) * channels:]
            for c in range(channels):
                store(to, c, row[c])
        _convolve(inputs, length, channels, small, at, mixed)
        if keep:
            begin = (later // length + a) * len(inputs)  # all sequences have as many positions then
            later_inputs[begin:begin + len(inputs)] = inputs
        else:
            conv[memory:memory + (TAPS - 1) * channels] = inputs[length * channels:]
        for h in range(heads):
            rate, bias, skip = small[at_dt_bias + heads + h], small[at_dt_bias + h], small[at_dt_bias + 2 * heads + h]
            group = inner + h // (heads // groups) * size
            state = (places[a] * heads + h) * whole
            for t in range(length):
                row = t * channels
                raw = projected[(first + t) * stride + inner + channels + h] + bias
                dt = raw if raw > np.float32(20.0) else np.log1p(exp(raw))
                decay = exp(dt * rate)
                to = (first + t) * inner + h * width
                x, key, query = row + h * width, row + group, row + group + groups * size
                now = ((later + first + t) * heads + h) * whole
                if not keep:
                    _advance(ssm, state, ssm, state, width, size, decay, dt, skip, mixed, x, key, query, out, to, sums)
                elif t == 0:
                    _advance(ssm, state, later_states, now, width, size, decay, dt, skip, mixed, x, key, query, out, to, sums)
                else:
                    _advance(later_states, now - heads * whole, later_states, now, width, size, decay, dt, skip, mixed, x, key, query, out, to, sums)
        for t in range(length):
            _gate(projected, (first + t) * stride, out, (first + t) * inner, inner, groups, small, at_dt_bias + 3 * heads, eps)
    return out


@njit(**JIT)
def _convolve(inputs, length, channels, small, at, mixed):
    """mixed = silu(bias + taps * inputs), [T, C] float32."""
    for t in range(length):
        for c in range(0, channels, WIDTH):
            total = vload(small, at + TAPS * channels + c)
            for k in range(TAPS):
                total = fma(vload(small, at + k * channels + c), vload(inputs, (t + k) * channels + c), total)
            vstore(mixed, t * channels + c, vmul(total, vsigmoid(total)))


@njit(**JIT)
def _advance(before, at, after, target, width, size, decay, dt, skip, mixed, x, key, query, out, to, sums):
    """after[p] = decay * before[p] + dt * x[p] * key; out[p] = after[p] · query + skip * x[p]: eight rows p share what they load and add up."""
    keeps, none = splat(decay), splat(np.float32(0.0))
    for p in range(0, width, ROWS):
        t0, t1, t2, t3, t4, t5, t6, t7 = none, none, none, none, none, none, none, none
        i = x + p
        a0, a1, a2, a3 = splat(mixed[i] * dt), splat(mixed[i + 1] * dt), splat(mixed[i + 2] * dt), splat(mixed[i + 3] * dt)
        a4, a5, a6, a7 = splat(mixed[i + 4] * dt), splat(mixed[i + 5] * dt), splat(mixed[i + 6] * dt), splat(mixed[i + 7] * dt)
        for n in range(0, size, 16):
            keys, queries = vload(mixed, key + n), vload(mixed, query + n)
            source, j = at + p * size + n, target + p * size + n
            t0 = _row(before, source, after, j, keeps, a0, keys, queries, t0)
            t1 = _row(before, source + size, after, j + size, keeps, a1, keys, queries, t1)
            t2 = _row(before, source + 2 * size, after, j + 2 * size, keeps, a2, keys, queries, t2)
            t3 = _row(before, source + 3 * size, after, j + 3 * size, keeps, a3, keys, queries, t3)
            t4 = _row(before, source + 4 * size, after, j + 4 * size, keeps, a4, keys, queries, t4)
            t5 = _row(before, source + 5 * size, after, j + 5 * size, keeps, a5, keys, queries, t5)
            t6 = _row(before, source + 6 * size, after, j + 6 * size, keeps, a6, keys, queries, t6)
            t7 = _row(before, source + 7 * size, after, j + 7 * size, keeps, a7, keys, queries, t7)
        vstore(sums, 0, vsum8(t0, t1, t2, t3, t4, t5, t6, t7))
        for r in range(ROWS):
            out[to + p + r] = sums[r] + skip * mixed[i + r]


@njit(inline="always", **JIT)
def _row(before, i, after, j, keeps, add, keys, queries, total):
    prefetch(before, i + AHEAD)
    new = fma(add, keys, vmul(vload(before, i), keeps))
    vstore(after, j, new)
    return fma(new, queries, total)


@njit(**JIT)
def _gate(projected, z, y, at, inner, groups, small, weight, eps):
    """y = group-wise norm of y * silu(z), times weight."""
    part = inner // groups
    for group in range(groups):
        gates, parts = projected[z + group * part:z + (group + 1) * part], y[at + group * part:at + (group + 1) * part]
        weights = small[weight + group * part:weight + (group + 1) * part]
        squares = np.float32(0.0)
        for i in range(part):
            value = parts[i] * (gates[i] * sigmoid(gates[i]))
            parts[i] = value
            squares += value * value
        scale = np.float32(1.0) / np.sqrt(squares / np.float32(part) + eps)
        for i in range(part):
            parts[i] = parts[i] * scale * weights[i]


@njit(**JIT)
def accept(counts, slots, length, layers, sizes, conv, ssm, later_inputs, later_states, later, later_rows):
    """Slots become what they were after counts[a] of the `length` positions of a step with `keep`, in all `layers`."""
    channels = sizes.mamba_heads * sizes.mamba_width + 2 * sizes.groups * sizes.state_size
    taps, whole = (TAPS - 1) * channels, sizes.mamba_heads * sizes.mamba_width * sizes.state_size
    for layer in range(layers):
        for a in range(len(counts)):
            row = layer * later_rows + later + a * length
            place, begin = layer * sizes.slots + slots[a], row // length * (taps + length * channels) + counts[a] * channels
            conv[place * taps:(place + 1) * taps] = later_inputs[begin:begin + taps]
            begin = (row + counts[a] - 1) * whole
            ssm[place * whole:(place + 1) * whole] = later_states[begin:begin + whole]
