"""Multi-token prediction: one shared block, applied `mtp_depth` times, that looks one token further each time.

Depth d reads the hidden state of depth d-1 at position t (depth 0: the model's own, after norm_f) and the embedding of token t+d, and predicts
token t+1+d through the model's own head. Source: Megatron-LM multi_token_prediction.py; layout: Hugging Face `mtp.layers.*`, where the first layer
of the pattern carries eh_proj, enorm and hnorm and the last one final_layernorm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.cache import Cache, Step
from model.config import HybridConfig
from model.layer import Layer, RMSNorm
from model.linear import Linear


class MTP(nn.Module):
    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_epsilon
        self.layers = nn.ModuleList(Layer(config, kind) for kind in config.mtp_pattern)
        first, last = self.layers[0], self.layers[-1]
        first.enorm, first.hnorm = RMSNorm(width, eps), RMSNorm(width, eps)
        first.eh_proj = Linear(2 * width, width)
        last.final_layernorm = RMSNorm(width, eps)

    def forward(self, h_BTD: Tensor, embedded_BTD: Tensor, *, seq_idx_BT: Tensor | None = None,
                cache: Cache | None = None, step: Step | None = None) -> Tensor:
        """One depth: hidden states of the depth before and embeddings of the tokens one further on; the result is normed, ready for the head.

        With `cache` (of the block's own layers) the positions are appended to it, as `step` says."""
        first = self.layers[0]
        h_BTD = first.eh_proj(torch.cat([first.enorm(embedded_BTD), first.hnorm(h_BTD)], -1))
        for layer, state in zip(self.layers, cache.layers if cache is not None else [None] * len(self.layers)):
            h_BTD = layer(h_BTD, seq_idx_BT=seq_idx_BT, state=state, step=step)
        return self.layers[-1].final_layernorm(h_BTD)


def shift_ids(ids_BT: Tensor, by: int, seq_idx_BT: Tensor | None) -> Tensor:
    """ids[t + by], and 0 where that lies beyond the row or in another document (those positions carry no loss)."""
    shifted = torch.zeros_like(ids_BT)
    shifted[:, :-by] = ids_BT[:, by:]
    if seq_idx_BT is not None:
        shifted[:, :-by] *= seq_idx_BT[:, by:] == seq_idx_BT[:, :-by]
    return shifted
