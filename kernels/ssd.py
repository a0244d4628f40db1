"""The Mamba-2 state-space scan (SSD; Dao & Gu 2024), per head:  h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ ;  y_t = h_t C_t + D x_t.

`ssd_reference` is that line. `ssd` is the chunked form, in which positions of a chunk meet in a masked product and chunks in their states: compiled on a
CPU (`kernels.ssd_scan`), Triton on a GPU. `ssd_step` is one position of many sequences, for decoding.

Shapes: B batch, L length, H heads, P head_dim, G groups (of R = H/G heads), N state size.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.bits import in_spans
from kernels.lanes import JIT, runs_here
from kernels.ssd_scan import scan
from kernels.triton.dispatch import twin


def ssd_reference(x_BLHP: Tensor, dt_BLH: Tensor, A_H: Tensor, B_BLGN: Tensor, C_BLGN: Tensor, D_H: Tensor, *, seq_idx_BL: Tensor | None = None,
                  initial_state_BHPN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The recurrence, position by position, in the dtype of `dt`. Returns y [B,L,H,P] and the last state [B,H,P,N]."""
    batch, length, heads, width = x_BLHP.shape
    x_BLHP = x_BLHP.to(dt_BLH.dtype)
    repeat = heads // B_BLGN.shape[2]
    B_BLHN, C_BLHN = (t.to(dt_BLH.dtype).repeat_interleave(repeat, 2) for t in (B_BLGN, C_BLGN))
    state = x_BLHP.new_zeros(batch, heads, width, B_BLGN.shape[3]) if initial_state_BHPN is None else initial_state_BHPN.to(dt_BLH.dtype)
    outputs = []
    for t in range(length):
        decay_BH = torch.exp(dt_BLH[:, t] * A_H)
        if seq_idx_BL is not None and t > 0:
            decay_BH = decay_BH * (seq_idx_BL[:, t] == seq_idx_BL[:, t - 1])[:, None]
        state = decay_BH[..., None, None] * state + torch.einsum("bh,bhp,bhn->bhpn", dt_BLH[:, t], x_BLHP[:, t], B_BLHN[:, t])
        outputs.append(torch.einsum("bhpn,bhn->bhp", state, C_BLHN[:, t]) + D_H[:, None] * x_BLHP[:, t])
    return torch.stack(outputs, 1), state


def ssd(x_BLHP: Tensor, dt_BLH: Tensor, A_H: Tensor, B_BLGN: Tensor, C_BLGN: Tensor, D_H: Tensor, *, seq_idx_BL: Tensor | None = None,
        initial_state_BHPN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Chunked scan, float32 inside. Returns y [B,L,H,P] float32 and the last state [B,H,P,N] float32.

    `dt` is after softplus, `A` negative. dt = 0 leaves the state as it was (padding). `seq_idx` numbers the documents packed in a row:
    the state restarts where it changes, and `initial_state` belongs to the first document of a row.
    """
    if gpu := twin("ssd", x_BLHP, B_BLGN, C_BLGN):
        return gpu.ssd(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, seq_idx_BL, initial_state_BHPN)
    fastest = scan if runs_here(x_BLHP, B_BLGN, C_BLGN) else ssd_reference
    return fastest(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, seq_idx_BL=seq_idx_BL, initial_state_BHPN=initial_state_BHPN)


def ssd_step(x_BHP: Tensor, dt_BH: Tensor, A_H: Tensor, B_BGN: Tensor, C_BGN: Tensor, D_H: Tensor, state_SHPN: Tensor, rows_B: Tensor) -> Tensor:
    """One position for each of B sequences, whose states are rows `rows` of `state` (float32, contiguous) and change in place.

    Returns y [B,H,P] float32. dt = 0 leaves a state as it was. No gradient. Decoding is bound by reading states: one compiled pass
    reads, updates and projects each once.
    """
    assert state_SHPN.is_contiguous() and state_SHPN.dtype == torch.float32
    if gpu := twin("ssd", x_BHP, B_BGN, C_BGN, state_SHPN):
        return gpu.ssd_step(x_BHP, dt_BH, A_H, B_BGN, C_BGN, D_H, state_SHPN, rows_B)
    x_BHP, B_BGN, C_BGN = x_BHP.float().contiguous(), B_BGN.float().contiguous(), C_BGN.float().contiguous()
    decay_BH = torch.exp(dt_BH * A_H)
    if state_SHPN.device.type == "cpu":
        y_BHP = torch.empty_like(x_BHP)
        args = tuple(t.detach().numpy() for t in (x_BHP, dt_BH.contiguous(), decay_BH, B_BGN, C_BGN, D_H.float(), state_SHPN, rows_B, y_BHP))
        in_spans(lambda a, b: _step(a, b, *args), x_BHP.shape[0], 2 * x_BHP.numel() * state_SHPN.shape[3])
        return y_BHP
    repeat = x_BHP.shape[1] // B_BGN.shape[1]
    B_BHN, C_BHN = (t.repeat_interleave(repeat, 1) for t in (B_BGN, C_BGN))
    state_BHPN = state_SHPN[rows_B] * decay_BH[..., None, None] + (x_BHP * dt_BH[..., None])[..., None] * B_BHN[:, :, None]
    state_SHPN[rows_B] = state_BHPN
    return (state_BHPN @ C_BHN[..., None])[..., 0] + D_H[:, None] * x_BHP


@njit(**JIT)
def _step(first, last, x, dt, decay, B, C, D, state, rows, y):
    heads, width, size = state.shape[1:]
    repeat = heads // B.shape[1]
    for b in range(first, last):
        for h in range(heads):
            keys, queries, keep = B[b, h // repeat], C[b, h // repeat], decay[b, h]
            for p in range(width):
                row, value = state[rows[b], h, p], x[b, h, p]
                add, total = value * dt[b, h], np.float32(0.0)
                for n in range(size):
                    new = row[n] * keep + add * keys[n]
                    row[n] = new
                    total += new * queries[n]
                y[b, h, p] = total + D[h] * value
