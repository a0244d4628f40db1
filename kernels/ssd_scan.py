"""The SSD scan in chunks, compiled: forward and backward as small products that never leave the caches.

Inside a chunk of Q positions every one reads every earlier one through a Q x Q matrix of scores C Bᵀ, masked by decays; what came before the chunk is in one
state. Per head that is three products forward and eight backward, of 32 x 64 matrices: `kernels.products` does them at the speed of the multiply-adds,
between copies to float32 and masks that are in the first-level cache already. Nothing of size Q x Q outlives its chunk: the backward keeps inputs,
outputs and the state entering every chunk, and computes scores and decays again.

Decays are products of the positions' own, never exp of a sum of logs: a document's first position decays all before it by 0, and no case is left over.
The gradient of log decay needs no product over states: with G_t the whole gradient of h_t, a_t <G_t, h_{t-1}> is a running sum over later positions of
dy·(y - D x) - dt x·dxdt, taken anew at each chunk's end, and cut where a document starts.

States are [N, P] inside. Shapes: B batch, L length, H heads, P head_dim, G groups, N state size, Q = CHUNK.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from kernels.bits import in_spans
from kernels.lanes import JIT, flat
from kernels.products import ROWS, multiply, transpose
from kernels.simd import WIDTH as LANES
from kernels.simd import fma, scratch, splat, vload, vmul, vstore, vsum8

CHUNK = 32  # positions, a multiple of 16: products within a chunk grow with it, states kept and turned shrink


def scan(x_BLHP: Tensor, dt_BLH: Tensor, A_H: Tensor, B_BLGN: Tensor, C_BLGN: Tensor, D_H: Tensor, *, seq_idx_BL: Tensor | None = None,
         initial_state_BHPN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`kernels.ssd.ssd` for CPU tensors of float32 or bfloat16; sizes that are no whole vectors are padded by zeros."""
    width, size = x_BLHP.shape[3], B_BLGN.shape[3]
    if not x_BLHP.dtype == B_BLGN.dtype == C_BLGN.dtype:
        x_BLHP, B_BLGN, C_BLGN = x_BLHP.float(), B_BLGN.float(), C_BLGN.float()
    if initial_state_BHPN is not None:
        initial_state_BHPN = F.pad(initial_state_BHPN, (0, -size % LANES, 0, -width % LANES))
    x_BLHP, B_BLGN, C_BLGN = (_whole_vectors(t) for t in (x_BLHP, B_BLGN, C_BLGN))
    y, last = _Scan.apply(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, initial_state_BHPN, seq_idx_BL)
    whole = x_BLHP.shape[3] == width and B_BLGN.shape[3] == size  # slices of everything would cost the backward a copy each
    return (y, last) if whole else (y[..., :width], last[..., :width, :size])


def _whole_vectors(t: Tensor) -> Tensor:
    if missing := -t.shape[3] % LANES:  # padding by nothing would copy
        t = F.pad(t, (0, missing))
    return t if t.stride(3) == 1 and t.stride(2) == t.shape[3] else t.contiguous()


