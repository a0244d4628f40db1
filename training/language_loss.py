"""The language-model objective of pretraining and SFT: next token + multi-token prediction + expert balance, each masked and normalised alone.

Source: Megatron-LM multi_token_prediction.py (labels rolled by d, masked at document ends, every term over its own token count).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.losses import linear_cross_entropy

__all__ = ["LanguageLoss", "language_loss", "rolled_labels"]


@dataclass(frozen=True)
class LanguageLoss:
    """`total` is what to differentiate; the parts are for the record (nats a token; balance already weighted)."""

    total: Tensor
    main: Tensor
    mtp: list[Tensor]
    balance: Tensor

    def figures(self) -> dict[str, Any]:
        row = {"lm_loss": self.main.item(), "balance_loss": self.balance.item()}
        if self.mtp:
            row["mtp_loss"] = [term.item() for term in self.mtp]
        return row


def language_loss(
    lm: Any, input_ids_BT: Tensor, labels_BT: Tensor, weights_BT: Tensor, seq_idx_BT: Tensor | None = None, *, mtp_weight: float,
) -> LanguageLoss:
    """The objective of one batch. Every cross-entropy is sum(weight * loss) / sum(weight).

    labels_BT   the token after input_ids_BT
    weights_BT  float32 >= 0; positions of weight 0 never reach the head
    """
    hidden_BTD = lm.hidden(input_ids_BT, seq_idx_BT=seq_idx_BT)
    main = _weighted_mean(lm, hidden_BTD, labels_BT, weights_BT)
    mtp: list[Tensor] = []
    if lm.mtp is not None and mtp_weight:
        for depth, ahead_BTD in enumerate(lm.mtp_hidden(hidden_BTD, input_ids_BT, seq_idx_BT), start=1):
            mtp.append(_weighted_mean(lm, ahead_BTD, *rolled_labels(labels_BT, weights_BT, seq_idx_BT, depth)))
    terms = [layer.last_aux_loss for layer in lm.moe_layers() if layer.last_aux_loss is not None]  # the MTP block's is None when it did not run
    balance = torch.stack(terms).sum() if terms else torch.zeros(())
    total = main + balance
    if mtp:
        total = total + mtp_weight * torch.stack(mtp).mean()
    return LanguageLoss(total, main, mtp, balance)


def _weighted_mean(lm: Any, hidden_BTD: Tensor, labels_BT: Tensor, weights_BT: Tensor) -> Tensor:
    rows = hidden_BTD.flatten(0, 1), labels_BT.flatten(), weights_BT.flatten()
    chosen = rows[2] > 0
    if not chosen.all():  # else nothing is copied, nor gradients scattered back
        rows = tuple(each[chosen] for each in rows)
    hidden_KD, labels_K, weights_K = rows
    return linear_cross_entropy(hidden_KD, lm.lm_head.weight, labels_K, weights_K)


def rolled_labels(labels_BT: Tensor, weights_BT: Tensor, seq_idx_BT: Tensor | None, depth: int) -> tuple[Tensor, Tensor]:
    """Labels and weights `depth` tokens further on; weight 0 where that lies beyond the row or in another document."""
    labels, weights = torch.zeros_like(labels_BT), torch.zeros_like(weights_BT)
    labels[:, :-depth], weights[:, :-depth] = labels_BT[:, depth:], weights_BT[:, depth:]
    if seq_idx_BT is not None:
        weights[:, :-depth] *= seq_idx_BT[:, depth:] == seq_idx_BT[:, :-depth]
    return labels, weights
