"""Continuous batching: many sequences in fixed slots of one cache, joining and leaving between steps.

A step gives each running sequence its next token (or several: `speculate`), then reads a bounded number of prompt tokens (`reading`), so its time is
bounded whatever arrives. Python loops only over sequences that start or finish, or that a grammar or a stop string watches.

Shapes: A active rows, T positions read at once (1, or 1 + guesses), D hidden size.
"""
from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from model.cache import Cache
from model.engine.budget import ThinkingBudget
from model.engine.prefix import PrefixStore
from model.engine.reading import Reader
from model.engine.slots import Sequence, Slots
from model.engine.speculate import Drafter
from model.engine.writing import Ended, Writer
from model.packed import Packed

PREFILL_TOKENS = 8192  # of prompts in one step


class Scheduler:
    """Sequences wait, run, finish. `step()` moves everybody on and returns those that finished."""

    def __init__(self, lm, cache: Cache, budget: ThinkingBudget, eos_ids: list[int], *, prefill_tokens: int = PREFILL_TOKENS, memory: int | None = None,
                 prefixes: PrefixStore | None = None, drafter: Drafter | None = None) -> None:
        self.lm, self.cache, self.budget, self.prefixes, self.drafter = lm, cache, budget, prefixes, drafter
        self.slots = Slots(cache.slots, cache.max_length + (drafter.guesses if drafter else 0), lm.config.vocab_size, eos_ids)
        self.reader = Reader(lm, cache, self.slots, prefill_tokens=prefill_tokens, memory=memory, prefixes=prefixes, drafter=drafter)
        self.writer = Writer(self.slots, budget)
        self.guessing = False  # whether the slots hold guesses for the next step

    @property
    def running(self) -> list[Sequence]:
        return self.slots.running

    @property
    def busy(self) -> bool:
        return bool(self.running or self.reader.waiting or self.reader.long)

    def add(self, sequence: Sequence) -> None:
        self.reader.waiting.append(sequence)

    @torch.inference_mode()
    def step(self, rounds: int = 1) -> list[Sequence]:
        """Write for everyone running, then read prompts if there is room and somebody waits. More `rounds` are taken where nobody could join or leave in
        between, and nothing asks for a look at each token: a call of compiled code then makes many."""
        done = self.drop_aborted()
        if self.running:
            done += self._decode(rounds)
        if read := self.reader.read():
            sequences, hidden_AD = read
            first = len(self.running)
            self.slots.occupy(sequences)
            for sequence in sequences:
                self.budget.start(sequence.slot, sequence.prompt_ids, sequence.params.thinking_budget, sequence.params.thinking_grace)
            done += self._write(hidden_AD[:, None], first, np.zeros((len(sequences), 0), np.int64))
        return done

    def written(self, sequence: Sequence, seen: int = 0) -> tuple[list[int], list[float] | None]:
        """Tokens a running sequence has written beyond the first `seen`, and their log-probabilities if it wants them."""
        if sequence.slot < 0:
            return [], None
        new = slice(seen, int(self.slots.written[sequence.slot]))
        logprobs = self.slots.logprobs_SL[sequence.slot, new].tolist() if sequence.params.logprobs else None
        return self.slots.tokens_SL[sequence.slot, new].tolist(), logprobs

    def drop_aborted(self) -> list[Sequence]:
        """End sequences marked `aborted`, waiting or running; their slots are free at once."""
        dropped = self.reader.drop_aborted()
        for sequence in dropped:
            sequence.output.finish_reason = "abort"
        return dropped + self._release({s.slot: ("abort", None) for s in self.running if s.aborted})

    def _decode(self, rounds: int) -> list[Sequence]:
        """The next token of everyone running, and as many more as were guessed right."""
        begun, active, guessed = time.perf_counter(), len(self.running), self.guessing
        read_AT = self.slots.last[:active, None]
        if guessed:
            read_AT = np.concatenate([read_AT, self.drafter.tokens_SK[:active]], 1)
        if self.slots.plain and not self.budget.used and (packed := self.lm.packed()):
            return self._decode_plain(packed, read_AT, begun, 1 if self.reader.ready or len(self.slots.with_stops) else rounds)
        hidden_ATD = self.lm.hidden(torch.from_numpy(read_AT), cache=self.cache, tentative=guessed)
        return self._write(hidden_ATD, 0, read_AT[:, 1:], begun)

    def _decode_plain(self, packed: Packed, read_AT: np.ndarray, begun: float, rounds: int) -> list[Sequence]:
        """The same where all are greedy and ask for nothing but tokens: one compiled call chooses, checks guesses and makes new ones, until somebody ends."""
        slots, drafter, (active, length) = self.slots, self.drafter, read_AT.shape
        self.guessing = drafter is not None and drafter.payoff.next(active)
        guesses = drafter.guesses if self.guessing else 0
        if drafter:
            rounds = min(rounds, drafter.payoff.stretch(active)) if length == 1 + guesses else 1
        ends = slots.limit[:active] - slots.written[:active], slots.stop_set[:active], slots.stop_UV
        tokens_AT, counts_A, passes, guesses_AK = packed.greedy(read_AT, self.cache, drafter and drafter.cache, guesses, rounds, ends)
        ended = self.writer.write_plain(tokens_AT, counts_A)
        if drafter:
            if self.guessing:
                drafter.tokens_SK[:active] = guesses_AK
            drafter.payoff.note(active, length > 1, time.perf_counter() - begun, int(counts_A.sum()), passes)
        return self._release(ended)

    def _write(self, hidden_ATD: Tensor, first: int, guesses_AK: np.ndarray, begun: float | None = None) -> list[Sequence]:
        """Tokens for slots first, first+1, ... from their hidden states; returns the sequences that end with them."""
        tokens_AT, counts_A, ended = self.writer.write(self.lm.logits(hidden_ATD), first, guesses_AK)
        if guesses_AK.shape[1]:
            self.cache.accept(counts_A)
        if self.drafter:
            self._guess(first, hidden_ATD, tokens_AT, counts_A)
            if begun is not None:
                self.drafter.payoff.note(len(counts_A), guesses_AK.shape[1] > 0, time.perf_counter() - begun, int(counts_A.sum()))
        return self._release(ended)

    def _guess(self, first: int, hidden_ATD: Tensor, tokens_AT: np.ndarray, counts_A: np.ndarray) -> None:
        """Guess what the next step will choose, if that pays."""
        if first == 0:
            self.guessing = self.drafter.payoff.next(len(self.running))
        if self.guessing:
            at_A1 = self.slots.written[first:len(self.running), None]
            self.drafter.guess(first, hidden_ATD, tokens_AT, counts_A,
                               lambda logits_AV, i: self.writer.choose(logits_AV[:, None], first, at_A1 + i)[0][:, 0])

    def _release(self, ended: Ended) -> list[Sequence]:
        """Fill the outputs of the ended slots and close the holes they leave."""
        if not ended:
            return []
        done, before = [self.running[slot] for slot in sorted(ended)], len(self.running)
        for sequence in done:
            self.slots.fill(sequence, *ended[sequence.slot])
        source, target = self.slots.close(list(ended))
        self.budget.copy(source, target)
        self._move_states(source, target)
        if self.reader.long:
            self._move_states([before], [len(self.running)])
        return done

    def _move_states(self, source: list[int], target: list[int]) -> None:
        self.cache.copy(source, target)
        if self.drafter:
            self.drafter.copy(source, target)
