"""Mixture of experts and the dense MLP: ungated relu², a sigmoid router, and (LatentMoE) experts that work in a narrow latent space.

The router reads the full hidden state in float32, picks the top k of score + bias, and weighs by the scores alone. The bias is no parameter:
it moves by a fixed step towards an even load (`update_bias`), which balances experts without pulling on the loss; seq_aux_loss adds a small pull.
Sources: Hugging Face modeling_nemotron_h; Megatron-LM router.py (seq_aux_loss) and get_updated_expert_bias.

Shapes: B batch, T tokens a row, S = B*T tokens, E experts, K choices a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.expert_products import reads_masters
from kernels.expert_rows import choose
from kernels.experts import experts, relu_squared
from kernels.routing import scores
from model.config import HybridConfig
from model.linear import Linear, weight_in

BIAS_STEP = 1e-3  # Nemotron 3: bias update rate
AUX_LOSS_COEFFICIENT = 1e-4  # Nemotron 3: seq_aux_loss coefficient


class MLP(nn.Module):
    """down(relu(up(x))²)."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.up_proj = Linear(hidden, inner)
        self.down_proj = Linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(relu_squared(self.up_proj(x)))


class Router(nn.Module):
    """Scores every expert for every token, in float32: no recipe may lower it without saying so."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))
        self.gemm = F.linear

    def forward(self, x_SD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [S,E] float32, chosen experts [S,K], their weights [S,K] float32."""
        scores_SE = scores(x_SD, self.weight) if self.gemm is F.linear else torch.sigmoid(self.gemm(x_SD.float(), self.weight.float()))
        index_SK = choose(scores_SE.detach() + self.e_score_correction_bias, self.config.num_experts_per_tok)
        weight_SK = scores_SE.gather(1, index_SK)
        if self.config.norm_topk_prob:
            weight_SK = weight_SK / (weight_SK.sum(-1, keepdim=True) + 1e-20)
        return scores_SE, index_SK, weight_SK * self.config.routed_scaling_factor


class Experts(nn.Module):
    """Stacked weights up_proj [E, M, L] and down_proj [E, L, M]; `gemm` is applied once per expert and product."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        count, inner, outer = config.n_routed_experts, config.moe_intermediate_size, config.expert_size
        self.up_proj = nn.Parameter(torch.empty(count, inner, outer))
        self.down_proj = nn.Parameter(torch.empty(count, outer, inner))
        self.gemm = F.linear

    def forward(self, x_SL: Tensor, index_SK: Tensor, weight_SK: Tensor, load_E: Tensor | None) -> Tensor:
        masters = self.gemm is F.linear and reads_masters(x_SL, self.up_proj)
        up, down = (self.up_proj, self.down_proj) if masters else (weight_in(self, name, x_SL.dtype) for name in ("up_proj", "down_proj"))
        return experts(x_SL, up, down, index_SK, weight_SK, gemm=self.gemm, load_E=load_E)


class MoE(nn.Module):
    """Routed experts plus one shared expert. After a forward pass in training mode:

    `last_load_E` [E] int64: (token, choice) pairs each expert received; `last_aux_loss`: scalar seq_aux_loss, already times its coefficient.
    """

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = MLP(config.hidden_size, config.moe_shared_expert_intermediate_size)
        self.fc1_latent_proj = self.fc2_latent_proj = None
        if config.moe_latent_size is not None:
            self.fc1_latent_proj = Linear(config.hidden_size, config.moe_latent_size)
            self.fc2_latent_proj = Linear(config.moe_latent_size, config.hidden_size)
        self.aux_loss_coefficient = AUX_LOSS_COEFFICIENT
        self.last_load_E: Tensor | None = None
        self.last_aux_loss: Tensor | None = None

    def forward(self, h_BTD: Tensor) -> Tensor:
        batch, length, width = h_BTD.shape
        x_SD = h_BTD.reshape(-1, width)
        scores_SE, index_SK, weight_SK = self.gate(x_SD)
        load_E = None
        if self.training:
            load_E = self.last_load_E = torch.bincount(index_SK.view(-1), minlength=scores_SE.shape[1])
            self.last_aux_loss = seq_aux_loss(scores_SE.view(batch, length, -1), index_SK.view(batch, length, -1), self.aux_loss_coefficient)
        x_SL = x_SD if self.fc1_latent_proj is None else self.fc1_latent_proj(x_SD)
        y_SL = self.experts(x_SL, index_SK, weight_SK, load_E)
        y_SD = y_SL if self.fc2_latent_proj is None else self.fc2_latent_proj(y_SL)
        return (y_SD + self.shared_experts(x_SD)).view(batch, length, width)

    @torch.no_grad()
    def update_bias(self, load_E: Tensor, rate: float = BIAS_STEP) -> None:
        """b += rate * sign(mean load - load), `load_E` summed over the global batch."""
        load_E = load_E.float()
        self.gate.e_score_correction_bias.add_(torch.sign(load_E.mean() - load_E), alpha=rate)


def seq_aux_loss(scores_BTE: Tensor, index_BTK: Tensor, coefficient: float) -> Tensor:
    """coefficient * E / (K T²) * sum_e (sum_t p_te) (count_e) per sequence, averaged over sequences; p = scores normalised to sum 1."""
    batch, length, count = scores_BTE.shape
    choices = index_BTK.shape[2]
    p_BE = (scores_BTE / (scores_BTE.sum(-1, keepdim=True) + 1e-20)).sum(1)
    rows = torch.arange(batch, device=index_BTK.device)[:, None, None] * count
    counts_BE = torch.bincount((index_BTK + rows).view(-1), minlength=batch * count).view(batch, count)
    return (p_BE * counts_BE).sum() * (coefficient * count / (choices * length * length * batch))
