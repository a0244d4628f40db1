"""The SSD scan on a GPU: `kernels.ssd`'s chunked form in four kernels, and its decoding step in one.

    sums    what each chunk adds to the state, S = Σ_j exp(cs_last - cs_j) dt_j x_j B_jᵀ;   backward: what it asks of the state entering it
    pass    the state from chunk to chunk, one program a slice of the state;                 backward: the same, walking from the last chunk
    scan    y from inside the chunk and from the state entering it
    slopes  all other gradients, one program a chunk and group: it walks the group's heads, so that dB and dC are summed in registers

No atomics: sums over programs are written apart and added afterwards, hence the same bits every run. Decay masks exist in registers only; kept for
the backward are the inputs and the state entering each chunk. C Bᵀ is computed again by every head of `scan`: cheaper than a trip through memory.
bfloat16 inputs multiply in TF32, which holds them exactly and rounds decayed ones to 11 bits rather than 8; float32 inputs as three TF32 products,
which is nearly float32.
Proved with Triton's interpreter and compiled for sm_90 and sm_100; never yet run on a GPU.

Shapes as in `kernels.ssd`; q counts positions of a chunk. In kernels Q, P and N are block sizes, powers of two, and `width`, `size` the true P and N.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = {torch.bfloat16: 64, torch.float32: 32}  # positions, >= 16. With N = 128 more does not fit the shared memory of a block in `slopes`
SLICE = 1024  # elements of the state a program of `pass` carries
STEP_ROWS = 16  # rows of the state a program of the decoding step updates


def ssd(x_BLHP: Tensor, dt_BLH: Tensor, A_H: Tensor, B_BLGN: Tensor, C_BLGN: Tensor, D_H: Tensor, seq_idx_BL: Tensor | None,
        initial_state_BHPN: Tensor | None) -> tuple[Tensor, Tensor]:
    """`kernels.ssd.ssd`: y [B,L,H,P] and the last state [B,H,P,N], float32."""
    return _SSD.apply(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, initial_state_BHPN, seq_idx_BL)


def ssd_step(x_BHP: Tensor, dt_BH: Tensor, A_H: Tensor, B_BGN: Tensor, C_BGN: Tensor, D_H: Tensor, state_SHPN: Tensor, rows_B: Tensor) -> Tensor:
    """`kernels.ssd.ssd_step`: changes rows `rows` of the state in place, reading and writing each once; returns y [B,H,P] float32."""
    batch, heads, width = x_BHP.shape
    groups, size = B_BGN.shape[1:]
    y_BHP = torch.empty(batch, heads, width, device=x_BHP.device)
    x, dt, B, C = (t.contiguous() for t in (x_BHP, dt_BH, B_BGN, C_BGN))
    _step[(batch, heads, triton.cdiv(width, STEP_ROWS))](x, dt, A_H, B, C, D_H, state_SHPN, rows_B, y_BHP, heads, groups, width, size,
                                                         P=STEP_ROWS, N=triton.next_power_of_2(size))
    return y_BHP


def _dense(t: Tensor) -> Tensor:
    """Heads and channels of a position side by side; rows and positions may be strided."""
    return t if t.stride(3) == 1 and t.stride(2) == t.shape[3] else t.contiguous()


class _Plan:
    """Sizes and launch arguments which all kernels share."""

    def __init__(self, x: Tensor, B: Tensor):
        self.batch, self.length, self.heads, self.width = x.shape
        self.groups, self.size = B.shape[2:]
        chunk = CHUNK[x.dtype]
        self.chunks = triton.cdiv(self.length, chunk)
        self.sizes = (self.length, self.heads, self.groups, self.width, self.size, self.chunks)
        self.blocks = dict(Q=chunk, P=max(16, triton.next_power_of_2(self.width)), N=max(16, triton.next_power_of_2(self.size)),
                           PRECISION="tf32" if x.dtype == torch.bfloat16 else "tf32x3", num_warps=8, num_stages=1)

    def sums(self, u: Tensor, v: Tensor, dt: Tensor, A: Tensor, ids: Tensor | None, to_end: bool) -> tuple[Tensor, Tensor]:
        """[B,H,K,P,N] sums over each chunk, and the decay across it [B,H,K]."""
        out = torch.empty(self.batch, self.heads, self.chunks, self.width, self.size, device=u.device)
        keeps = torch.empty(self.batch, self.heads, self.chunks, device=u.device)
        _sums[(self.chunks, self.heads, self.batch)](u, v, dt, A, ids, out, keeps, *self.sizes, u.stride(0), u.stride(1), v.stride(0), v.stride(1),
                                                     TO_END=to_end, **self.blocks)
        return out, keeps

    def travel(self, sums: Tensor, keeps: Tensor, first: Tensor | None, reverse: bool) -> Tensor:
        """Replaces each chunk's sum by what reaches it, and returns [B,H,P,N], what leaves the last."""
        elements = self.width * self.size
        last = torch.empty(self.batch, self.heads, self.width, self.size, device=sums.device)
        _pass[(triton.cdiv(elements, SLICE), self.batch * self.heads)](sums, keeps, first, last, elements, self.chunks, SLICE=SLICE, REVERSE=reverse)
        return last


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, initial, seq_idx):
        x, B, C, dt32 = _dense(x), _dense(B), _dense(C), dt.float().contiguous()
        ids = None if seq_idx is None else seq_idx.contiguous()
        plan = _Plan(x, B)
        entering, keeps = plan.sums(x, B, dt32, A, ids, to_end=True)
        last = plan.travel(entering, keeps, None if initial is None else initial.float().contiguous(), reverse=False)
        y = torch.empty(x.shape, device=x.device)
        _scan[(plan.chunks, plan.heads, plan.batch)](x, dt32, A, B, C, D, ids, entering, y, *plan.sizes, x.stride(0), x.stride(1), B.stride(0), B.stride(1),
                                                     C.stride(0), C.stride(1), **plan.blocks)
        ctx.has_initial, ctx.dtype = initial is not None, dt.dtype
        ctx.save_for_backward(x, dt32, A, B, C, D, ids, entering, keeps)
        return y, last

    @staticmethod
    def backward(ctx, dy, dlast):
        x, dt, A, B, C, D, ids, entering, keeps = ctx.saved_tensors
        plan = _Plan(x, B)
        dy = dy.float().contiguous()
        leaving, _ = plan.sums(dy, C, dt, A, ids, to_end=False)
        dinitial = plan.travel(leaving, keeps, dlast.float().contiguous(), reverse=True)
        dx, dB, dC = (torch.empty(t.shape, device=t.device) for t in (x, B, C))
        ddt = torch.empty_like(dt)
        parts = torch.empty(2, plan.batch, plan.chunks, plan.heads, device=x.device)
        _slopes[(plan.chunks, plan.groups, plan.batch)](x, dt, A, B, C, D, ids, entering, leaving, keeps, dy, dx, ddt, dB, dC, parts[0], parts[1],
                                                        *plan.sizes, x.stride(0), x.stride(1), B.stride(0), B.stride(1), C.stride(0), C.stride(1),
                                                        **plan.blocks)
        dA, dD = parts.sum((1, 2))
        return (dx.to(x.dtype), ddt.to(ctx.dtype), dA.to(A.dtype), dB.to(B.dtype), dC.to(C.dtype), dD.to(D.dtype), dinitial if ctx.has_initial else None, None)


