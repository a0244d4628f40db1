"""Reading prompts: many short ones together or the next piece of a long one, a bounded number of tokens a step; equal ones once, known beginnings not at all.

A long prompt waits in the slot behind the running sequences until it is read. Shapes: U unique prompts, D hidden size.
"""
from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.cache import Cache
from model.engine.prefix import BLOCK, PrefixStore
from model.engine.slots import Sequence, Slots
from model.engine.speculate import Drafter

Read = tuple[list[Sequence], Tensor]  # sequences whose prompts are read, in the order of the next slots, and what their first tokens are chosen from [A,D]


@dataclass
class _Long:
    """A prompt too long for one step: the samples it is for (in slot A, the first of them), and how much of it is read."""

    group: list[Sequence]
    done: int


class Reader:
    """Sequences wait here until a slot is free and their bytes, keys and values up to their limits and Mamba states, fit in what `memory` leaves."""

    def __init__(self, lm, cache: Cache, slots: Slots, *, prefill_tokens: int, memory: int | None, prefixes: PrefixStore | None,
                 drafter: Drafter | None) -> None:
        self.lm, self.cache, self.slots = lm, cache, slots
        self.prefill_tokens, self.memory, self.prefixes, self.drafter = prefill_tokens, memory, prefixes, drafter
        self.refill = max(1, cache.slots // 8)  # admit once so many slots are free: a prompt pass is dear, an idle slot is not
        self.waiting: deque[Sequence] = deque()
        self.long: _Long | None = None

    def read(self) -> Read | None:
        """One step's worth of prompts; None while nobody is ready to write."""
        if self.long:
            return self._read_on()
        return self._admit(self.cache.slots - len(self.slots.running)) if self.ready else None

    @property
    def ready(self) -> bool:
        """Whether there is something to read, and slots for those it is for."""
        return self.long is not None or (bool(self.waiting) and self.cache.slots - len(self.slots.running) >= min(len(self.waiting), self.refill))

    def bytes_of(self, sequence: Sequence) -> int:
        """What a sequence may come to occupy."""
        return self.cache.bytes_of(len(sequence.prompt_ids) + sequence.limit)

    def drop_aborted(self) -> list[Sequence]:
        """Take out those marked `aborted`."""
        if not any(s.aborted for s in self.waiting) and not (self.long and any(s.aborted for s in self.long.group)):
            return []
        dropped = [s for s in self.waiting if s.aborted]
        self.waiting = deque(s for s in self.waiting if not s.aborted)
        if self.long:
            dropped += [s for s in self.long.group if s.aborted]
            self.long.group = [s for s in self.long.group if not s.aborted]
            if not self.long.group:
                self.long = None
        return dropped

    def _admit(self, room: int) -> Read | None:
        """Start as many waiting sequences as slots, memory and one step's prompt tokens allow."""
        prompts: dict[tuple[int, ...], list[Sequence]] = {}
        taken = tokens = 0
        free = float("inf") if self.memory is None else self.memory - sum(map(self.bytes_of, self.slots.running))
        while self.waiting and taken < room:
            ids = tuple(self.waiting[0].prompt_ids)
            free -= self.bytes_of(self.waiting[0])
            if free < 0:
                break
            if ids not in prompts:
                tokens += len(ids)
                if prompts and tokens > self.prefill_tokens:
                    break
            prompts.setdefault(ids, []).append(self.waiting.popleft())
            taken += 1
        groups = list(prompts.values())
        if not groups:
            return None
        where = list(range(len(self.slots.running), len(self.slots.running) + len(groups)))
        self.cache.reset(where)
        if self.drafter:
            self.drafter.cache.reset(where)
        done, ends = self._resume(groups)
        if len(groups) == 1 and len(groups[0][0].prompt_ids) - done[0] > self.prefill_tokens:
            self.long = _Long(groups[0], done[0])
            return self._read_on()
        return self._finish(groups, done, ends)

    def _resume(self, groups: list[list[Sequence]]) -> tuple[list[int], list[list[int]]]:
        """(tokens each prompt need not read, the ends at which reading it pauses: block ends worth remembering, then its own)."""
        done, ends = [0] * len(groups), [[len(group[0].prompt_ids)] for group in groups]
        if self.prefixes:
            for row, group in enumerate(groups):
                ids, parted = group[0].prompt_ids, 0
                if not any(s.scores for s in group):  # what is scored must be read
                    done[row], parted = self.prefixes.load(ids, len(self.slots.running) + row)
                ends[row] = sorted({end for end in (parted, (len(ids) - 1) // BLOCK * BLOCK) if end > done[row]}) + ends[row]
        return done, ends

    def _read_on(self) -> Read | None:
        """The next piece of the long prompt."""
        long, slot = self.long, len(self.slots.running)
        ids = long.group[0].prompt_ids
        if len(ids) - long.done <= self.prefill_tokens:
            self.long = None
            end = (len(ids) - 1) // BLOCK * BLOCK
            return self._finish([long.group], [long.done], [[end] * (self.prefixes is not None and end > long.done) + [len(ids)]])
        end = max(long.done + 1, (long.done + self.prefill_tokens) // BLOCK * BLOCK)
        self._pass([slot], [long.group], [long.done], [end])
        long.done = end
        if self.prefixes and end % BLOCK == 0:
            self.prefixes.save(ids, slot, end)
        return None

    def _finish(self, groups: list[list[Sequence]], done: list[int], ends: list[list[int]]) -> Read:
        """Read prompts to their ends and copy them for their other samples."""
        first, unique = len(self.slots.running), len(groups)
        slots, prompts = list(range(first, first + unique)), [group[0].prompt_ids for group in groups]
        hidden_UD = None
        for turn in reversed(range(max(map(len, ends)))):  # rows with fewer pauses join the later passes
            upto = [e[-1 - turn] if turn < len(e) else n for e, n in zip(ends, done)]
            now_UD = self._pass(slots, groups, done, upto)
            moved = torch.tensor([b > a for a, b in zip(done, upto)])[:, None]
            hidden_UD = now_UD if hidden_UD is None else torch.where(moved, now_UD, hidden_UD)
            done = upto
            if self.prefixes and turn:
                for slot, ids, end, e in zip(slots, prompts, done, ends):
                    if turn < len(e):
                        self.prefixes.save(ids, slot, end)
        order = [group[0] for group in groups] + [s for group in groups for s in group[1:]]
        source = list(range(unique)) + [i for i, group in enumerate(groups) for _ in group[1:]]
        if len(order) > unique:
            copies = [first + i for i in source[unique:]], list(range(first + unique, first + len(order)))
            self.cache.copy(*copies)
            if self.drafter:
                self.drafter.copy(*copies)
        return order, hidden_UD[source]

    def _pass(self, slots: list[int], groups: list[list[Sequence]], done: list[int], ends: list[int]) -> Tensor:
        """Append tokens done[i] to ends[i] of each group's prompt to slots, scored for those who ask. Returns the last hidden state of each, [U,D]."""
        lengths, prompts = [b - a for a, b in zip(done, ends)], [group[0].prompt_ids for group in groups]
        ids_UT = np.zeros((len(slots), max(lengths)), dtype=np.int64)
        for row, (ids, a, b) in enumerate(zip(prompts, done, ends)):
            ids_UT[row, :b - a] = ids[a:b]
        hidden_UTD = self.lm.hidden(torch.from_numpy(ids_UT), cache=self.cache, slots=slots, lengths=lengths)
        if self.drafter and self.drafter.payoff.wanted:
            self.drafter.read(slots, hidden_UTD, torch.from_numpy(ids_UT), lengths)
        for hidden_TD, group, a, length in zip(hidden_UTD, groups, done, lengths):
            for scores in dict.fromkeys(s.scores for s in group if s.scores):
                scores.take(self.lm, hidden_TD[:length], a)
        return hidden_UTD[torch.arange(len(slots)), torch.tensor(lengths).clamp(min=1) - 1]
