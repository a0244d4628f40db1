"""All of a Mamba-2 layer between its two projections, for a few positions, in one compiled pass: convolution, dt, state update, gated norm.

Decoding one token does so little arithmetic that starting a dozen library calls takes longer than running them. Positions follow one another, so
the same pass serves a decoding step (one position, states move on in place) and the check of guesses (a few, states kept after each, see
`ssd_draft`); bfloat16 rounds where the chunked form rounds only at the end, in the gated norm.

Shapes: B sequences, T positions, C conv channels [x | B | C], H heads, P head_dim, G groups, N state size, S slots.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.bits import in_spans
from kernels.lanes import JIT, flat, load, runs_here, sigmoid, store

TAPS = 4


def fits(projected_BTX: Tensor, conv_SWC: Tensor) -> bool:
    return (runs_here(projected_BTX, conv_SWC) and projected_BTX.dtype == conv_SWC.dtype and projected_BTX.is_contiguous()
            and conv_SWC.shape[1] == TAPS - 1 and not torch.is_grad_enabled())


def constants(weight_C1W: Tensor, bias_C: Tensor, dt_bias_H: Tensor, A_log_H: Tensor, D_H: Tensor, norm_weight: Tensor) -> tuple[np.ndarray, ...]:
    """A layer's small parameters as `mamba_step` wants them, float32: taps [W,C], bias, dt_bias, A, D, norm weight."""
    with torch.no_grad():
        A_H = -torch.exp(A_log_H.float())
        tensors = weight_C1W.float().squeeze(1).t().contiguous(), bias_C.float(), dt_bias_H.float(), A_H, D_H.float(), norm_weight.float()
    return tuple(t.detach().clone().numpy() for t in tensors)


def mamba_step(projected_BTX: Tensor, consts: tuple[np.ndarray, ...], conv_SWC: Tensor, ssm_SHPN: Tensor, rows_B: Tensor, *, groups: int, eps: float,
               keep: bool) -> tuple[Tensor, Tensor | None]:
    """in_proj's output [z | x | B | C | dt] -> what out_proj reads, [B,T,H*P] in the same dtype.

    keep=False: T is 1, and rows of conv and ssm move on in place. keep=True: they are only read; the second result is the states [B,T,H,P,N]."""
    batch, length, _ = projected_BTX.shape
    heads, width, size = ssm_SHPN.shape[1:]
    assert keep or length == 1
    out = projected_BTX.new_empty(batch, length, heads * width)
    states = ssm_SHPN.new_empty(batch, length, heads, width, size) if keep else ssm_SHPN.new_empty(1, 1, 1, 1, 1)
    args = (flat(projected_BTX), *consts, flat(conv_SWC), ssm_SHPN.numpy(), rows_B.numpy(), states.numpy(), flat(out), length, groups, np.float32(eps), keep)
    in_spans(lambda a, b: _steps(a, b, *args), batch, 2 * batch * length * heads * width * size)
    return out, states if keep else None


@njit(**JIT)
def _steps(first, last, projected, taps, bias, dt_bias, A, D, weight, conv, ssm, rows, states, out, length, groups, eps, keep):
    heads, width, size = ssm.shape[1:]
    channels, inner = bias.shape[0], heads * width
    whole = inner + channels + heads
    mixed, y = np.empty(channels, np.float32), np.empty(inner, np.float32)
    repeat, part = heads // groups, inner // groups
    for b in range(first, last):
        memory = rows[b] * (TAPS - 1) * channels
        for t in range(length):
            at = (b * length + t) * whole
            mixed[:] = bias
            for k in range(TAPS):
                before = t - (TAPS - 1) + k  # where this tap looks: in this call, or in what was kept
                start = (b * length + before) * whole + inner
                if before >= 0:
                    source = projected[start:start + channels]
                else:
                    source = conv[memory + (before + TAPS - 1) * channels:memory + (before + TAPS) * channels]
                tap = taps[k]
                for c in range(channels):
                    mixed[c] += tap[c] * load(source, c)
            for c in range(channels):
                mixed[c] *= sigmoid(mixed[c])
            for h in range(heads):
                raw = load(projected, at + inner + channels + h) + dt_bias[h]
                dt = raw if raw > np.float32(20.0) else np.float32(np.log1p(np.exp(raw)))
                decay = np.float32(np.exp(dt * A[h]))
                keys = mixed[inner + h // repeat * size:inner + (h // repeat + 1) * size]
                queries = mixed[inner + (groups + h // repeat) * size:inner + (groups + h // repeat + 1) * size]
                state = states[b, t, h] if keep else ssm[rows[b], h]
                if keep:  # then always in place: two arrays that may overlap would keep the loop below from vector code
                    state[:] = states[b, t - 1, h] if t > 0 else ssm[rows[b], h]
                for p in range(width):
                    row, value = state[p], mixed[h * width + p]
                    add, total = value * dt, np.float32(0.0)
                    for n in range(size):
                        new = row[n] * decay + add * keys[n]
                        row[n] = new
                        total += new * queries[n]
                    y[h * width + p] = total + D[h] * value
            for group in range(groups):
                gates, parts = projected[at + group * part:at + (group + 1) * part], y[group * part:(group + 1) * part]
                outs = out[(b * length + t) * inner + group * part:(b * length + t) * inner + (group + 1) * part]
                squares = np.float32(0.0)
                for i in range(part):
                    gate = load(gates, i)
                    value = parts[i] * (gate * sigmoid(gate))
                    parts[i] = value
                    squares += value * value
                scale = np.float32(1.0) / np.sqrt(squares / np.float32(part) + eps)
                for i in range(part):
                    store(outs, i, parts[i] * scale)
                for i in range(part):
                    store(outs, i, load(outs, i) * weight[group * part + i])
        if not keep:
            for k in range(TAPS - 2):
                conv[memory + k * channels:memory + (k + 1) * channels] = conv[memory + (k + 1) * channels:memory + (k + 2) * channels]
            latest = b * whole + inner
            conv[memory + (TAPS - 2) * channels:memory + (TAPS - 1) * channels] = projected[latest:latest + channels]
