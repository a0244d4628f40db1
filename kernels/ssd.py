"""The Mamba-2 state-space scan (SSD; Dao & Gu 2024), per head:  h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ ;  y_t = h_t C_t + D x_t.

`ssd_reference` is that line. `ssd` is the chunked form, in which positions of a chunk meet in a masked product and chunks in their states: compiled on a
CPU (`kernels.ssd_scan`), Triton on a GPU. `ssd_step` is one position of many sequences, for decoding.

Shapes: B batch, L length, H heads, P head_dim, G groups (of R = H/G heads), N state size.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from kernels import ssd_scan
from kernels.bits import in_spans
from kernels.lanes import JIT, flat, runs_here
from kernels.products import words_for
from kernels.simd import WIDTH as LANES
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
    fastest = _chunked if runs_here(x_BLHP, B_BLGN, C_BLGN) else ssd_reference
    return fastest(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, seq_idx_BL=seq_idx_BL, initial_state_BHPN=initial_state_BHPN)


def _chunked(x_BLHP: Tensor, dt_BLH: Tensor, A_H: Tensor, B_BLGN: Tensor, C_BLGN: Tensor, D_H: Tensor, *, seq_idx_BL: Tensor | None = None,
             initial_state_BHPN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The compiled scan; sizes that are no whole vectors are padded by zeros."""
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
        dt32 = dt.detach().float().contiguous()
        decay = decays(dt32, A, seq_idx)
        last = torch.zeros(x.shape[0], x.shape[2], B.shape[3], x.shape[3])
        if initial is not None:
            last.copy_(initial.detach().transpose(2, 3))
        y, between = scan(x, dt32, decay, B, C, D, last, any(ctx.needs_input_grad))
        ctx.save_for_backward(x, dt, A, B, C, D, dt32, decay, between)
        ctx.has_initial = initial is not None
        ctx.set_materialize_grads(False)
        return y, last.transpose(2, 3).contiguous()

    @staticmethod
    def backward(ctx, dy, dlast):
        x, dt, A, B, C, D, dt32, decay, between = ctx.saved_tensors
        dy = torch.zeros(x.shape) if dy is None else dy.float().contiguous()
        slope = torch.zeros(between[:, :, 0].shape)
        if dlast is not None:
            slope.copy_(dlast.transpose(2, 3))
        dx, dB, dC = (torch.empty(t.shape, dtype=t.dtype) for t in (x, B, C))
        ddt, through, dD = scan_backward(dy, x, dt32, decay, A, B, C, D, between, slope, dx, dB, dC)
        dA = (through * dt32).sum((0, 1))
        return dx, ddt.to(dt.dtype), dA.to(A.dtype), dB, dC, dD.to(D.dtype), slope.transpose(2, 3) if ctx.has_initial else None, None


def decays(dt32_BLH: Tensor, A_H: Tensor, seq_idx_BL: Tensor | None) -> Tensor:
    """exp(dt A) in float32; 0 where a document starts."""
    decay_BLH = torch.exp(dt32_BLH * A_H.detach().float())
    if seq_idx_BL is not None:
        decay_BLH[:, 1:] *= (seq_idx_BL[:, 1:] == seq_idx_BL[:, :-1])[..., None]
    return decay_BLH


def scan(x: Tensor, dt32: Tensor, decay: Tensor, B: Tensor, C: Tensor, D: Tensor, last_BHNP: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """y float32, and what `scan_backward` needs if `keep` is set; the state `last` moves on in place.

    x, B and C are of whole vectors, heads and groups side by side, and may be slices of wider positions.
    """
    batch, length, heads, width = x.shape
    groups, size = B.shape[2:]
    words = words_for(x.dtype, width, size)
    states = -(-length // ssd_scan.CHUNK) + 1 if keep else 0
    between = torch.empty(batch, heads, states, size, width, dtype=torch.bfloat16 if words.dtype == np.uint16 else torch.float32)
    y = torch.empty(batch, length, heads, width)
    arrays = dt32.numpy(), decay.numpy(), D.detach().float().numpy(), flat(between), flat(y), flat(last_BHNP)
    args = *_where(x, B, C), *arrays, (groups, size, width), words
    in_spans(lambda a, b: ssd_scan.forward(a, b, *args), batch * groups, x.numel() * size)
    return y, between


def scan_backward(dy: Tensor, x: Tensor, dt32: Tensor, decay: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, between: Tensor, slope_BHNP: Tensor,
                  dx: Tensor, dB: Tensor, dC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fills dx, dB and dC, which may be slices too, walks `slope`, the gradient of the last state, back to the first position; the gradients of dt [B,L,H],
    of dt A [B,L,H] and of D [H], float32."""
    batch, length, heads, width = x.shape
    groups, size = B.shape[2:]
    direct, through, dD = torch.empty(batch, length, heads), torch.empty(batch, length, heads), torch.empty(batch, heads)
    arrays = dt32.numpy(), decay.numpy(), D.detach().float().numpy(), flat(between), flat(dy), flat(slope_BHNP)
    gradients = *(t.numpy() for t in (direct, through, dD)), *_where(dx, dB, dC)
    args = *_where(x, B, C), *arrays, *gradients, (groups, size, width), words_for(x.dtype, width, size)
    in_spans(lambda a, b: ssd_scan.backward(a, b, *args), batch * groups, x.numel() * size)
    return direct.addcmul_(through, A.detach().float()), through, dD.sum(0)


def _where(*tensors: Tensor) -> tuple:
    """Each one's memory, and the distances between its rows and its positions."""
    return tuple(part for t in tensors for part in (flat(t), t.stride(0), t.stride(1)))


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