class _Scan(torch.autograd.Function):
    """(x, dt, A, B, C, D, initial, seq_idx) -> y [B,L,H,P] float32, last state [B,H,P,N] float32."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, initial, seq_idx):
        batch, length, heads, width = x.shape
        size, chunks = B.shape[3], -(-length // CHUNK)
        needed = any(ctx.needs_input_grad)
        dt32, decay = _steps(dt, A, seq_idx)
        last = torch.zeros(batch, heads, size, width)
        if initial is not None:
            last.copy_(initial.detach().transpose(2, 3))
        entering = torch.empty(batch, heads, chunks if needed else 0, size, width)
        y = torch.empty(batch, length, heads, width)
        D32 = D.detach().float()
        args = *_where(x, B, C), dt32.numpy(), decay.numpy(), D32.numpy(), *(flat(t) for t in (entering, y, last)), (B.shape[2], size, width), needed
        in_spans(lambda a, b: _forward(a, b, *args), batch * B.shape[2], x.numel() * size)
        ctx.has_initial = initial is not None
        if needed:
            ctx.save_for_backward(x, dt, A, B, C, D, dt32, decay, y, entering, last)
        return y, last.transpose(2, 3).contiguous()

    @staticmethod
    def backward(ctx, dy, dlast):
        x, dt, A, B, C, D, dt32, decay, y, entering, last = ctx.saved_tensors
        batch, length, heads, width = x.shape
        groups, size = B.shape[2:]
        dy, dlast = dy.float().contiguous(), dlast.float().transpose(2, 3).clone(memory_format=torch.contiguous_format)
        dx = torch.empty(batch, length, heads, width, dtype=x.dtype)
        dB, dC = (torch.empty(batch, length, groups, size, dtype=x.dtype) for _ in range(2))
        direct, through, dD = torch.empty(batch, length, heads), torch.empty(batch, length, heads), torch.empty(batch, heads)
        arrays = *(flat(t) for t in (y, entering, last, dy, dlast)), *(t.numpy() for t in (direct, through, dD))
        args = *_where(x, B, C), dt32.numpy(), decay.numpy(), D.detach().float().numpy(), *arrays, flat(dx), flat(dB), flat(dC), (groups, size, width)
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


# Matrices are flat: a state is [N, P], a chunk's x, dy, ... are [CHUNK, P], its B and C [CHUNK, N], its scores [t, s].


@njit(**JIT)
def _copy(source, at, size, target, to):
    """target[to:to+size] = source[at:at+size], from either dtype to either."""
    for i in range(0, size, LANES):
        vstore(target, to + i, vload(source, at + i))


@njit(**JIT)
def _scale(source, at, size, factor, target, to):
    factor = splat(factor)
    for i in range(0, size, LANES):
        vstore(target, to + i, vmul(vload(source, at + i), factor))


@njit(**JIT)
def _mask(matrix, reach):
    for i in range(0, matrix.size, LANES):
        vstore(matrix, i, vmul(vload(matrix, i), vload(reach, i)))


@njit(**JIT)
def _decays(decay, b, h, start, count, reach, from_start):
    """reach[t, s] = the decay from position s to t >= s of the chunk (0 above the diagonal), from_start[t] = from the state before it; padding keeps all."""
    running = np.float32(1.0)
    for t in range(CHUNK):
        keep = decay[b, start + t, h] if t < count else np.float32(1.0)
        running *= keep
        from_start[t] = running
        for s in range(0, CHUNK, LANES):
            at = t * CHUNK + s
            vstore(reach, at, vmul(vload(reach, at - CHUNK), splat(keep)) if t else splat(np.float32(0.0)))
        reach[t * CHUNK + t] = np.float32(1.0)


@njit(**JIT)
def _group(B, at_B, B_t, C, at_C, C_t, count, size, keys, queries, keys_turned, scores):
    """One group's part of a chunk: B and C as float32, zeros past `count`, and scores[t, s] = C_t · B_s."""
    for i in range(count):
        _copy(B, at_B + i * B_t, size, keys, i * size)
        _copy(C, at_C + i * C_t, size, queries, i * size)
    keys[count * size:] = np.float32(0.0)
    queries[count * size:] = np.float32(0.0)
    transpose(keys, 0, size, CHUNK, size, keys_turned, 0, CHUNK)
    multiply(queries, 0, size, 1, keys_turned, 0, CHUNK, CHUNK, size, CHUNK, scores, 0, CHUNK, 0.0)