@triton.jit
def _tile(source, row, first, length, row_stride, stride, offset, width, Q: tl.constexpr, BLOCK: tl.constexpr):
    """float32 [Q,BLOCK]: `width` channels from `offset` on, of positions first.. of a row; zeros beyond either end."""
    q, at = tl.arange(0, Q), tl.arange(0, BLOCK)
    inside = (first + q < length)[:, None] & (at < width)[None, :]
    return tl.load(source + row * row_stride + first * stride + offset + q[:, None] * stride + at[None, :], inside, 0.0).to(tl.float32)


@triton.jit
def _put(target, value, row, first, length, stride, offset, width, Q: tl.constexpr, BLOCK: tl.constexpr):
    """Stores a tile into contiguous [B,L,stride]."""
    q, at = tl.arange(0, Q), tl.arange(0, BLOCK)
    inside = (first + q < length)[:, None] & (at < width)[None, :]
    tl.store(target + (row * length + first) * stride + offset + q[:, None] * stride + at[None, :], value, inside)


@triton.jit
def _state(states, index, width, size, P: tl.constexpr, N: tl.constexpr):
    """[P,N]: state number `index`."""
    p, n = tl.arange(0, P), tl.arange(0, N)
    return tl.load(states + index * width * size + p[:, None] * size + n[None, :], (p < width)[:, None] & (n < size)[None, :], 0.0)


