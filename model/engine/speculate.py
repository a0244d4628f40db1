"""Speculative decoding with the model's own multi-token-prediction block (Megatron-LM mtp_utils_pytorch.py has the same loop).

A round reads the last token and K guesses in one forward pass and chooses a token at each position, as plain decoding would; the guesses that were
chosen stand, and the first that was not is replaced by what was. Nothing is weighed or rejected at random: position p of a sample always draws
with the same uniform number, so a round writes the very tokens plain decoding writes, greedy or sampled, thinking budgets and stop strings included.
The guesses draw with those same numbers, which makes them agree as often as the two distributions do.

The block keeps keys and values of its own. Holes in them (rounds that did not speculate, prefixes that were not read again) cost a guess now and
then, never a token: attention has no positions here, and every guess is checked.

Shapes: A rows, T tokens read in a round, K guesses, S slots, D hidden size.
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from model.cache import Cache


class Drafter:
    """Guesses of every slot, tokens_SK, and the draft block's cache."""

    def __init__(self, lm, cache: Cache, guesses: int, *, always: bool = False) -> None:
        self.lm, self.guesses = lm, guesses
        self.cache = lm.draft_cache(cache.slots, cache.max_length + guesses)
        self.tokens_SK = np.zeros((cache.slots, guesses), dtype=np.int64)
        self.payoff = Payoff(always=always)

    def read(self, slots: list[int], hidden_UTD: Tensor, ids_UT: Tensor, lengths: list[int]) -> None:
        """Take in prompts (or pieces of them): the state at t with token t + 1."""
        shorter = [max(0, n - 1) for n in lengths]
        if max(shorter):
            self.lm.draft_hidden(hidden_UTD[:, :-1], ids_UT[:, 1:], self.cache, slots=slots, lengths=shorter)

    def guess(self, first: int, hidden_ATD: Tensor, tokens_AT: np.ndarray, counts_A: np.ndarray, choose: Callable[[Tensor, int], np.ndarray]) -> None:
        """The guesses of slots first, first+1, ... after they wrote tokens_AT[:, :count], each the successor of a state in hidden_ATD.
        `choose(logits_AV, i)` draws the i-th token from here as the sampler will."""
        here, rows = slice(first, first + len(counts_A)), np.arange(len(counts_A))
        slots, longest = rows + first, int(counts_A.max())
        hidden_ATD, ids_AT = hidden_ATD[:, :longest], torch.from_numpy(tokens_AT[:, :longest])
        hidden_AD = self.lm.draft_hidden(hidden_ATD, ids_AT, self.cache, slots=slots, lengths=counts_A)[rows, counts_A - 1]
        lengths = self.cache.lengths[here].clone()
        for i in range(self.guesses):
            tokens_A = self.tokens_SK[here, i] = choose(self.lm.logits(hidden_AD), i)
            if i + 1 < self.guesses:
                hidden_AD = self.lm.draft_hidden(hidden_AD[:, None], torch.from_numpy(tokens_A)[:, None], self.cache, slots=slots)[:, 0]
        self.cache.lengths[here] = lengths  # what was only guessed is written over

    def copy(self, source: list[int], target: list[int]) -> None:
        self.cache.copy(source, target)
        self.tokens_SK[target] = self.tokens_SK[source]


class Payoff:
    """Does a round earn what it costs? It writes `tokens` a row and takes as long as `cost` plain steps; guessing goes on while tokens > MARGIN * cost.

    Both are measured while running (moving averages), apart for 1, 2-3, 4-7, ... sequences, for a pass over many rows is bound by arithmetic and
    one over few by reading weights. The loser is tried again every PROBE steps, TRIES times: as many as a call
    makes rounds, which share the time Python takes. Times decide how fast tokens come, never which."""

    FIRST, PROBE, TRIES, WEIGHT, MARGIN = 16, 1024, 16, 0.15, 1.05  # near break-even the clock cannot tell, and plain steps bring tokens more evenly

    def __init__(self, *, always: bool = False) -> None:
        self.always = always
        self.steps: dict[int, int] = {}
        self.seconds: dict[tuple[int, bool], float] = {}  # (size, speculative) -> of one pass
        self.written: dict[int, float] = {}  # size -> tokens a row and round
        self.rounds = self.tokens = 0  # of all rows, for the acceptance length

    @property
    def acceptance_length(self) -> float:
        """Tokens a row writes per round, 1 (no guess stood) to K + 1; nan before the first round."""
        return self.tokens / self.rounds if self.rounds else float("nan")

    @property
    def wanted(self) -> bool:
        """Whether guessing pays at some size, or nobody knows yet: otherwise prompts need not be read for it."""
        sizes = {size for size, _ in self.seconds}
        return self.always or any(self.steps.get(size, 0) <= 2 * self.FIRST or self.pays(size) for size in sizes) or not sizes

    def next(self, active: int) -> bool:
        """Whether the next step should speculate."""
        step = self.steps.get(active.bit_length(), 0)
        if self.always or step < 2 * self.FIRST:
            return self.always or step < self.FIRST
        return self.pays(active.bit_length()) == (step % self.PROBE >= self.TRIES)

    def stretch(self, active: int) -> int:
        """Steps until `next` looks again."""
        step = self.steps.get(active.bit_length(), 0)
        if step < 2 * self.FIRST:
            return self.FIRST - step % self.FIRST
        step %= self.PROBE
        return (self.TRIES if step < self.TRIES else self.PROBE) - step

    def pays(self, size: int) -> bool:
        plain, guessing = self.seconds.get((size, False)), self.seconds.get((size, True))
        return plain is not None and guessing is not None and self.written[size] * plain > self.MARGIN * guessing

    def note(self, active: int, guessed: bool, seconds: float, tokens: int, rounds: int | None = None) -> None:
        """A step of `active` rows wrote `tokens` in all; or several steps did, `rounds` of all rows together."""
        size, rounds = active.bit_length(), rounds or active
        self.steps[size] = self.steps.get(size, 0) + rounds // active
        _average(self.seconds, (size, guessed), seconds * active / rounds, self.WEIGHT)
        if guessed:
            _average(self.written, size, tokens / rounds, self.WEIGHT)
            self.rounds += rounds
            self.tokens += tokens


def _average(values: dict, key, new: float, weight: float) -> None:
    values[key] = new if key not in values else (1 - weight) * values[key] + weight * new
