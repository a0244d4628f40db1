"""The Mamba-2 state-space scan (SSD; Dao & Gu 2024), per head:  h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ ;  y_t = h_t C_t + D x_t.

`ssd_reference` is that line. `ssd` is the chunked matmul form: inside a chunk of Q positions the scan is a masked Q x Q product, between
chunks only the state travels. What the fast version does differently: C Bᵀ once per group, states and off-chunk terms as one product per
group, all chunks of a span in one batch, and a hand-written backward which keeps inputs, outputs and chunk states only: decay masks are
recomputed span by span, so that memory does not grow with length x Q. Q = 32-64 is best on CPU, where the Q² mask costs most.

Shapes: B batch, L length, H heads, P head_dim, G groups (of R = H/G heads), N state size, K chunks of Q positions.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels import ssd_scan
from kernels.bits import in_spans
from kernels.lanes import JIT
from kernels.triton.dispatch import twin

SPAN_ELEMENTS = 1 << 22  # largest decay mask held at once, in elements (16 MB of float32)


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


def ssd(x_BLHP: Tensor, dt_BLH: Tensor, A_H: Tensor, B_BLGN: Tensor, C_BLGN: Tensor, D_H: Tensor, *, chunk_size: int = 32,
        seq_idx_BL: Tensor | None = None, initial_state_BHPN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Chunked scan, float32 inside. Returns y [B,L,H,P] float32 and the last state [B,H,P,N] float32.

    `dt` is after softplus, `A` negative. dt = 0 leaves the state as it was (padding). `seq_idx` numbers the documents packed in a row:
    the state restarts where it changes, and `initial_state` belongs to the first document of a row.
    On a CPU, states small enough for its caches take the compiled recurrence instead (`kernels.ssd_scan`); `chunk_size` then has no effect.
    """
    if gpu := twin("ssd", x_BLHP, B_BLGN, C_BLGN):
        return gpu.ssd(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, seq_idx_BL, initial_state_BHPN)
    if ssd_scan.fits(x_BLHP, B_BLGN, C_BLGN):
        return ssd_scan.Scan.apply(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, initial_state_BHPN, seq_idx_BL)
    return _SSD.apply(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, initial_state_BHPN, seq_idx_BL, chunk_size)


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


class _Chunks:
    """One span of K chunks, cut and masked: everything forward and backward both need, in float32.

    Tensors with a Q axis are [B,K,Q,...]; `decay` and `reach` below are masked before exp, for exp of a masked positive is inf and inf * 0 is NaN.
    """

    def __init__(self, x, dt, A, B, C, ids, previous_ids):
        batch, chunks, size, groups, repeat, width = x.shape
        self.x, self.dt, self.B, self.C = x, dt, B, C                       # x [B,K,Q,G,R,P], dt [B,K,Q,H], B and C [B,K,G,Q,N]
        cs = torch.cumsum(dt * A, 2)                                         # [B,K,Q,H]
        causal = torch.ones(size, size, dtype=torch.bool, device=x.device).tril_()
        cs_h = cs.permute(0, 1, 3, 2)                                        # [B,K,H,Q]
        gaps = cs_h[..., :, None] - cs_h[..., None, :]
        if ids is None:
            gaps.masked_fill_(~causal, float("-inf"))
            self.from_start, self.to_end, self.keep = torch.exp(cs), torch.exp(cs[:, :, -1:] - cs), torch.exp(cs[:, :, -1])
        else:
            last = ids[:, :, -1]
            before = torch.cat([previous_ids[:, None], last[:, :-1]], 1)     # the document the incoming state belongs to
            same = (ids[..., :, None] == ids[..., None, :]) & causal
            gaps.masked_fill_(~same[:, :, None], float("-inf"))
            self.from_start = torch.exp(cs) * (ids == before[..., None])[..., None]
            self.to_end = torch.exp(cs[:, :, -1:] - cs) * (ids == last[..., None])[..., None]
            self.keep = torch.exp(cs[:, :, -1]) * (last == before)[..., None]
        self.decay = gaps.exp_().view(batch, chunks, groups, repeat, size, size)
        self.xdt = (x * dt.view(batch, chunks, size, groups, repeat, 1)).permute(0, 1, 3, 4, 2, 5).contiguous()  # [B,K,G,R,Q,P]
        self.CB = C @ B.transpose(-1, -2)                                    # [B,K,G,Q,Q]
        self.M = self.CB[:, :, :, None] * self.decay
        self.shape = batch, chunks, size, groups, repeat, width

    def rows(self, factor_BKQH: Tensor) -> Tensor:
        """[B,K,Q,H] -> [B,K,G,R,Q,1], to scale rows of per-head tensors."""
        batch, chunks, size, groups, repeat, _ = self.shape
        return factor_BKQH.view(batch, chunks, size, groups, repeat, 1).permute(0, 1, 3, 4, 2, 5)


