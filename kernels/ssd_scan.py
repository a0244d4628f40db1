"""The SSD recurrence itself, compiled: for the small states of small models it beats the chunked matmul form on a CPU.

A state of N x P float32 fits the first-level cache, so one position costs two fused multiply-adds an element and no memory traffic, where the chunked
form spends its time on masks, transposes and matrices too small to be fast. The backward keeps the state entering every CHUNK positions, runs each
chunk forward again, and then walks it in reverse. `kernels.ssd.ssd` chooses between the two; same arguments, same results.

Inside, states are stored [N, P]: the long loop then has no horizontal sums in the forward.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.bits import in_spans
from kernels.lanes import JIT, flat, load, runs_here

CHUNK = 16  # positions whose states are held at once in the backward: CHUNK x N x P float32 should stay in the second-level cache
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
        entering = torch.empty(batch, heads, chunks if needed else 1, size, width)
        y, last = torch.empty(batch, length, heads, width), torch.empty(batch, heads, size, width)
        D32 = D.detach().float()
        arrays = (t.numpy() for t in (dt32, decay, D32, first, entering, y, last))
        args = (*_where(x, B, C), *arrays, B.shape[2], needed)
        in_spans(lambda a, b: _forward(a, b, *args), batch * heads, x.numel() * size)
        ctx.has_initial = initial is not None
        if needed:
            ctx.save_for_backward(x, dt, A, B, C, D, dt32, decay, entering)
        return y, last.transpose(2, 3).contiguous()

    @staticmethod
    def backward(ctx, dy, dlast):
        x, dt, A, B, C, D, dt32, decay, entering = ctx.saved_tensors
        batch, length, heads, width = x.shape
        groups, size = B.shape[2:]
        dy, dlast = dy.float().contiguous(), dlast.float().transpose(2, 3).clone(memory_format=torch.contiguous_format)
        dx = torch.empty(batch, length, heads, width)
        dB, dC = torch.zeros(batch, length, groups, size), torch.zeros(batch, length, groups, size)
        direct, through, dD = torch.empty(batch, length, heads), torch.empty(batch, length, heads), torch.empty(batch, heads)
        arrays = (t.numpy() for t in (dt32, decay, D.detach().float(), entering, dy, dlast, dx, dB, dC, direct, through, dD))
        args = (*_where(x, B, C), *arrays, heads // groups)
        in_spans(lambda a, b: _backward(a, b, *args), batch * groups, x.numel() * size)
        A32 = A.detach().float()
        dinitial = dlast.transpose(2, 3) if ctx.has_initial else None  # walked back in place to the first position
        ddt, dA = torch.addcmul(direct, through, A32), (through * dt32).sum((0, 1))
        return (dx.to(x.dtype), ddt.to(dt.dtype), dA.to(A.dtype), dB.to(B.dtype), dC.to(C.dtype), dD.sum(0).to(D.dtype), dinitial, None)


def _steps(dt: Tensor, A: Tensor, seq_idx: Tensor | None) -> tuple[Tensor, Tensor]:
    """dt and exp(dt A) in float32 [B,L,H]; the decay is 0 where a document starts."""
    dt32 = dt.detach().float().contiguous()
    decay = torch.exp(dt32 * A.detach().float())
    if seq_idx is not None:
        decay[:, 1:] *= (seq_idx[:, 1:] == seq_idx[:, :-1])[..., None]
    return dt32, decay


def _where(x: Tensor, B: Tensor, C: Tensor) -> tuple:
    return flat(x), x.stride(0), x.stride(1), flat(B), B.stride(0), B.stride(1), flat(C), C.stride(0), C.stride(1)


@njit(**JIT)
def _forward(begin, end, x, x_b, x_t, B, B_b, B_t, C, C_b, C_t, dt, decay, D, first, entering, y, last, groups, keep_states):
    heads, size, width = first.shape[1:]
    length = dt.shape[1]
    added = np.empty(width, np.float32)
    for task in range(begin, end):
        b, h = task // heads, task % heads
        g = h // (heads // groups)
        state = last[b, h]
        state[:] = first[b, h]
        for t in range(length):
            if keep_states and t % CHUNK == 0:
                entering[b, h, t // CHUNK] = state
            at, at_B, at_C = b * x_b + t * x_t + h * width, b * B_b + t * B_t + g * size, b * C_b + t * C_t + g * size
            xs, keys, queries, out = x[at:at + width], B[at_B:at_B + size], C[at_C:at_C + size], y[b, t, h]
            step, keep = dt[b, t, h], decay[b, t, h]
            for p in range(width):
                out[p] = D[h] * load(xs, p)
            for p in range(width):
                added[p] = step * load(xs, p)
            for n in range(size):
                row, key, query = state[n], load(keys, n), load(queries, n)
                for p in range(width):
                    value = row[p] * keep + key * added[p]
                    row[p] = value
                    out[p] += query * value


@njit(**JIT)
def _backward(begin, end, x, x_b, x_t, B, B_b, B_t, C, C_b, C_t, dt, decay, D, entering, dy, dlast, dx, dB, dC, direct, through, dD, repeat):
    heads, size, width = dlast.shape[1:]
    groups, length = heads // repeat, dt.shape[1]
    states = np.empty((CHUNK + 1, size, width), np.float32)
    xs, added = np.empty((CHUNK, width), np.float32), np.empty((CHUNK, width), np.float32)
    for task in range(begin, end):
        b, g = task // groups, task % groups
        for h in range(g * repeat, (g + 1) * repeat):
            slope = dlast[b, h]         # gradient of the state after position t, without what position t's own output adds
            after = np.float32(1.0)     # the decay it still has to pass
            skip = np.float32(0.0)
            for k in range((length + CHUNK - 1) // CHUNK - 1, -1, -1):
                start, stop = k * CHUNK, min((k + 1) * CHUNK, length)
                states[0] = entering[b, h, k]
                for i in range(stop - start):
                    t = start + i
                    at, at_B = b * x_b + t * x_t + h * width, b * B_b + t * B_t + g * size
                    source, keys, x_row, add_row = x[at:at + width], B[at_B:at_B + size], xs[i], added[i]
                    step, keep = dt[b, t, h], decay[b, t, h]
                    for p in range(width):
                        x_row[p] = load(source, p)
                    for p in range(width):
                        add_row[p] = step * x_row[p]
                    for n in range(size):
                        old, new, key = states[i, n], states[i + 1, n], load(keys, n)
                        for p in range(width):
                            new[p] = old[p] * keep + key * add_row[p]
                for i in range(stop - start - 1, -1, -1):
                    t = start + i
                    at_B, at_C = b * B_b + t * B_t + g * size, b * C_b + t * C_t + g * size
                    keys, queries = B[at_B:at_B + size], C[at_C:at_C + size]
                    x_row, add_row, dy_row, dx_row, dB_row, dC_row = xs[i], added[i], dy[b, t, h], dx[b, t, h], dB[b, t, g], dC[b, t, g]
                    dx_row[:] = np.float32(0.0)
                    fade = np.float32(0.0)
                    for n in range(size):
                        row, new, old = slope[n], states[i + 1, n], states[i, n]
                        key, query = load(keys, n), load(queries, n)
                        for p in range(width):
                            value = row[p] * after + query * dy_row[p]
                            row[p] = value
                            dx_row[p] += key * value
                        to_key, to_query = np.float32(0.0), np.float32(0.0)
                        for p in range(width):
                            to_key += row[p] * add_row[p]
                            to_query += new[p] * dy_row[p]
                            fade += row[p] * old[p]
                        dB_row[n] += to_key
                        dC_row[n] += to_query
                    after = decay[b, t, h]
                    inner = np.float32(0.0)
                    for p in range(width):
                        inner += dx_row[p] * x_row[p]
                        skip += dy_row[p] * x_row[p]
                    direct[b, t, h] = inner
                    through[b, t, h] = after * fade
                    for p in range(width):
                        dx_row[p] = dt[b, t, h] * dx_row[p] + D[h] * dy_row[p]
            dD[b, h] = skip
            for n in range(size):
                for p in range(width):
                    slope[n, p] *= after