@njit(**JIT)
def _forward(begin, end, x, x_b, x_t, B, B_b, B_t, C, C_b, C_t, dt, decay, D, entering, y, last, sizes, keep_states):
    groups, size, width = sizes
    length, heads = dt.shape[1:]
    repeat, chunks, whole = heads // groups, (length + CHUNK - 1) // CHUNK, size * width
    keys, queries, turned, scaled = scratch(CHUNK * size), scratch(CHUNK * size), scratch(CHUNK * size), scratch(CHUNK * size)
    scores, weights, reach, from_start = scratch(CHUNK * CHUNK), scratch(CHUNK * CHUNK), scratch(CHUNK * CHUNK), scratch(CHUNK)
    steps, out = scratch(CHUNK * width), scratch(CHUNK * width)
    for task in range(begin, end):
        b, g = task // groups, task % groups
        for k in range(chunks):
            start, count = k * CHUNK, min(CHUNK, length - k * CHUNK)
            _group(B, b * B_b + start * B_t + g * size, B_t, C, b * C_b + start * C_t + g * size, C_t, count, size, keys, queries, turned, scores)
            steps[count * width:] = np.float32(0.0)
            for h in range(g * repeat, (g + 1) * repeat):
                state = last[(b * heads + h) * whole:(b * heads + h + 1) * whole]
                if keep_states:
                    _copy(state, 0, whole, entering, ((b * heads + h) * chunks + k) * whole)
                _decays(decay, b, h, start, count, reach, from_start)
                for i in range(count):
                    at = b * x_b + (start + i) * x_t + h * width
                    _scale(x, at, width, dt[b, start + i, h], steps, i * width)
                    _scale(x, at, width, D[h], out, i * width)
                _copy(scores, 0, CHUNK * CHUNK, weights, 0)
                _mask(weights, reach)
                for t in range(0, CHUNK, ROWS):  # the positions of the chunk,
                    multiply(weights, t * CHUNK, CHUNK, 1, steps, 0, width, ROWS, t + ROWS, width, out, t * width, width, 1.0)
                for i in range(CHUNK):
                    _scale(queries, i * size, size, from_start[i], scaled, i * size)
                multiply(scaled, 0, size, 1, state, 0, width, CHUNK, size, width, out, 0, width, 1.0)  # and those before it
                for i in range(count):
                    _copy(out, i * width, width, y, ((b * length + start + i) * heads + h) * width)
                for i in range(CHUNK):
                    _scale(keys, i * size, size, reach[(CHUNK - 1) * CHUNK + i], scaled, i * size)
                multiply(scaled, 0, 1, size, steps, 0, width, size, CHUNK, width, state, 0, width, from_start[CHUNK - 1])


