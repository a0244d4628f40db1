"""The SSD recurrence itself, compiled: for the small states of small models it beats the chunked matmul form on a CPU.

A state of N x P float32 fits the first-level cache, so one position costs two fused multiply-adds an element and no memory traffic, where the chunked
form spends its time on masks, transposes and matrices too small to be fast. Both directions walk CHUNK positions at a time over float32 copies padded to
whole vectors; four rows of the state stay in registers while a chunk's positions pass by. The backward keeps the state entering every chunk and, four rows
at a time, runs the chunk forward again and walks it in reverse. `kernels.ssd.ssd` chooses between the two; same arguments, same results.

The gradient of log decay needs no product over states: with G_t the whole gradient of h_t, a_t <G_t, h_{t-1}> is a running sum over later positions of
dy·(y - D x) - dt x·dxdt, taken anew at each chunk's end, and cut where a document starts.

Inside, states are stored [N, P]: the long loop then has no horizontal sums in the forward.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.bits import in_spans
from kernels.lanes import JIT, flat, load, runs_here, store
from kernels.simd import fma, splat, vadd, vload, vmul, vstore, vsum8

ROWS = 4  # rows of a state worked on at once
LANES = 16
CHUNK = 32  # positions between the states that are kept: ROWS x CHUNK x P float32 should stay in the first-level cache
MOST_STATE = 4096  # N x P from which the chunked form wins


def fits(x_BLHP: Tensor, B_BLGN: Tensor, C_BLGN: Tensor) -> bool:
    """Whether the compiled scan is the one to use."""
    return (x_BLHP.shape[3] * B_BLGN.shape[3] <= MOST_STATE and runs_here(x_BLHP, B_BLGN, C_BLGN) and x_BLHP.dtype == B_BLGN.dtype == C_BLGN.dtype
            and all(t.stride(3) == 1 and t.stride(2) == t.shape[3] for t in (x_BLHP, B_BLGN, C_BLGN)))


class Scan(torch.autograd.Function):
    """(x, dt, A, B, C, D, initial, seq_idx) -> y [B,L,H,P] float32, last state [B,H,P,N] float32."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, initial, seq_idx):
        batch, length, heads, width = x.shape
        size, chunks = B.shape[3], -(-length // CHUNK)
        needed = any(ctx.needs_input_grad)
        dt32, decay = _steps(dt, A, seq_idx)
        first = torch.zeros(batch, heads, size, width) if initial is None else initial.detach().float().transpose(2, 3).contiguous()
        entering = torch.empty(batch, heads, chunks if needed else 0, _padded(size, ROWS) * _padded(width, LANES))
        y, last = torch.empty(batch, length, heads, width), torch.empty(batch, heads, size, width)
        D32 = D.detach().float()
        arrays = (t.numpy() for t in (dt32, decay, D32, first, entering, y, last))
        args = (*_where(x, B, C), *arrays, B.shape[2], needed)
        in_spans(lambda a, b: _forward(a, b, *args), batch * heads, x.numel() * size)
        ctx.has_initial = initial is not None
        if needed:
            ctx.save_for_backward(x, dt, A, B, C, D, dt32, decay, y, entering)
        return y, last.transpose(2, 3).contiguous()

    @staticmethod
    def backward(ctx, dy, dlast):
        x, dt, A, B, C, D, dt32, decay, y, entering = ctx.saved_tensors
        batch, length, heads, width = x.shape
        groups, size = B.shape[2:]
        dy, dlast = dy.float().contiguous(), dlast.float().transpose(2, 3).clone(memory_format=torch.contiguous_format)
        dx = torch.empty(batch, length, heads, width, dtype=x.dtype)
        dB, dC = (torch.empty(batch, length, groups, size, dtype=x.dtype) for _ in range(2))
        direct, through, dD = torch.empty(batch, length, heads), torch.empty(batch, length, heads), torch.empty(batch, heads)
        arrays = (t.numpy() for t in (dt32, decay, D.detach().float(), y, entering, dy, dlast, direct, through, dD))
        args = (*_where(x, B, C), *arrays, flat(dx), flat(dB), flat(dC), heads // groups)
        in_spans(lambda a, b: _backward(a, b, *args), batch * groups, x.numel() * size)
        A32 = A.detach().float()
        dinitial = dlast.transpose(2, 3) if ctx.has_initial else None  # walked back in place to the first position
        ddt, dA = torch.addcmul(direct, through, A32), (through * dt32).sum((0, 1))
        return dx, ddt.to(dt.dtype), dA.to(A.dtype), dB, dC, dD.sum(0).to(D.dtype), dinitial, None


def _steps(dt: Tensor, A: Tensor, seq_idx: Tensor | None) -> tuple[Tensor, Tensor]:
    """dt and exp(dt A) in float32 [B,L,H]; the decay is 0 where a document starts."""
    dt32 = dt.detach().float().contiguous()
    decay = torch.exp(dt32 * A.detach().float())
    if seq_idx is not None:
        decay[:, 1:] *= (seq_idx[:, 1:] == seq_idx[:, :-1])[..., None]
    return dt32, decay


def _where(x: Tensor, B: Tensor, C: Tensor) -> tuple:
    return flat(x), x.stride(0), x.stride(1), flat(B), B.stride(0), B.stride(1), flat(C), C.stride(0), C.stride(1)


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


# Scratch is flat: a state is [N', P'], a chunk's x, dy, ... are [CHUNK, P'] and its B and C [CHUNK, N'], with N' and P' padded by zeros, which
# stay zero: padding needs no case of its own anywhere below.


@njit(**JIT)
def _widen(source, at, size, out, start):
    """out[start:start+size] = source[at:at+size] in float32."""
    row, target = source[at:at + size], out[start:start + size]
    for i in range(size):
        target[i] = load(row, i)


@njit(**JIT)
def _advance(state, count, steps, keep, keys, queries, out, size, width):
    """`count` positions: state = keep state + key ⊗ step, and out += queryᵀ state after each."""
    for n in range(0, size, ROWS):
        for p in range(0, width, LANES):
            at = n * width + p
            s0, s1, s2, s3 = vload(state, at), vload(state, at + width), vload(state, at + 2 * width), vload(state, at + 3 * width)
            for t in range(count):
                k, q, row = t * size + n, t * size + n, t * width + p
                decay, step, total = splat(keep[t]), vload(steps, row), vload(out, row)
                s0 = fma(splat(keys[k]), step, vmul(s0, decay))
                s1 = fma(splat(keys[k + 1]), step, vmul(s1, decay))
                s2 = fma(splat(keys[k + 2]), step, vmul(s2, decay))
                s3 = fma(splat(keys[k + 3]), step, vmul(s3, decay))
                first = fma(splat(queries[q]), s0, total)
                second = fma(splat(queries[q + 1]), s1, vmul(splat(queries[q + 2]), s2))
                vstore(out, row, vadd(fma(splat(queries[q + 3]), s3, second), first))
            vstore(state, at, s0)
            vstore(state, at + width, s1)
            vstore(state, at + 2 * width, s2)
            vstore(state, at + 3 * width, s3)


@njit(**JIT)
def _dot(a, b, size):
    total = np.float32(0.0)
    for i in range(size):
        total += a[i] * b[i]
    return total


@njit(**JIT)
def _replay(state, n, held, count, steps, keep, keys, size, width):
    """held[t + 1] = rows n..n+3 of the state after position t, from those of `state` in held[0]; small enough for the first-level cache."""
    block = ROWS * width
    for p in range(0, width, LANES):
        at, here = n * width + p, p
        s0, s1, s2, s3 = vload(state, at), vload(state, at + width), vload(state, at + 2 * width), vload(state, at + 3 * width)
        for t in range(count):
            k, decay, step = t * size + n, splat(keep[t]), vload(steps, t * width + p)
            here += block
            s0 = fma(splat(keys[k]), step, vmul(s0, decay))
            s1 = fma(splat(keys[k + 1]), step, vmul(s1, decay))
            s2 = fma(splat(keys[k + 2]), step, vmul(s2, decay))
            s3 = fma(splat(keys[k + 3]), step, vmul(s3, decay))
            vstore(held, here, s0)
            vstore(held, here + width, s1)
            vstore(held, here + 2 * width, s2)
            vstore(held, here + 3 * width, s3)


@njit(**JIT)
def _reverse(slope, after, state, held, count, steps, keep, keys, queries, dy, dx, sums, size, width):
    """The chunk backwards: slope = gradient of the state after each position; dx += keyᵀ slope; sums of four rows of dB and dC a vector.

    Returns <state after the chunk, its gradient>.
    """
    block, none, end = ROWS * width, splat(np.float32(0.0)), np.float32(0.0)
    for n in range(0, size, ROWS):
        _replay(state, n, held, count, steps, keep, keys, size, width)
        end += after * _dot(slope[n * width:n * width + block], held[count * block:(count + 1) * block], block)
        for t in range(count - 1, -1, -1):
            k, decay = t * size + n, splat(after if t == count - 1 else keep[t + 1])
            k0, k1, k2, k3 = splat(keys[k]), splat(keys[k + 1]), splat(keys[k + 2]), splat(keys[k + 3])
            q0, q1, q2, q3 = splat(queries[k]), splat(queries[k + 1]), splat(queries[k + 2]), splat(queries[k + 3])
            b0, b1, b2, b3, c0, c1, c2, c3 = none, none, none, none, none, none, none, none
            for p in range(0, width, LANES):
                at, row, here = n * width + p, t * width + p, (t + 1) * block + p
                above, step = vload(dy, row), vload(steps, row)
                g0 = fma(q0, above, vmul(vload(slope, at), decay))
                g1 = fma(q1, above, vmul(vload(slope, at + width), decay))
                g2 = fma(q2, above, vmul(vload(slope, at + 2 * width), decay))
                g3 = fma(q3, above, vmul(vload(slope, at + 3 * width), decay))
                vstore(slope, at, g0)
                vstore(slope, at + width, g1)
                vstore(slope, at + 2 * width, g2)
                vstore(slope, at + 3 * width, g3)
                first = fma(k0, g0, vload(dx, row))
                second = fma(k1, g1, vmul(k2, g2))
                vstore(dx, row, vadd(fma(k3, g3, second), first))
                b0, b1, b2, b3 = fma(g0, step, b0), fma(g1, step, b1), fma(g2, step, b2), fma(g3, step, b3)
                c0, c1 = fma(vload(held, here), above, c0), fma(vload(held, here + width), above, c1)
                c2, c3 = fma(vload(held, here + 2 * width), above, c2), fma(vload(held, here + 3 * width), above, c3)
            cell = k // ROWS * LANES
            vstore(sums, cell, vadd(vload(sums, cell), vsum8(b0, b1, b2, b3, c0, c1, c2, c3)))
    return end


@njit(**JIT)
def _forward(begin, end, x, x_b, x_t, B, B_b, B_t, C, C_b, C_t, dt, decay, D, first, entering, y, last, groups, keep_states):
    heads, size, width = first.shape[1:]
    rows, columns = (size + ROWS - 1) // ROWS * ROWS, (width + LANES - 1) // LANES * LANES
    length = dt.shape[1]
    keys, queries = np.zeros(CHUNK * rows, np.float32), np.zeros(CHUNK * rows, np.float32)
    steps, out, keep = np.zeros(CHUNK * columns, np.float32), np.zeros(CHUNK * columns, np.float32), np.empty(CHUNK, np.float32)
    state = np.zeros(rows * columns, np.float32)
    for task in range(begin, end):
        b, h = task // heads, task % heads
        g = h // (heads // groups)
        for n in range(size):
            state[n * columns:n * columns + width] = first[b, h, n]
        for start in range(0, length, CHUNK):
            count = min(CHUNK, length - start)
            if keep_states:
                entering[b, h, start // CHUNK] = state
            for i in range(count):
                t = start + i
                _widen(B, b * B_b + t * B_t + g * size, size, keys, i * rows)
                _widen(C, b * C_b + t * C_t + g * size, size, queries, i * rows)
                _widen(x, b * x_b + t * x_t + h * width, width, out, i * columns)
                keep[i] = decay[b, t, h]
                row, step = out[i * columns:(i + 1) * columns], steps[i * columns:(i + 1) * columns]
                for p in range(columns):
                    step[p] = dt[b, t, h] * row[p]
                for p in range(columns):
                    row[p] *= D[h]
            _advance(state, count, steps, keep, keys, queries, out, rows, columns)
            for i in range(count):
                y[b, start + i, h] = out[i * columns:i * columns + width]
        for n in range(size):
            last[b, h, n] = state[n * columns:n * columns + width]


@njit(**JIT)
def _backward(begin, end, x, x_b, x_t, B, B_b, B_t, C, C_b, C_t, dt, decay, D, y, entering, dy, dlast, direct, through, dD, dx, dB, dC, repeat):
    heads, size, width = dlast.shape[1:]
    rows, columns = (size + ROWS - 1) // ROWS * ROWS, (width + LANES - 1) // LANES * LANES
    groups, length, whole = heads // repeat, dt.shape[1], rows * columns
    slopes, held = np.zeros((repeat, whole), np.float32), np.empty((CHUNK + 1) * ROWS * columns, np.float32)
    keys, queries = np.zeros(CHUNK * rows, np.float32), np.zeros(CHUNK * rows, np.float32)
    xs, steps = np.zeros(CHUNK * columns, np.float32), np.zeros(CHUNK * columns, np.float32)
    above, into, keep = np.zeros(CHUNK * columns, np.float32), np.empty(CHUNK * columns, np.float32), np.empty(CHUNK, np.float32)
    sums = np.empty(CHUNK * rows // ROWS * LANES, np.float32)
    for task in range(begin, end):
        b, g = task // groups, task % groups
        for r in range(repeat):
            dD[b, g * repeat + r] = np.float32(0.0)
            for n in range(size):
                slopes[r, n * columns:n * columns + width] = dlast[b, g * repeat + r, n]
        for k in range((length + CHUNK - 1) // CHUNK - 1, -1, -1):
            start, stop = k * CHUNK, min((k + 1) * CHUNK, length)
            count = stop - start
            for i in range(count):
                _widen(B, b * B_b + (start + i) * B_t + g * size, size, keys, i * rows)
                _widen(C, b * C_b + (start + i) * C_t + g * size, size, queries, i * rows)
            sums[:] = np.float32(0.0)
            for r in range(repeat):
                h = g * repeat + r
                for i in range(count):
                    t = start + i
                    _widen(x, b * x_b + t * x_t + h * width, width, xs, i * columns)
                    above[i * columns:i * columns + width] = dy[b, t, h]
                    keep[i] = decay[b, t, h]
                    row, step = xs[i * columns:(i + 1) * columns], steps[i * columns:(i + 1) * columns]
                    for p in range(columns):
                        step[p] = dt[b, t, h] * row[p]
                after = decay[b, stop, h] if stop < length else np.float32(1.0)
                into[:] = np.float32(0.0)
                running = _reverse(slopes[r], after, entering[b, h, k], held, count, steps, keep, keys, queries, above, into, sums, rows, columns)
                for i in range(count - 1, -1, -1):
                    t = start + i
                    x_row, dy_row, dx_row = xs[i * columns:i * columns + width], above[i * columns:i * columns + width], into[i * columns:i * columns + width]
                    inner, skip = _dot(dx_row, x_row, width), _dot(dy_row, x_row, width)
                    running += _dot(dy_row, y[b, t, h], width) - D[h] * skip - dt[b, t, h] * inner
                    if decay[b, t, h] == np.float32(0.0):
                        running = np.float32(0.0)  # nothing came before
                    direct[b, t, h], through[b, t, h] = inner, running
                    dD[b, h] += skip
                    at = ((b * length + t) * heads + h) * width
                    target, step = dx[at:at + width], dt[b, t, h]
                    for p in range(width):
                        store(target, p, step * dx_row[p] + D[h] * dy_row[p])
            for i in range(count):
                at = ((b * length + start + i) * groups + g) * size
                to_keys, to_queries = dB[at:at + size], dC[at:at + size]
                for n in range(size):
                    cell = (i * rows + n) // ROWS * LANES + n % ROWS
                    store(to_keys, n, sums[cell])
                    store(to_queries, n, sums[cell + ROWS])
        for r in range(repeat):
            h = g * repeat + r
            for n in range(size):
                for p in range(width):
                    dlast[b, h, n, p] = slopes[r, n * columns + p] * decay[b, 0, h]
