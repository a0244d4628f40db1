"""From logits to tokens that are written down: choosing, forcing, recording, and who ends with what it wrote.

Shapes: A rows (slots first, first+1, ...), T positions read at once (1, or 1 + guesses), V vocabulary.
"""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.engine import sampling
from model.engine.budget import ThinkingBudget
from model.engine.slots import Slots

Ended = dict[int, tuple[str, int | str | None]]  # slot -> finish_reason, stop_reason


class Writer:
    """Writes tokens into slots."""

    def __init__(self, slots: Slots, budget: ThinkingBudget) -> None:
        self.slots, self.budget = slots, budget

    def choose(self, logits_ATV: Tensor, first: int, at_AT: np.ndarray) -> tuple[np.ndarray, Tensor | None]:
        """Tokens [A,T] and log normalisers [A*T] (or None): what each row draws at positions `at` of its sample."""
        slots, (rows, count, vocabulary) = self.slots, logits_ATV.shape
        if not slots.sampled:
            return logits_ATV.numpy().argmax(-1), None
        here = slice(first, first + rows)
        temperature, top_k, top_p, key = (np.repeat(column[here], count) for column in (slots.temperature, slots.top_k, slots.top_p, slots.key))
        uniform = torch.from_numpy(sampling.uniforms(key, at_AT.reshape(-1)))
        chosen, normaliser = sampling.sample(logits_ATV.reshape(-1, vocabulary), *map(torch.from_numpy, (temperature, top_k, top_p)), uniform)
        return chosen.view(rows, count).numpy(), normaliser

    def write(self, logits_ATV: Tensor, first: int, guesses_AK: np.ndarray) -> tuple[np.ndarray, np.ndarray, Ended]:
        """Choose and record tokens: (tokens [A,T], how many of them each row wrote [A], which slots end).

        A row writes its token at the first position, and goes on to the next position while what it wrote is what had been guessed there."""
        slots, (rows, length, _) = self.slots, logits_ATV.shape
        here, slots_A = slice(first, first + rows), np.arange(first, first + rows)
        written_A = slots.written[here]
        at_AT = written_A[:, None] + np.arange(length)
        steered_ATV = self._steer(logits_ATV, first)
        tokens_AT, normaliser = self.choose(steered_ATV, first, at_AT)
        counts_A = np.ones(rows, np.int64)
        if length > 1:
            alike_A = np.cumprod(tokens_AT[:, :-1] == guesses_AK, 1).sum(1)
            alike_A[slots.steered - first] = 0  # what comes next depends on what was written: one token a step
            counts_A += np.where(self.budget.watching(slots_A), 0, alike_A) if self.budget.used else alike_A
        if self.budget.used:
            forced_rows, forced_tokens = self.budget.forced(slots_A)
            tokens_AT[forced_rows, 0] = forced_tokens
            self.budget.update(slots_A, tokens_AT[:, 0], forced_rows)
            slots.forced_SL[slots_A[forced_rows], at_AT[forced_rows, 0]] = True
        if slots.logprobs:
            if steered_ATV is not logits_ATV and normaliser is not None:
                normaliser.view(rows, length)[slots.steered[slots.steered >= first] - first] = torch.nan  # of another distribution
            logprobs = sampling.logprobs(logits_ATV.flatten(0, 1), torch.from_numpy(tokens_AT.reshape(-1)), normaliser)
            slots.logprobs_SL[slots_A[:, None], at_AT] = logprobs.numpy().reshape(at_AT.shape)
        slots.tokens_SL[slots_A[:, None], at_AT] = tokens_AT
        ended = self._ends(first, tokens_AT, counts_A)
        for slot in (slot for slot in slots.with_top if slot >= first):
            params, output = slots.running[slot].params, slots.running[slot].output
            output.top_logprobs += sampling.most_likely(logits_ATV[slot - first, :counts_A[slot - first]], params.top_logprobs)
        self._note(first, tokens_AT, counts_A)
        return tokens_AT, counts_A, ended

    def write_plain(self, tokens_AT: np.ndarray, counts_A: np.ndarray) -> Ended:
        """Record tokens that are chosen already, in slots that are all `plain` (without a budget), counts[a] of each row; returns which slots end."""
        row, t = np.nonzero(np.arange(tokens_AT.shape[1]) < counts_A[:, None])
        self.slots.tokens_SL[row, self.slots.written[row] + t] = tokens_AT[row, t]
        ended = self._ends(0, tokens_AT, counts_A)
        self._note(0, tokens_AT, counts_A)
        return ended

    def _note(self, first: int, tokens_AT: np.ndarray, counts_A: np.ndarray) -> None:
        here = slice(first, first + len(tokens_AT))
        self.slots.last[here] = tokens_AT[np.arange(len(tokens_AT)), counts_A - 1]
        self.slots.written[here] += counts_A

    def _steer(self, logits_ATV: Tensor, first: int) -> Tensor:
        """Logits as their own requests and grammars change them; a copy, if any does."""
        watched = [slot for slot in self.slots.steered if slot >= first]
        if not watched:
            return logits_ATV
        logits_ATV = logits_ATV.clone()
        for slot in watched:
            sequence, row_V = self.slots.running[slot], logits_ATV[slot - first, 0]
            if sequence.adjustment:
                sequence.adjustment.apply(row_V, self.slots.tokens_SL[slot, :self.slots.written[slot]])
            if sequence.matcher:
                row_V.masked_fill_(~sequence.matcher.allowed(), -torch.inf)
        return logits_ATV

    def _ends(self, first: int, tokens_AT: np.ndarray, counts_A: np.ndarray) -> Ended:
        """Which slots end with what they wrote, and why; shortens `counts` to what they wrote until then."""
        slots, here = self.slots, slice(first, first + len(tokens_AT))
        left_A = slots.limit[here] - slots.written[here]
        stops_AT = slots.stop_UV[slots.stop_set[here][:, None], tokens_AT]
        ended: Ended = {}
        if (counts_A >= left_A).any() or stops_AT.any():
            np.minimum(counts_A, left_A, out=counts_A)
            ended = {first + int(row): ("length", None) for row in np.flatnonzero(counts_A == left_A)}
            stops_AT &= np.arange(tokens_AT.shape[1]) < counts_A[:, None]
            for row in np.flatnonzero(stops_AT.any(1)).tolist():
                counts_A[row] = stops_AT[row].argmax() + 1
                ended[first + row] = ("stop", int(tokens_AT[row, counts_A[row] - 1]))
        for slot in (slot for slot in slots.with_stops if slot >= first):
            sequence, start, row = slots.running[slot], int(slots.written[slot]), slot - first
            for count in range(1, counts_A[row] + 1):
                found = sequence.stop_check(slots.tokens_SL[slot, :start + count].tolist(), int(tokens_AT[row, count - 1]))
                if found is not None:
                    counts_A[row], ended[int(slot)] = count, ("stop", found)
                    break
        for slot in (slot for slot in slots.steered if slot >= first and slots.running[slot].matcher):
            slots.running[slot].matcher.accept(int(tokens_AT[slot - first, 0]))
        return ended
