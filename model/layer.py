"""One layer of the model: a norm, a mixer chosen by its pattern character, a residual. There is no attention + MLP pair."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels import norms
from model.attention import Attention
from model.config import HybridConfig
from model.mamba import Mamba
from model.moe import MLP, MoE


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return norms.rms_norm(x, self.weight, self.eps)


MIXERS = {
    "M": Mamba,
    "*": Attention,
    "E": MoE,
    "-": lambda config: MLP(config.hidden_size, config.intermediate_size),
}


class Layer(nn.Module):
    """x + mixer(norm(x))."""

    def __init__(self, config: HybridConfig, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mixer = MIXERS[kind](config)

    def forward(self, x_BTD: Tensor, *, seq_idx_BT: Tensor | None = None, state=None, step=None) -> Tensor:
        h_BTD = self.norm(x_BTD)
        if self.kind in "M*":
            return x_BTD + self.mixer(h_BTD, seq_idx_BT=seq_idx_BT, state=state, step=step)
        return x_BTD + self.mixer(h_BTD)
