"""What a Mamba-2 mixer does between its two projections, as one node of autograd: short convolution, SSD scan, gated norm.

The input packs [z | x | B | C | dt]. Apart, the three kernels are six views and a dozen small operations, whose gradients autograd adds, pads with zeros and
joins again. As one node the kernels read slices of the input where they lie, and write gradients into slices of its gradient. Scan and gated norm speak
float32, their gradients the dtype of the input, in which the scan multiplies them anyway.

`mix_reference` is the three kernels one after the other, each under autograd: for a GPU, and for shapes the compiled loops do not take.

Shapes: B batch, T positions, H heads, P head_dim, G groups, N state size; the inside is H P wide, the convolution H P + 2 G N.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import conv, norms, ssd
from kernels.lanes import runs_here
from kernels.simd import WIDTH as LANES


class Weights(NamedTuple):
    """A mixer's own: conv [C,W] and its bias [C], dt_bias, A_log and D [H], the gated norm's [H P]."""

    conv: Tensor
    conv_bias: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    norm: Tensor


class Sizes(NamedTuple):
    heads: int
    head_dim: int
    groups: int
    state: int
    eps: float

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z, xBC and dt of [..., z | xBC | dt]."""
        inside = self.heads * self.head_dim
        return projected.split([inside, inside + 2 * self.groups * self.state, self.heads], -1)

    def unpack(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [...,H,P], B and C [...,G,N] of [..., x | B | C]."""
        packed = self.groups * self.state
        x, B, C = xBC.split([self.heads * self.head_dim, packed, packed], -1)
        return x.unflatten(-1, (self.heads, -1)), B.unflatten(-1, (self.groups, -1)), C.unflatten(-1, (self.groups, -1))


def mix_reference(projected_BTX: Tensor, weights: Weights, sizes: Sizes, seq_idx_BT: Tensor | None = None) -> Tensor:
    """The mixer's inside [B,T,H P], in the dtype of `projected`; `seq_idx` numbers the documents packed in a row."""
    z, xBC, dt = sizes.split(projected_BTX)
    x, B, C = sizes.unpack(conv.causal_conv(xBC, weights.conv, weights.conv_bias, seq_idx_BL=seq_idx_BT))
    y, _ = ssd.ssd(x, F.softplus(dt.float() + weights.dt_bias), -torch.exp(weights.A_log.float()), B, C, weights.D, seq_idx_BL=seq_idx_BT)
    return norms.gated_rms_norm(y.flatten(-2), z, weights.norm, sizes.eps, sizes.groups)


def mix(projected_BTX: Tensor, weights: Weights, sizes: Sizes, seq_idx_BT: Tensor | None = None) -> Tensor:
    """`mix_reference`, as one node where it is compiled."""
    heads, width, groups, state, _ = sizes
    whole = width % LANES == 0 and state % LANES == 0 and heads * width % (groups * LANES) == 0
    if not whole or weights.conv.shape[1] != conv.TAPS or not runs_here(projected_BTX, *weights):
        return mix_reference(projected_BTX, weights, sizes, seq_idx_BT)
    return _Mix.apply(projected_BTX.contiguous(), seq_idx_BT, sizes, *weights)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, projected, seq_idx, sizes, *weights):
        mine = Weights(*weights)
        z, xBC, dt = sizes.split(projected)
        reach = conv.reach_of(xBC, seq_idx, 0)
        convolved = conv.convolve(xBC, mine.conv, mine.conv_bias, reach)
        x, B, C = sizes.unpack(convolved)
        steps = F.softplus(dt.float() + mine.dt_bias.float())
        A = -torch.exp(mine.A_log.float())
        decay = ssd.decays(steps, A, seq_idx)
        y, between = ssd.scan(x, steps, decay, B, C, mine.D, torch.zeros(len(x), sizes.heads, sizes.state, sizes.head_dim), any(ctx.needs_input_grad))
        ctx.save_for_backward(projected, convolved, steps, decay, y, between, *weights)
        ctx.sizes, ctx.reach = sizes, reach
        return norms.gate(y.flatten(-2), z, mine.norm, sizes.eps, sizes.groups)

    @staticmethod
    def backward(ctx, dout):
        projected, convolved, steps, decay, y, between, *weights = ctx.saved_tensors
        mine, sizes = Weights(*weights), ctx.sizes
        z, xBC, _ = sizes.split(projected)
        dprojected, dconvolved, dy = torch.empty_like(projected), torch.empty_like(convolved), torch.empty(y.shape, dtype=projected.dtype)
        dz, dxBC, ddt = sizes.split(dprojected)
        dnorm = norms.gate_backward(dout.contiguous(), y, z, mine.norm, sizes.eps, sizes.groups, dy, dz)
        A = -torch.exp(mine.A_log.float())
        (x, B, C), slope = sizes.unpack(convolved), torch.zeros(between[:, :, 0].shape)
        dsteps, dlog_decay, dD = ssd.scan_backward(dy, x, steps, decay, A, B, C, mine.D, between, slope, *sizes.unpack(dconvolved))
        dconv, dconv_bias = conv.convolve_backward(dconvolved, xBC, mine.conv, mine.conv_bias, ctx.reach, dxBC)
        dA_log = (dlog_decay * steps).sum((0, 1)) * A
        before_softplus = dsteps.mul_(-torch.expm1(-steps))  # softplus' slope is sigmoid: 1 - exp(-softplus)
        ddt.copy_(before_softplus)
        gradients = Weights(dconv, dconv_bias, before_softplus.sum((0, 1)), dA_log, dD, dnorm)
        return dprojected, None, None, *(gradient.to(weight.dtype) for gradient, weight in zip(gradients, mine))
