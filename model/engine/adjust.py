"""What a request does to its own logits before a token is chosen: biases, penalties on what was written before, tokens kept out.

One row at a time and from that row alone, so a sample stays the same in any batch. In vLLM's order, where OpenAI leaves it open; a grammar's mask comes
last. Reported log-probabilities are the model's own, without any of it. Shapes: V vocabulary.
"""
from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from model.engine.params import SamplingParams


class Adjustment:
    """Of one sample, whose written tokens it counts as they come. `end_ids`: what `min_tokens` holds back."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], end_ids: Collection[int], vocabulary: int) -> None:
        self.params, self.end_ids = params, torch.tensor([*end_ids], dtype=torch.long)
        self.biased, self.biases = [*(params.logit_bias or {})], torch.tensor([*(params.logit_bias or {}).values()], dtype=torch.float32)
        self.kept_out_V = None
        if params.allowed_token_ids is not None:
            self.kept_out_V = torch.ones(vocabulary, dtype=torch.bool)
            self.kept_out_V[list(params.allowed_token_ids)] = False
        self.penalises = params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0
        if self.penalises:
            self.counts_V, self.counted = torch.zeros(vocabulary), 0
            self.prompted_V = torch.zeros(vocabulary, dtype=torch.bool)
            self.prompted_V[list(prompt_ids)] = True

    @staticmethod
    def wanted(params: SamplingParams) -> bool:
        plain = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty, params.min_p, params.min_tokens) == (1, 0, 0, 0, 0)
        return not plain or bool(params.logit_bias) or params.allowed_token_ids is not None

    def apply(self, logits_V: Tensor, written: np.ndarray) -> None:
        """Change the logits of the token that follows those `written`."""
        params = self.params
        if self.kept_out_V is not None:
            logits_V.masked_fill_(self.kept_out_V, -torch.inf)
        if len(written) < params.min_tokens:
            logits_V[self.end_ids] = -torch.inf
        if self.biased:
            logits_V[self.biased] += self.biases
        if self.penalises:
            self._penalise(logits_V, written)
        if params.min_p > 0 and params.temperature > 0:  # p < min_p * (largest p), at the temperature to come
            logits_V.masked_fill_(logits_V < logits_V.max() + params.temperature * math.log(params.min_p), -torch.inf)

    def _penalise(self, logits_V: Tensor, written: np.ndarray) -> None:
        new = torch.from_numpy(written[self.counted:].astype(np.int64))
        self.counts_V.index_add_(0, new, torch.ones(len(new)))
        self.counted = len(written)
        params, found_V = self.params, self.counts_V > 0
        if params.repetition_penalty != 1:  # of the prompt's tokens too
            penalty_V = torch.where(self.prompted_V | found_V, params.repetition_penalty, 1.0)
            logits_V.copy_(torch.where(logits_V > 0, logits_V / penalty_V, logits_V * penalty_V))
        logits_V -= params.frequency_penalty * self.counts_V + params.presence_penalty * found_V
