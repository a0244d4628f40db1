"""The Mamba-2 mixer: one projection in, a short causal convolution, the SSD scan, a gated norm, one projection out.

in_proj packs [z | x | B | C | dt]; the convolution runs over [x | B | C]; dt, A_log, D and the state are float32.
Shapes: B batch, T tokens, H heads, P head_dim, G groups, N state size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import conv, norms, ssd
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
        self.config = config
        heads, self.d_inner, self.conv_dim = config.mamba_num_heads, config.d_inner, config.conv_dim
        self.in_proj = Linear(config.hidden_size, self.d_inner + self.conv_dim + heads)
        self.conv1d = ConvWeights(self.conv_dim, config.conv_kernel)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.norm = NormWeight(self.d_inner)
        self.out_proj = Linear(self.d_inner, config.hidden_size)

    def forward(self, h_BTE: Tensor, *, seq_idx_BT: Tensor | None = None, state: MambaState | None = None, step: Step | None = None) -> Tensor:
        config = self.config
        batch, length, _ = h_BTE.shape
        projected_BTX = self.in_proj(h_BTE)
        z, xBC, dt = projected_BTX.split([self.d_inner, self.conv_dim, config.mamba_num_heads], -1)
        dt = F.softplus(dt.float() + self.dt_bias)
        A_H = -torch.exp(self.A_log.float())
        if state is not None and step.ragged:
            dt = dt * step.valid_BT[..., None]  # a step of zero length leaves the state alone
        if state is not None and step.pending:
            before = state.conv[step.rows]
            x, B, C = self._split(conv.causal_conv(xBC, self.conv1d.weight.squeeze(1), self.conv1d.bias, state_BWC=before))
            y, states = ssd_draft(x, dt, A_H, B, C, self.D, state.ssm, step.index_B)
            step.pending.inputs[state.index] = torch.cat([before, xBC], 1)
            step.pending.states[state.index] = states
        elif state is not None and length == 1 and not torch.is_grad_enabled():
            xBC = conv.causal_conv_step(xBC[:, 0], self.conv1d.weight.squeeze(1), self.conv1d.bias, state.conv, step.index_B, step.active_B)
            x, B, C = self._split(xBC)
            y = ssd.ssd_step(x, dt[:, 0], A_H, B, C, self.D, state.ssm, step.index_B)
        else:
            before, initial = (None, None) if state is None else (state.conv[step.rows], state.ssm[step.rows])
            x, B, C = self._split(conv.causal_conv(xBC, self.conv1d.weight.squeeze(1), self.conv1d.bias, seq_idx_BL=seq_idx_BT, state_BWC=before))
            y, last = ssd.ssd(x, dt, A_H, B, C, self.D, seq_idx_BL=seq_idx_BT, initial_state_BHPN=initial)
            if state is not None:
                self._remember(state, step, before, xBC, last)
        y = norms.gated_rms_norm(y.reshape(batch, length, -1), z, self.norm.weight, config.layer_norm_epsilon, config.n_groups)
        return self.out_proj(y)

    def _split(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[..., conv_dim] -> x [..., H, P], B and C [..., G, N]."""
        config = self.config
        packed = config.n_groups * config.ssm_state_size
        x, B, C = xBC.split([self.d_inner, packed, packed], -1)
        return (x.unflatten(-1, (config.mamba_num_heads, config.mamba_head_dim)),
                B.unflatten(-1, (config.n_groups, -1)), C.unflatten(-1, (config.n_groups, -1)))

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