@njit(**JIT)
def _dot(a, b):
    total = np.float32(0.0)
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@njit(**JIT)
def _backward(begin, end, x, x_b, x_t, B, B_b, B_t, C, C_b, C_t, dt, decay, D, y, entering, last, dy, dlast, direct, through, dD, dx, dB, dC, sizes):
    groups, size, width = sizes
    length, heads = dt.shape[1:]
    repeat, chunks, whole, none = heads // groups, (length + CHUNK - 1) // CHUNK, size * width, splat(np.float32(0.0))
    keys, queries, to_keys, to_queries = scratch(CHUNK * size), scratch(CHUNK * size), scratch(CHUNK * size), scratch(CHUNK * size)
    scores, weights, reach, from_start = scratch(CHUNK * CHUNK), scratch(CHUNK * CHUNK), scratch(CHUNK * CHUNK), scratch(CHUNK)
    xs, steps, above, into, state_turned = scratch(CHUNK * width), scratch(CHUNK * width), scratch(CHUNK * width), scratch(CHUNK * width), scratch(whole)
    turned, scaled, dots = scratch(CHUNK * max(size, width)), scratch(CHUNK * max(size, width)), scratch(LANES)
    to_end = reach[(CHUNK - 1) * CHUNK:]
    for task in range(begin, end):
        b, g = task // groups, task % groups
        dD[b, g * repeat:(g + 1) * repeat] = np.float32(0.0)
        for k in range(chunks - 1, -1, -1):
            start, count = k * CHUNK, min(CHUNK, length - k * CHUNK)
            _group(B, b * B_b + start * B_t + g * size, B_t, C, b * C_b + start * C_t + g * size, C_t, count, size, keys, queries, turned, scores)
            to_keys[:] = np.float32(0.0)
            to_queries[:] = np.float32(0.0)
            steps[count * width:] = np.float32(0.0)
            above[count * width:] = np.float32(0.0)
            for h in range(g * repeat, (g + 1) * repeat):
                at = (b * heads + h) * whole
                slope, before = dlast[at:at + whole], entering[at * chunks + k * whole:at * chunks + (k + 1) * whole]
                after = entering[at * chunks + (k + 1) * whole:at * chunks + (k + 2) * whole] if k + 1 < chunks else last[at:at + whole]
                running = _dot(after, slope)
                _decays(decay, b, h, start, count, reach, from_start)
                for i in range(count):
                    at = b * x_b + (start + i) * x_t + h * width
                    _copy(x, at, width, xs, i * width)
                    _scale(x, at, width, dt[b, start + i, h], steps, i * width)
                    _copy(dy, ((b * length + start + i) * heads + h) * width, width, above, i * width)
                # gradient of the steps: from later positions of the chunk, and through the state that leaves it
                _copy(scores, 0, CHUNK * CHUNK, weights, 0)
                _mask(weights, reach)
                for s in range(0, CHUNK, ROWS):
                    multiply(weights, s * CHUNK + s, 1, CHUNK, above, s * width, width, ROWS, CHUNK - s, width, into, s * width, width, 0.0)
                for i in range(CHUNK):
                    _scale(keys, i * size, size, to_end[i], scaled, i * size)
                multiply(scaled, 0, size, 1, slope, 0, width, CHUNK, size, width, into, 0, width, 1.0)
                # gradient of keys and queries: through scores, and through the two states
                transpose(steps, 0, width, CHUNK, width, turned, 0, CHUNK)
                multiply(above, 0, width, 1, turned, 0, CHUNK, CHUNK, width, CHUNK, weights, 0, CHUNK, 0.0)
                _mask(weights, reach)
                for s in range(0, CHUNK, ROWS):
                    multiply(weights, s * CHUNK + s, 1, CHUNK, queries, s * size, size, ROWS, CHUNK - s, size, to_keys, s * size, size, 1.0)
                    multiply(weights, s * CHUNK, CHUNK, 1, keys, 0, size, ROWS, s + ROWS, size, to_queries, s * size, size, 1.0)
                for i in range(CHUNK):
                    _scale(steps, i * width, width, to_end[i], scaled, i * width)
                transpose(slope, 0, width, size, width, state_turned, 0, size)
                multiply(scaled, 0, width, 1, state_turned, 0, size, CHUNK, width, size, to_keys, 0, size, 1.0)
                for i in range(CHUNK):
                    _scale(above, i * width, width, from_start[i], scaled, i * width)
                transpose(before, 0, width, size, width, state_turned, 0, size)
                multiply(scaled, 0, width, 1, state_turned, 0, size, CHUNK, width, size, to_queries, 0, size, 1.0)
                # gradient of the state that enters
                multiply(queries, 0, 1, size, scaled, 0, width, size, CHUNK, width, slope, 0, width, from_start[CHUNK - 1])
                for i in range(count - 1, -1, -1):
                    t, at = start + i, ((b * length + start + i) * heads + h) * width
                    step, skip = splat(dt[b, t, h]), splat(D[h])
                    inner, passed, out = none, none, none  # sums of dstep·x, dy·x and dy·y
                    for p in range(0, width, LANES):
                        value, rise, slope_x = vload(xs, i * width + p), vload(above, i * width + p), vload(into, i * width + p)
                        inner, passed, out = fma(slope_x, value, inner), fma(rise, value, passed), fma(rise, vload(y, at + p), out)
                        vstore(dx, at + p, fma(step, slope_x, vmul(skip, rise)))
                    vstore(dots, 0, vsum8(inner, passed, out, none, none, none, none, none))
                    running += dots[2] - D[h] * dots[1] - dt[b, t, h] * dots[0]
                    if decay[b, t, h] == np.float32(0.0):
                        running = np.float32(0.0)  # nothing came before
                    direct[b, t, h], through[b, t, h] = dots[0], running
                    dD[b, h] += dots[1]
            for i in range(count):
                at = ((b * length + start + i) * groups + g) * size
                _copy(to_keys, i * size, size, dB, at)
                _copy(to_queries, i * size, size, dC, at)