@triton.jit
def _steps(dt, A, row, first, length, heads, h, Q: tl.constexpr):
    """dt [Q] (0 beyond the end, which changes no state), the running sum of dt A, and its total."""
    q = tl.arange(0, Q)
    dt_Q = tl.load(dt + (row * length + first + q) * heads + h, first + q < length, 0.0)
    step_Q = dt_Q * tl.load(A + h).to(tl.float32)
    return dt_Q, tl.cumsum(step_Q, 0), tl.sum(step_Q, 0)


@triton.jit
def _documents(ids, row, first, length, Q: tl.constexpr):
    """Document of each position of a chunk, of its last, and the one the entering state belongs to."""
    own_Q = tl.load(ids + row * length + tl.minimum(first + tl.arange(0, Q), length - 1))
    last = tl.load(ids + row * length + tl.minimum(first + Q, length) - 1)
    before = tl.load(ids + row * length + tl.maximum(first - 1, 0))
    return own_Q, last, before


@triton.jit
def _decay(cs_Q, ids, row, first, length, Q: tl.constexpr):
    """[Q,Q] exp(cs_i - cs_j) for j <= i of one document, else 0: masked before exp, for inf * 0 is NaN."""
    q = tl.arange(0, Q)
    seen = q[:, None] >= q[None, :]
    if ids is not None:
        own_Q, _, _ = _documents(ids, row, first, length, Q)
        seen = seen & (own_Q[:, None] == own_Q[None, :])
    return tl.exp(tl.where(seen, cs_Q[:, None] - cs_Q[None, :], float("-inf")))


@triton.jit
def _reach(cs_Q, total, ids, row, first, length, Q: tl.constexpr):
    """Decay from the chunk's start to each position [Q], from each position to its end [Q], and across it: 0 between documents."""
    from_start_Q, to_end_Q, across = tl.exp(cs_Q), tl.exp(total - cs_Q), tl.exp(total)
    if ids is not None:
        own_Q, last, before = _documents(ids, row, first, length, Q)
        from_start_Q = tl.where(own_Q == before, from_start_Q, 0.0)
        to_end_Q = tl.where(own_Q == last, to_end_Q, 0.0)
        across = tl.where(last == before, across, 0.0)
    return from_start_Q, to_end_Q, across