def _span_chunks(batch: int, heads: int, size: int) -> int:
    return max(1, SPAN_ELEMENTS // (batch * heads * size * size))


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, initial, seq_idx, size):
        batch, length, heads, width = x.shape
        size = min(size, length)
        spans = _Spans(x, dt, B, C, seq_idx, size)
        groups, n = B.shape[2:]
        state = x.new_zeros(batch, groups, heads // groups, width, n, dtype=torch.float32)
        if initial is not None:
            state.copy_(initial.reshape(state.shape))
        y = torch.empty(batch, spans.padded, heads, width, dtype=torch.float32, device=x.device)
        states = []                                                          # the state entering each chunk, and the last one
        for start, stop in spans.ranges():
            c = spans.cut(start, stop, A)
            entering = torch.empty(batch, stop - start, *state.shape[1:], device=x.device)
            weighted = c.xdt * c.rows(c.to_end)
            added = weighted.transpose(-1, -2) @ c.B[:, :, :, None]          # [B,K,G,R,P,N]
            keep = c.keep.view(batch, stop - start, groups, -1, 1, 1)
            for k in range(stop - start):
                entering[:, k] = state
                state = torch.addcmul(added[:, k], keep[:, k], state)
            out = c.M @ c.xdt                                                # [B,K,G,R,Q,P]
            out += (c.C[:, :, :, None] @ entering.transpose(-1, -2)) * c.rows(c.from_start)
            view = y[:, start * size:stop * size].view(batch, stop - start, size, groups, -1, width)
            torch.add(out.permute(0, 1, 4, 2, 3, 5), c.x * D.float().view(groups, -1, 1), out=view)
            states.append(entering)
        final = state.view(batch, heads, width, n)
        y = y[:, :length]
        ctx.size, ctx.has_initial = size, initial is not None
        ctx.save_for_backward(x, dt, A, B, C, D, seq_idx, y, final, *states)
        return y, final

    @staticmethod
    def backward(ctx, dy, dfinal):
        x, dt, A, B, C, D, seq_idx, y, final, *states = ctx.saved_tensors
        batch, length, heads, width = x.shape
        groups, n = B.shape[2:]
        size = ctx.size
        spans = _Spans(x, dt, B, C, seq_idx, size)
        dy_all = _pad(dy, spans.padded)
        dx = torch.empty(batch, spans.padded, heads, width, dtype=torch.float32, device=x.device)
        dB = torch.empty(batch, spans.padded, groups, n, dtype=torch.float32, device=x.device)
        dC = torch.empty_like(dB)
        ddt = torch.empty(batch, spans.padded, heads, dtype=torch.float32, device=x.device)
        dA, dD = torch.zeros(heads, device=x.device), torch.zeros(heads, device=x.device)
        y_all = _pad(y, spans.padded)
        dstate = dfinal.reshape(batch, groups, -1, width, n).float()
        after = final.view(dstate.shape)
        Df = D.float()
        for (start, stop), entering in reversed(list(zip(spans.ranges(), states))):
            c, count = spans.cut(start, stop, A), stop - start
            rows = slice(start * size, stop * size)
            dy_q = dy_all[:, rows].view(batch, count, size, groups, -1, width)
            dout = dy_q.permute(0, 1, 3, 4, 2, 5).contiguous()               # [B,K,G,R,Q,P]
            dreach = dout * c.rows(c.from_start)                             # gradient of C @ state, before its decay
            through = dreach.transpose(-1, -2) @ c.C[:, :, :, None]          # into the entering state, [B,K,G,R,P,N]
            keep = c.keep.view(batch, count, groups, -1, 1, 1)
            dleaving = torch.empty_like(entering)                            # gradient of the state leaving each chunk
            end = torch.empty(batch, count, heads, device=x.device)          # d / d cs_last = <leaving state, its gradient>
            for k in reversed(range(count)):
                dleaving[:, k] = dstate
                end[:, k] = (after * dstate).sum((-1, -2)).view(batch, heads)
                after = entering[:, k]
                dstate = torch.addcmul(through[:, k], keep[:, k], dstate)
            weight = c.rows(c.to_end)
            dxdt = c.M.transpose(-1, -2) @ dout
            dxdt += (c.B[:, :, :, None] @ dleaving.transpose(-1, -2)) * weight
            dCB = ((dout @ c.xdt.transpose(-1, -2)).mul_(c.decay)).sum(3)    # [B,K,G,Q,Q]
            dC_k = dCB @ c.B + (dreach @ entering).sum(3)
            dB_k = dCB.transpose(-1, -2) @ c.C + ((c.xdt * weight) @ dleaving).sum(3)
            dC[:, rows] = dC_k.transpose(2, 3).reshape(batch, -1, groups, n)
            dB[:, rows] = dB_k.transpose(2, 3).reshape(batch, -1, groups, n)
            # Every decay of row i multiplies y_i - D x_i and every decay from column j multiplies xdt_j: their gradients are two row products.
            dyx = (dy_q * c.x).sum(-1).view(batch, count, size, heads)
            dcs = (dy_q * y_all[:, rows].view(dy_q.shape)).sum(-1).view(batch, count, size, heads) - dyx * Df
            dcs -= (c.xdt * dxdt).sum(-1).permute(0, 1, 4, 2, 3).reshape(dcs.shape)
            dcs[:, :, -1] += end
            dstep = dcs.flip(2).cumsum(2).flip(2)                            # d / d (dt A)
            dxdt = dxdt.permute(0, 1, 4, 2, 3, 5)                            # [B,K,Q,G,R,P]
            ddt[:, rows] = (dstep * A + (dxdt * c.x).sum(-1).view(dstep.shape)).view(batch, -1, heads)
            dA += (dstep * c.dt).sum((0, 1, 2))
            dD += dyx.sum((0, 1, 2))
            dx_view = dx[:, rows].view(dy_q.shape)
            torch.mul(dxdt, c.dt.view(batch, count, size, groups, -1, 1), out=dx_view)
            dx_view.addcmul_(dy_q, Df.view(groups, -1, 1))
        dinitial = dstate.view(batch, heads, width, n) if ctx.has_initial else None
        return (dx[:, :length].to(x.dtype), ddt[:, :length].to(dt.dtype), dA.to(A.dtype), dB[:, :length].to(B.dtype), dC[:, :length].to(C.dtype),
                dD.to(D.dtype), dinitial, None, None)


class _Spans:
    """Cuts padded inputs into spans of chunks. Padding has dt = 0, hence changes no state."""

    def __init__(self, x, dt, B, C, seq_idx, size):
        self.batch, length, self.heads, self.width = x.shape
        self.groups, self.size = B.shape[2], size
        self.padded = -(-length // size) * size
        self.x, self.dt, self.B, self.C = (_pad(t, self.padded) for t in (x, dt, B, C))
        self.ids = None if seq_idx is None else torch.cat([seq_idx, seq_idx[:, -1:].expand(-1, self.padded - length)], 1)

    def ranges(self) -> list[tuple[int, int]]:
        chunks = self.padded // self.size
        span = _span_chunks(self.batch, self.heads, self.size)
        return [(k, min(k + span, chunks)) for k in range(0, chunks, span)]

    def cut(self, start: int, stop: int, A: Tensor) -> _Chunks:
        rows, count = slice(start * self.size, stop * self.size), stop - start
        lead = (self.batch, count, self.size)
        x = self.x[:, rows].reshape(*lead, self.groups, self.heads // self.groups, self.width).float()
        B, C = (t[:, rows].reshape(*lead, self.groups, -1).transpose(2, 3).float() for t in (self.B, self.C))
        ids = previous = None
        if self.ids is not None:
            ids = self.ids[:, rows].reshape(lead)
            previous = self.ids[:, max(start * self.size - 1, 0)]            # the first chunk's state belongs to the row's first document
        return _Chunks(x, self.dt[:, rows].reshape(*lead, self.heads).float(), A.float(), B, C, ids, previous)


def _pad(t: Tensor, length: int) -> Tensor:
    if t.shape[1] == length:
        return t
    return torch.cat([t, t.new_zeros(t.shape[0], length - t.shape[1], *t.shape[2:])], 1)
