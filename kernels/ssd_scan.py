"""The SSD scan in chunks, compiled: forward and backward as small products that never leave the caches.

Inside a chunk of Q positions every one reads every earlier one through a Q x Q matrix of scores C Bᵀ, masked by decays; what came before the chunk is in one
state. Per head that is three products forward and six backward, of 32 x 64 matrices: `kernels.products` does them at the speed of the multiply-adds,
between masks and scalings that are in the first-level cache already. Nothing of size Q x Q outlives its chunk: the backward keeps inputs, outputs and the
states between chunks, and computes scores and decays again.

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
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from kernels.bits import in_spans
from kernels.lanes import JIT, flat
from kernels.products import ROWS, multiply, per, put_both, put_rows, put_turned, transpose, words_for
from kernels.simd import WIDTH as LANES
from kernels.simd import fma, scratch, scratch_of, splat, vadd, vload, vmul, vstore, vsum, vsum8, within
from kernels.skinny import prefetch

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
        words = words_for(x.dtype, width, size)
        between = torch.empty(batch, heads, chunks + 1 if needed else 0, size, width, dtype=torch.float32 if words.dtype == np.float32 else torch.bfloat16)
        y = torch.empty(batch, length, heads, width)
        arrays = dt32.numpy(), decay.numpy(), D.detach().float().numpy(), *(flat(t) for t in (between, y, last))
        args = *_where(x, B, C), *arrays, (B.shape[2], size, width), words
        in_spans(lambda a, b: _forward(a, b, *args), batch * B.shape[2], x.numel() * size)
        ctx.has_initial = initial is not None
        ctx.set_materialize_grads(False)
        if needed:
            ctx.save_for_backward(x, dt, A, B, C, D, dt32, decay, between)
        return y, last.transpose(2, 3).contiguous()

    @staticmethod
    def backward(ctx, dy, dlast):
        x, dt, A, B, C, D, dt32, decay, between = ctx.saved_tensors
        batch, length, heads, width = x.shape
        groups, size = B.shape[2:]
        dy = torch.zeros(batch, length, heads, width) if dy is None else dy.float().contiguous()
        slope = torch.zeros(batch, heads, size, width)  # of the state, walked back in place to the first position
        if dlast is not None:
            slope.copy_(dlast.transpose(2, 3))
        dx = torch.empty(batch, length, heads, width, dtype=x.dtype)
        dB, dC = (torch.empty(batch, length, groups, size, dtype=x.dtype) for _ in range(2))
        direct, through, dD = torch.empty(batch, length, heads), torch.empty(batch, length, heads), torch.empty(batch, heads)
        arrays = dt32.numpy(), decay.numpy(), D.detach().float().numpy(), *(flat(t) for t in (between, dy, slope))
        gradients = *(t.numpy() for t in (direct, through, dD)), *_where(dx, dB, dC)
        args = *_where(x, B, C), *arrays, *gradients, (groups, size, width), words_for(x.dtype, width, size)
        in_spans(lambda a, b: _backward(a, b, *args), batch * groups, x.numel() * size)
        A32 = A.detach().float()
        dinitial = slope.transpose(2, 3) if ctx.has_initial else None
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


# Matrices are flat, in the words of `kernels.products`: a state is [N, P], a chunk's x, dy, ... are [CHUNK, P], its B and C [CHUNK, N], its scores [t, s].


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
def _decays(decay, b, h, start, count, reach, from_start):
    """reach[t, s] = the decay from position s to t >= s of the chunk (0 above the diagonal), from_start[t] = from the state before it; padding keeps all."""
    running, one = np.float32(1.0), splat(np.float32(1.0))
    for t in range(CHUNK):
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
    total = splat(np.float32(0.0))
    total_2 = total
    for i in range(0, size, 2 * LANES):
        total, total_2 = fma(vload(a, at + i), vload(b, i), total), fma(vload(a, at + i + LANES), vload(b, i + LANES), total_2)
    return vsum(vadd(total, total_2))


@njit(**JIT)
def _forward(begin, end, x, x_b, x_t, B, B_b, B_t, C, C_b, C_t, dt, decay, D, between, y, last, sizes, words):
    groups, size, width = sizes
    length, heads = dt.shape[1:]
    repeat, chunks, whole, word = heads // groups, (length + CHUNK - 1) // CHUNK, size * width, per(words)
    keys, keys_turned, keys_rows, queries = (scratch_of(words, CHUNK * size), scratch_of(words, CHUNK * size), scratch_of(words, CHUNK * size),
                                             scratch_of(words, CHUNK * size))
    scores, weights, reach, from_start = scratch(CHUNK * CHUNK), scratch_of(words, CHUNK * CHUNK), scratch(CHUNK * CHUNK), scratch(CHUNK)
    inputs, added, state_rows, out, steps = (scratch_of(words, CHUNK * width), scratch_of(words, CHUNK * width), scratch_of(words, whole),
                                             scratch(CHUNK * width), scratch(CHUNK))
    unkept = scratch_of(words, whole)
    to_end = reach[(CHUNK - 1) * CHUNK:]
    for task in range(begin, end):
        b, g = task // groups, task % groups
        for k in range(chunks):
            start, count = k * CHUNK, min(CHUNK, length - k * CHUNK)
            _gather(B, b * B_b + start * B_t + g * size, B_t, count, size, keys)
            _gather(C, b * C_b + start * C_t + g * size, C_t, count, size, queries)
            put_turned(keys, CHUNK, size, keys_rows)
            transpose(keys, 0, size, CHUNK, size, keys_turned, 0, word * CHUNK)
            multiply(queries, 0, size, word, keys_turned, 0, word * CHUNK, CHUNK, size, CHUNK, scores, 0, CHUNK, 0.0)
            for h in range(g * repeat, (g + 1) * repeat):
                at, kept = b * x_b + start * x_t + h * width, ((b * heads + h) * (chunks + 1) + k) * whole
                state = last[(b * heads + h) * whole:(b * heads + h + 1) * whole]
                next_h, later = (h + 1, 0) if h + 1 < (g + 1) * repeat else (g * repeat, CHUNK)
                _ask(x, at + (next_h - h) * width + later * x_t, x_t, CHUNK, width)
                _ask(y, ((b * length + start + later) * heads + next_h) * width, heads * width, CHUNK, width)
                _ask(between, kept + (next_h - h) * (chunks + 1) * whole + later // CHUNK * whole, 0, 1, whole)
                if between.size:
                    put_both(state, 0, size, width, between, kept, state_rows)
                else:
                    put_both(state, 0, size, width, unkept, 0, state_rows)
                _decays(decay, b, h, start, count, reach, from_start)
                for i in range(CHUNK):
                    steps[i] = dt[b, start + i, h] if i < count else np.float32(0.0)
                for t in range(CHUNK):
                    for s in range(t * CHUNK, (t + 1) * CHUNK, LANES):
                        vstore(weights, s, vmul(vmul(vload(scores, s), vload(reach, s)), vload(steps, s - t * CHUNK)))
                for i in range(0, CHUNK, 2):
                    for p in range(0, width, LANES):
                        none = splat(np.float32(0.0))
                        a = vload(x, at + i * x_t + p) if i < count else none
                        c = vload(x, at + (i + 1) * x_t + p) if i + 1 < count else none
                        put_rows(inputs, i * width + word * p, width, a, c)
                        put_rows(added, i * width + word * p, width, vmul(a, splat(steps[i] * to_end[i])), vmul(c, splat(steps[i + 1] * to_end[i + 1])))
                multiply(queries, 0, size, word, state_rows, 0, word * width, CHUNK, size, width, out, 0, width, 0.0)  # what came before the chunk,
                for t in range(0, CHUNK, ROWS):  # and its own positions
                    multiply(weights, t * CHUNK, CHUNK, word, inputs, 0, word * width, ROWS, t + ROWS, width, out, t * width, width, from_start[t:t + ROWS])
                skip = splat(D[h])
                for i in range(count):
                    to = ((b * length + start + i) * heads + h) * width
                    for p in range(0, width, LANES):
                        vstore(y, to + p, fma(skip, vload(x, at + i * x_t + p), vload(out, i * width + p)))
                multiply(keys_rows, 0, word, word * size, added, 0, word * width, size, CHUNK, width, state, 0, width, from_start[CHUNK - 1])
        if between.size:
            for h in range(g * repeat, (g + 1) * repeat):
                _copy(last, (b * heads + h) * whole, whole, between, ((b * heads + h) * (chunks + 1) + chunks) * whole)


@njit(**JIT)
def _backward(begin, end, x, x_b, x_t, B, B_b, B_t, C, C_b, C_t, dt, decay, D, between, dy, dlast, direct, through, dD, dx, dx_b, dx_t, dB, dB_b, dB_t,
              dC, dC_b, dC_t, sizes, words):
    groups, size, width = sizes
    length, heads = dt.shape[1:]
    repeat, chunks, whole, word, none = heads // groups, (length + CHUNK - 1) // CHUNK, size * width, per(words), splat(np.float32(0.0))
    keys, keys_turned, keys_rows = scratch_of(words, CHUNK * size), scratch_of(words, CHUNK * size), scratch_of(words, CHUNK * size)
    queries, queries_rows, to_keys, to_queries = scratch_of(words, CHUNK * size), scratch_of(words, CHUNK * size), scratch(CHUNK * size), scratch(CHUNK * size)
    scores, reach, from_start, steps = scratch(CHUNK * CHUNK), scratch(CHUNK * CHUNK), scratch(CHUNK), scratch(CHUNK)
    weights_rows, meets, meetings = scratch_of(words, CHUNK * CHUNK), scratch(CHUNK * CHUNK), scratch(CHUNK * CHUNK)
    meetings_columns, meetings_rows = scratch_of(words, CHUNK * CHUNK), scratch_of(words, CHUNK * CHUNK)
    inputs, inputs_turned, added = scratch_of(words, CHUNK * width), scratch_of(words, CHUNK * width), scratch_of(words, CHUNK * width)
    above, above_rows, early, early_rows = (scratch_of(words, CHUNK * width), scratch_of(words, CHUNK * width), scratch_of(words, CHUNK * width),
                                            scratch_of(words, CHUNK * width))
    slope_columns, slope_rows, turned, into = scratch_of(words, whole), scratch_of(words, whole), scratch_of(words, whole), scratch(CHUNK * width)
    leaving, entering, sums, rows, columns = scratch(CHUNK * size), scratch(CHUNK * size), scratch(4 * CHUNK + LANES), scratch(CHUNK), scratch(CHUNK)
    to_end = reach[(CHUNK - 1) * CHUNK:]
    for task in range(begin, end):
        b, g = task // groups, task % groups
        dD[b, g * repeat:(g + 1) * repeat] = np.float32(0.0)
        for k in range(chunks - 1, -1, -1):
            start, count = k * CHUNK, min(CHUNK, length - k * CHUNK)
            _gather(B, b * B_b + start * B_t + g * size, B_t, count, size, keys)
            _gather(C, b * C_b + start * C_t + g * size, C_t, count, size, queries)
            put_turned(keys, CHUNK, size, keys_rows)
            put_turned(queries, CHUNK, size, queries_rows)
            transpose(keys, 0, size, CHUNK, size, keys_turned, 0, word * CHUNK)
            multiply(queries, 0, size, word, keys_turned, 0, word * CHUNK, CHUNK, size, CHUNK, scores, 0, CHUNK, 0.0)
            to_keys[:] = np.float32(0.0)
            to_queries[:] = np.float32(0.0)
            meetings[:] = np.float32(0.0)
            for h in range(g * repeat, (g + 1) * repeat):
                at_x, at_y, at_dx = b * x_b + start * x_t + h * width, ((b * length + start) * heads + h) * width, b * dx_b + start * dx_t + h * width
                kept = ((b * heads + h) * (chunks + 1) + k) * whole
                slope = dlast[(b * heads + h) * whole:(b * heads + h + 1) * whole]
                next_h, later = (h + 1, 0) if h + 1 < (g + 1) * repeat else (g * repeat, min(k, 1) * CHUNK)
                _ask(x, at_x + (next_h - h) * width - later * x_t, x_t, CHUNK, width)
                _ask(dy, at_y + (next_h - h - later * heads) * width, heads * width, CHUNK, width)
                _ask(dx, at_dx + (next_h - h) * width - later * dx_t, dx_t, CHUNK, width)
                _ask(between, kept + (next_h - h) * (chunks + 1) * whole - later // CHUNK * whole, 0, 1, whole)
                put_both(slope, 0, size, width, slope_columns, 0, slope_rows)
                _decays(decay, b, h, start, count, reach, from_start)
                past = from_start[CHUNK - 1] * _dot(between, kept, slope, whole)  # from the state that enters to the one that leaves
                for i in range(CHUNK):
                    steps[i] = dt[b, start + i, h] if i < count else np.float32(0.0)
                for t in range(0, CHUNK, 2):
                    for s in range(0, CHUNK, LANES):
                        at = t * CHUNK + s
                        a, c = vmul(vload(scores, at), vload(reach, at)), vmul(vload(scores, at + CHUNK), vload(reach, at + CHUNK))
                        put_rows(weights_rows, t * CHUNK + word * s, CHUNK, a, c)
                _gather(x, at_x, x_t, count, width, inputs)
                transpose(inputs, 0, width, CHUNK, width, inputs_turned, 0, word * CHUNK)
                for i in range(0, CHUNK, 2):
                    add, add_2, keep, keep_2 = splat(steps[i] * to_end[i]), splat(steps[i + 1] * to_end[i + 1]), splat(from_start[i]), splat(from_start[i + 1])
                    for p in range(0, width, LANES):
                        at = i * width + p
                        a = vload(dy, at_y + i * heads * width + p) if i < count else none
                        c = vload(dy, at_y + (i + 1) * heads * width + p) if i + 1 < count else none
                        vstore(above, at, a)
                        vstore(above, at + width, c)
                        put_rows(above_rows, i * width + word * p, width, a, c)
                        a, c = vmul(a, keep), vmul(c, keep_2)
                        vstore(early, at, a)
                        vstore(early, at + width, c)
                        put_rows(early_rows, i * width + word * p, width, a, c)
                        vstore(added, at, vmul(vload(inputs, at), add))
                        vstore(added, at + width, vmul(vload(inputs, at + width), add_2))
                # gradient of the steps: through the state that leaves the chunk, and from its later positions
                multiply(keys, 0, size, word, slope_rows, 0, word * width, CHUNK, size, width, into, 0, width, 0.0)
                for s in range(0, CHUNK, ROWS):
                    multiply(weights_rows, s * CHUNK + word * s, word, word * CHUNK, above_rows, s * width, word * width, ROWS, CHUNK - s, width,
                             into, s * width, width, to_end[s:s + ROWS])
                # gradient of scores, summed over heads, and what passes between positions: to each, and from each
                multiply(above, 0, width, word, inputs_turned, 0, word * CHUNK, CHUNK, width, CHUNK, meets, 0, CHUNK, 0.0)
                columns[:] = np.float32(0.0)
                for t in range(CHUNK):
                    row = none
                    for s in range(0, CHUNK, LANES):
                        at = t * CHUNK + s
                        slope_st = vmul(vmul(vload(meets, at), vload(steps, s)), vload(reach, at))
                        vstore(meetings, at, vadd(vload(meetings, at), slope_st))
                        passing = vmul(slope_st, vload(scores, at))
                        vstore(columns, s, vadd(vload(columns, s), passing))
                        row = vadd(row, passing)
                    rows[t] = vsum(row)
                # gradient of keys and queries through the states, and of the state that enters
                transpose(slope_columns, 0, width, size, width, turned, 0, word * size)
                multiply(added, 0, width, word, turned, 0, word * size, CHUNK, width, size, leaving, 0, size, 0.0)
                _copy(between, kept, whole, slope_columns, 0)
                transpose(slope_columns, 0, width, size, width, turned, 0, word * size)
                multiply(early, 0, width, word, turned, 0, word * size, CHUNK, width, size, entering, 0, size, 0.0)
                multiply(queries_rows, 0, word, word * size, early_rows, 0, word * width, size, CHUNK, width, slope, 0, width, from_start[CHUNK - 1])
                skip = splat(D[h])
                for i in range(0, CHUNK, 2):  # of each position: dstep·x, dy·x, what passes to the state that leaves, and from the one that entered
                    to = at_dx + i * dx_t
                    inner, passed, inner_2, passed_2, step, step_2 = none, none, none, none, splat(steps[i]), splat(steps[i + 1])
                    for p in range(i * width, (i + 1) * width, LANES):
                        q = p + width
                        value, rise, slope_x = vload(inputs, p), vload(above, p), vload(into, p)
                        value_2, rise_2, slope_x2 = vload(inputs, q), vload(above, q), vload(into, q)
                        inner, passed = fma(slope_x, value, inner), fma(rise, value, passed)
                        inner_2, passed_2 = fma(slope_x2, value_2, inner_2), fma(rise_2, value_2, passed_2)
                        if i < count:
                            vstore(dx, to + p - i * width, fma(step, slope_x, vmul(skip, rise)))
                        if i + 1 < count:
                            vstore(dx, to + dx_t + p - i * width, fma(step_2, slope_x2, vmul(skip, rise_2)))
                    left, left_2, read, read_2 = none, none, none, none
                    for n in range(i * size, (i + 1) * size, LANES):
                        m = n + size
                        vstore(to_keys, n, vadd(vload(to_keys, n), vload(leaving, n)))
                        vstore(to_keys, m, vadd(vload(to_keys, m), vload(leaving, m)))
                        vstore(to_queries, n, vadd(vload(to_queries, n), vload(entering, n)))
                        vstore(to_queries, m, vadd(vload(to_queries, m), vload(entering, m)))
                        left, left_2 = fma(vload(leaving, n), vload(keys, n), left), fma(vload(leaving, m), vload(keys, m), left_2)
                        read, read_2 = fma(vload(entering, n), vload(queries, n), read), fma(vload(entering, m), vload(queries, m), read_2)
                    vstore(sums, 4 * i, vsum8(inner, passed, left, read, inner_2, passed_2, left_2, read_2))
                for i in range(count):
                    through[b, start + i, h] = past
                    past += sums[4 * i + 2]
                came, inside = np.float32(0.0), np.float32(0.0)
                for i in range(count - 1, -1, -1):
                    t = start + i
                    came += sums[4 * i + 3]
                    inside = inside + rows[i] - columns[i] if decay[b, t, h] > np.float32(0.0) else np.float32(0.0)  # nothing came before
                    direct[b, t, h], through[b, t, h] = sums[4 * i], through[b, t, h] + came + inside
                    dD[b, h] += sums[4 * i + 1]
            put_both(meetings, 0, CHUNK, CHUNK, meetings_columns, 0, meetings_rows)
            for s in range(0, CHUNK, ROWS):
                multiply(meetings_rows, s * CHUNK + word * s, word, word * CHUNK, queries_rows, s * size, word * size, ROWS, CHUNK - s, size,
                         to_keys, s * size, size, 1.0)
                multiply(meetings_columns, s * CHUNK, CHUNK, word, keys_rows, 0, word * size, ROWS, s + ROWS, size, to_queries, s * size, size, 1.0)
            for i in range(count):
                _copy(to_keys, i * size, size, dB, b * dB_b + (start + i) * dB_t + g * size)
                _copy(to_queries, i * size, size, dC, b * dC_b + (start + i) * dC_t + g * size)