@triton.jit
def _sums(u, v, dt, A, ids, out, keeps, length, heads, groups, width, size, chunks, u_row, u_t, v_row, v_t,
          TO_END: tl.constexpr, Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr):
    k, h, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    first = k.to(tl.int64) * Q
    dt_Q, cs_Q, total = _steps(dt, A, row, first, length, heads, h, Q)
    from_start_Q, to_end_Q, across = _reach(cs_Q, total, ids, row, first, length, Q)
    weight_Q = dt_Q * to_end_Q if TO_END else from_start_Q
    u_QP = _tile(u, row, first, length, u_row, u_t, h * width, width, Q, P)
    v_QN = _tile(v, row, first, length, v_row, v_t, h // (heads // groups) * size, size, Q, N)
    sum_PN = tl.dot(tl.trans(u_QP * weight_Q[:, None]), v_QN, input_precision=PRECISION)
    p, n, index = tl.arange(0, P), tl.arange(0, N), (row * heads + h) * chunks + k
    tl.store(out + index * width * size + p[:, None] * size + n[None, :], sum_PN, (p < width)[:, None] & (n < size)[None, :])
    tl.store(keeps + index, across)


@triton.jit
def _pass(sums, keeps, first, last, elements, chunks, SLICE: tl.constexpr, REVERSE: tl.constexpr):
    at, row = tl.program_id(0) * SLICE + tl.arange(0, SLICE), tl.program_id(1).to(tl.int64)
    inside = at < elements
    if first is None:
        state = tl.zeros([SLICE], tl.float32)
    else:
        state = tl.load(first + row * elements + at, inside, 0.0)
    for i in range(chunks):
        index = row * chunks + (chunks - 1 - i if REVERSE else i)
        added = tl.load(sums + index * elements + at, inside, 0.0)
        tl.store(sums + index * elements + at, state, inside)
        state = tl.load(keeps + index) * state + added
    tl.store(last + row * elements + at, state, inside)


@triton.jit
def _scan(x, dt, A, B, C, D, ids, entering, y, length, heads, groups, width, size, chunks, x_row, x_t, B_row, B_t, C_row, C_t,
          Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr):
    k, h, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    first, group = k.to(tl.int64) * Q, h // (heads // groups)
    dt_Q, cs_Q, total = _steps(dt, A, row, first, length, heads, h, Q)
    from_start_Q, _, _ = _reach(cs_Q, total, ids, row, first, length, Q)
    x_QP = _tile(x, row, first, length, x_row, x_t, h * width, width, Q, P)
    B_QN = _tile(B, row, first, length, B_row, B_t, group * size, size, Q, N)
    C_QN = _tile(C, row, first, length, C_row, C_t, group * size, size, Q, N)
    M_QQ = tl.dot(C_QN, tl.trans(B_QN), input_precision=PRECISION) * _decay(cs_Q, ids, row, first, length, Q)
    y_QP = tl.dot(M_QQ, x_QP * dt_Q[:, None], input_precision=PRECISION)
    state_PN = _state(entering, (row * heads + h) * chunks + k, width, size, P, N)
    y_QP += tl.dot(C_QN, tl.trans(state_PN), input_precision=PRECISION) * from_start_Q[:, None]
    _put(y, y_QP + tl.load(D + h).to(tl.float32) * x_QP, row, first, length, heads * width, h * width, width, Q, P)


@triton.jit
def _slopes(x, dt, A, B, C, D, ids, entering, leaving, keeps, dy, dx, ddt, dB, dC, dA, dD, length, heads, groups, width, size, chunks,
            x_row, x_t, B_row, B_t, C_row, C_t, Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr):
    k, group, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    first, repeat, q = k.to(tl.int64) * Q, heads // groups, tl.arange(0, Q)
    B_QN = _tile(B, row, first, length, B_row, B_t, group * size, size, Q, N)
    C_QN = _tile(C, row, first, length, C_row, C_t, group * size, size, Q, N)
    CB_QQ = tl.dot(C_QN, tl.trans(B_QN), input_precision=PRECISION)
    dB_QN, dC_QN = tl.zeros([Q, N], tl.float32), tl.zeros([Q, N], tl.float32)
    for h in range(group * repeat, (group + 1) * repeat):
        dt_Q, cs_Q, total = _steps(dt, A, row, first, length, heads, h, Q)
        from_start_Q, to_end_Q, across = _reach(cs_Q, total, ids, row, first, length, Q)
        decay_QQ = _decay(cs_Q, ids, row, first, length, Q)
        x_QP = _tile(x, row, first, length, x_row, x_t, h * width, width, Q, P)
        dy_QP = _tile(dy, row, first, length, length * heads * width, heads * width, h * width, width, Q, P)
        xdt_QP, index = x_QP * dt_Q[:, None], (row * heads + h) * chunks + k
        state_PN, dstate_PN = _state(entering, index, width, size, P, N), _state(leaving, index, width, size, P, N)
        dCB_QQ = tl.dot(dy_QP, tl.trans(xdt_QP), input_precision=PRECISION) * decay_QQ
        read_QN = tl.dot(dy_QP * from_start_Q[:, None], state_PN, input_precision=PRECISION)          # d / dC through the entering state
        added_QN = tl.dot(xdt_QP * to_end_Q[:, None], dstate_PN, input_precision=PRECISION)           # d / dB through the leaving one
        dC_QN += read_QN + tl.dot(dCB_QQ, B_QN, input_precision=PRECISION)
        dB_QN += added_QN + tl.dot(tl.trans(dCB_QQ), C_QN, input_precision=PRECISION)
        dxdt_QP = tl.dot(tl.trans(CB_QQ * decay_QQ), dy_QP, input_precision=PRECISION)
        dxdt_QP += tl.dot(B_QN, tl.trans(dstate_PN), input_precision=PRECISION) * to_end_Q[:, None]
        # Every decay is exp of a difference of cs: its row gains the product with its gradient, its column loses it.
        inside_QQ, ended_Q = dCB_QQ * CB_QQ, tl.sum(added_QN * B_QN, 1)
        dcs_Q = tl.sum(inside_QQ, 1) - tl.sum(inside_QQ, 0) + tl.sum(read_QN * C_QN, 1) - ended_Q
        dtotal = tl.sum(ended_Q, 0) + across * tl.sum(tl.sum(state_PN * dstate_PN, 1), 0)
        dstep_Q = tl.cumsum(dcs_Q, 0, reverse=True) + dtotal
        _put(dx, dxdt_QP * dt_Q[:, None] + dy_QP * tl.load(D + h).to(tl.float32), row, first, length, heads * width, h * width, width, Q, P)
        ddt_Q = dstep_Q * tl.load(A + h).to(tl.float32) + tl.sum(dxdt_QP * x_QP, 1)
        tl.store(ddt + (row * length + first + q) * heads + h, ddt_Q, first + q < length)
        part = (row * chunks + k) * heads + h
        tl.store(dA + part, tl.sum(dstep_Q * dt_Q, 0))
        tl.store(dD + part, tl.sum(tl.sum(dy_QP * x_QP, 1), 0))
    _put(dB, dB_QN, row, first, length, groups * size, group * size, size, Q, N)
    _put(dC, dC_QN, row, first, length, groups * size, group * size, size, Q, N)


@triton.jit
def _step(x, dt, A, B, C, D, state, rows, y, heads, groups, width, size, P: tl.constexpr, N: tl.constexpr):
    b, h, p = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2) * P + tl.arange(0, P)
    n = tl.arange(0, N)
    step, group = tl.load(dt + b * heads + h).to(tl.float32), h // (heads // groups)
    x_P = tl.load(x + (b * heads + h) * width + p, p < width, 0.0).to(tl.float32)
    B_N = tl.load(B + (b * groups + group) * size + n, n < size, 0.0).to(tl.float32)
    C_N = tl.load(C + (b * groups + group) * size + n, n < size, 0.0).to(tl.float32)
    inside = (p < width)[:, None] & (n < size)[None, :]
    at = state + (tl.load(rows + b).to(tl.int64) * heads + h) * width * size + p[:, None] * size + n[None, :]
    state_PN = tl.load(at, inside, 0.0) * tl.exp(step * tl.load(A + h).to(tl.float32)) + (x_P * step)[:, None] * B_N[None, :]
    tl.store(at, state_PN, inside)
    tl.store(y + (b * heads + h) * width + p, tl.sum(state_PN * C_N[None, :], 1) + tl.load(D + h).to(tl.float32) * x_P, p < width)
