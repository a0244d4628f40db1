"""What the model gave the tokens of a prompt, for perplexities and for choosing among given answers.

Reading a prompt takes hidden states only, of the last position logits. A prompt to be scored sends every position through the head, a bounded number at a
time: logits of 131,072 positions over as many tokens would be 69 GB. It is never taken from a remembered prefix, for that has no states to score.

Shapes: T positions, D hidden size, V vocabulary.
"""
from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.engine import sampling

LOGIT_BYTES = 16 << 20  # at a time; with 64 MB the sums over them take three times as long, for the system hands out new pages each time


@dataclass(eq=False)
class PromptScores:
    """Of one request's prompt: each token's log-probability given those before it, None for the first, which nothing predicts; and beside it the `most_likely`
    tokens in its place, best first. Filled as the prompt is read."""

    ids: list[int]
    most_likely: int
    logprobs: list[float | None] = field(init=False)
    top_logprobs: list[list[tuple[int, float]] | None] = field(init=False)

    def __post_init__(self) -> None:
        self.logprobs, self.top_logprobs = [None] * len(self.ids), [None] * len(self.ids)

    def take(self, lm, hidden_TD: Tensor, first: int) -> None:
        """Score with the states at positions first, first + 1, ...: each predicts the token behind it (the prompt's last, one yet to be written)."""
        states_TD, rows = hidden_TD[:len(self.ids) - 1 - first], max(1, LOGIT_BYTES // (4 * lm.config.vocab_size))
        for begin in range(0, len(states_TD), rows):
            logits_TV = lm.logits(states_TD[begin:begin + rows])
            here = slice(first + begin + 1, first + begin + 1 + len(logits_TV))
            normaliser_T = sampling.normalisers(logits_TV)
            self.logprobs[here] = sampling.logprobs(logits_TV, torch.tensor(self.ids[here]), normaliser_T).tolist()
            if self.most_likely:
                self.top_logprobs[here] = sampling.most_likely(logits_TV, self.most_likely, normaliser_T)
