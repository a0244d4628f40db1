"""The SSD scan over a few positions that may be taken back: the state after every one of them is kept beside the cache, which stays as it was.

Speculative decoding reads K + 1 tokens at once and keeps the first few; `states[b, n - 1]` is then the state of a row that kept n.

Shapes: B sequences, T positions, H heads, P head_dim, G groups, N state size, S slots.
"""

from __future__ import annotations

import torch
from numba import njit
from torch import Tensor

from kernels import ssd
from kernels.bits import in_spans
from kernels.lanes import JIT


def ssd_draft(x_BTHP: Tensor, dt_BTH: Tensor, A_H: Tensor, B_BTGN: Tensor, C_BTGN: Tensor, D_H: Tensor, state_SHPN: Tensor,
              rows_B: Tensor) -> tuple[Tensor, Tensor]:
    """y [B,T,H,P] and the states after each position [B,T,H,P,N], float32, from rows `rows` of `state`, which is only read. No gradient."""
    batch, length = dt_BTH.shape[:2]
    x, B, C = (t.detach().float().contiguous() for t in (x_BTHP, B_BTGN, C_BTGN))
    states = state_SHPN.new_empty(batch, length, *state_SHPN.shape[1:])
    if state_SHPN.device.type != "cpu":
        now, out = state_SHPN[rows_B], []
        for t in range(length):
            out.append(ssd.ssd_step(x[:, t], dt_BTH[:, t], A_H, B[:, t], C[:, t], D_H, now, torch.arange(batch, device=now.device)))
            states[:, t] = now
        return torch.stack(out, 1), states
    y = torch.empty_like(x)
    args = tuple(t.detach().numpy() for t in (x, dt_BTH.contiguous(), torch.exp(dt_BTH * A_H), B, C, D_H.float(), state_SHPN, rows_B, y, states))
    in_spans(lambda a, b: _positions(a, b, *args), batch, 2 * states.numel())
    return y, states


@njit(**JIT)
def _positions(first, last, x, dt, decay, B, C, D, state, rows, y, states):
    length, heads, width, size = states.shape[1:]
    repeat = heads // B.shape[2]
    for b in range(first, last):
        for h in range(heads):
            for t in range(length):
                keys, queries, keep = B[b, t, h // repeat], C[b, t, h // repeat], decay[b, t, h]
                for p in range(width):
                    before = state[rows[b], h, p] if t == 0 else states[b, t - 1, h, p]
                    after, value = states[b, t, h, p], x[b, t, h, p]
                    add, total = value * dt[b, t, h], 0 * value
                    for n in range(size):
                        new = before[n] * keep + add * keys[n]
                        after[n] = new
                        total += new * queries[n]
                    y[b, t, h, p] = total + D[h] * value
