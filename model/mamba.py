"""The Mamba-2 mixer: one projection in, a short causal convolution, the SSD scan, a gated norm, one projection out.

in_proj packs [z | x | B | C | dt]; the convolution runs over [x | B | C]; dt, A_log, D and the state are float32.
Shapes: B batch, T tokens, H heads, P head_dim, G groups, N state size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import conv, mamba, norms, ssd
from kernels.ssd_draft import ssd_draft
from model.cache import MambaState, Step
from model.config import HybridConfig
from model.linear import Linear


class ConvWeights(nn.Module):
    """weight [C, 1, W] and bias [C], in torch's Conv1d layout, which is the checkpoint's."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.empty(channels))


class NormWeight(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))


class Mamba(nn.Module):
    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        heads = config.mamba_num_heads
        self.sizes = mamba.Sizes(heads, config.mamba_head_dim, config.n_groups, config.ssm_state_size, config.layer_norm_epsilon)
        self.in_proj = Linear(config.hidden_size, config.d_inner + config.conv_dim + heads)
        self.conv1d = ConvWeights(config.conv_dim, config.conv_kernel)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.norm = NormWeight(config.d_inner)
        self.out_proj = Linear(config.d_inner, config.hidden_size)

    def forward(self, h_BTE: Tensor, *, seq_idx_BT: Tensor | None = None, state: MambaState | None = None, step: Step | None = None) -> Tensor:
        projected_BTX = self.in_proj(h_BTE)
        if state is None:
            weights = mamba.Weights(self.conv1d.weight.squeeze(1), self.conv1d.bias, self.dt_bias, self.A_log, self.D, self.norm.weight)
            return self.out_proj(mamba.mix(projected_BTX, weights, self.sizes, seq_idx_BT))
        return self.out_proj(self._continued(projected_BTX, state, step))

    def _continued(self, projected_BTX: Tensor, state: MambaState, step: Step) -> Tensor:
        """`mamba.mix` where a cache left off."""
        z, xBC, dt = self.sizes.split(projected_BTX)
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        dt = F.softplus(dt.float() + self.dt_bias)
        A_H = -torch.exp(self.A_log.float())
        if step.ragged:
            dt = dt * step.valid_BT[..., None]  # a step of zero length leaves the state alone
        if step.pending:
            before = state.conv[step.rows]
            x, B, C = self.sizes.unpack(conv.causal_conv(xBC, weight, bias, state_BWC=before))
            y, states = ssd_draft(x, dt, A_H, B, C, self.D, state.ssm, step.index_B)
            step.pending.inputs[state.index] = torch.cat([before, xBC], 1)
            step.pending.states[state.index] = states
        elif step.length == 1 and not torch.is_grad_enabled():
            x, B, C = self.sizes.unpack(conv.causal_conv_step(xBC[:, 0], weight, bias, state.conv, step.index_B, step.active_B))
            y = ssd.ssd_step(x, dt[:, 0], A_H, B, C, self.D, state.ssm, step.index_B)
        else:
            before = state.conv[step.rows]
            x, B, C = self.sizes.unpack(conv.causal_conv(xBC, weight, bias, state_BWC=before))
            y, last = ssd.ssd(x, dt, A_H, B, C, self.D, initial_state_BHPN=state.ssm[step.rows])
            self._remember(state, step, before, xBC, last)
        return norms.gated_rms_norm(y.reshape(z.shape), z, self.norm.weight, self.sizes.eps, self.sizes.groups)

    def _remember(self, state: MambaState, step: Step, before: Tensor, inputs: Tensor, last: Tensor) -> None:
        """Keep the last inputs of the convolution and the last state; rows with fewer real tokens keep theirs from further left."""
        taps = before.shape[1]
        inputs = torch.cat([before, inputs], 1)
        if step.ragged:
            columns = (step.new_B[:, None] + torch.arange(taps))[..., None].expand(-1, -1, inputs.shape[2])
            state.conv[step.rows] = inputs.gather(1, columns)
        else:
            state.conv[step.rows] = inputs[:, -taps:]
        state.ssm[step.rows] = last
