"""Continuous batching: many sequences in fixed slots of one cache, one forward pass a step for all of them.

The running sequences always fill slots 0..A-1 without a hole, because then the model updates its states in place; when one
finishes, the last one moves into its place (one row copied, once, instead of every row gathered on every step). Freed slots are
refilled together: a step either admits waiting sequences (their prompts run as one right-padded batch) or gives each running
sequence its next token. Equal prompts are run once and their state copied.

Everything kept per slot is a numpy column, so a step costs a few array operations however many sequences run; Python loops only
over sequences that start or finish.

Shapes: A active slots, S slots, V vocabulary.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from model.cache import Cache
from model.engine import sampling
from model.engine.budget import ThinkingBudget
from model.engine.params import CompletionOutput, SamplingParams
from model.engine.sampling import stream_key


@dataclass(eq=False)
class Sequence:
    """One sample being written. `output` is filled when it finishes."""

    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    limit: int  # new tokens at most
    output: CompletionOutput
    slot: int = -1
    aborted: bool = False
    stream: bool = False  # somebody reads along
    stop_check: Callable[[list[int], int], str | None] | None = field(default=None, repr=False)


class Scheduler:
    """Sequences wait, run, finish. `step()` does one forward pass and returns those that finished."""

    def __init__(self, lm, cache: Cache, budget: ThinkingBudget, eos_ids: list[int], *, prefill_tokens: int = 8192) -> None:
        self.lm, self.cache, self.budget, self.eos_ids = lm, cache, budget, eos_ids
        self.prefill_tokens = prefill_tokens
        slots, vocabulary = cache.slots, lm.config.vocab_size
        self.slots = slots
        self.refill = max(1, slots // 8)  # admit once so many slots are free: a prompt pass is dear, an idle slot is not
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.tokens_SL = np.zeros((slots, cache.max_length), dtype=np.int32)
        self.logprobs_SL = np.zeros((slots, cache.max_length), dtype=np.float32)
        self.forced_SL = np.zeros((slots, cache.max_length), dtype=bool)
        self.column = {
            "last": np.zeros(slots, np.int64), "written": np.zeros(slots, np.int64), "limit": np.zeros(slots, np.int64),
            "temperature": np.zeros(slots, np.float32), "top_k": np.zeros(slots, np.int64), "top_p": np.ones(slots, np.float64),
            "key": np.zeros(slots, np.uint64), "stop_set": np.zeros(slots, np.int64), "logprobs": np.zeros(slots, bool),
            "strings": np.zeros(slots, bool),
        }
        self.stop_sets: dict[tuple[int, ...], int] = {}
        self.stop_UV = np.zeros((0, vocabulary), dtype=bool)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """Admit if there is room and somebody waits, else write one token for everyone running."""
        dropped = self.drop_aborted()
        room = self.slots - len(self.running)
        if self.waiting and room >= min(len(self.waiting), self.refill):
            return dropped + self._admit(room)
        if not self.running:
            return dropped
        active = len(self.running)
        last_A1 = torch.from_numpy(self.column["last"][:active])[:, None]
        hidden_A1D = self.lm.hidden(last_A1, cache=self.cache)
        return dropped + self._write(self._logits(hidden_A1D[:, 0]), 0)

    def text_ids(self, sequence: Sequence) -> list[int]:
        """Tokens a running sequence has written so far."""
        return self.tokens_SL[sequence.slot, :self.column["written"][sequence.slot]].tolist()

    def written(self, sequence: Sequence, seen: int = 0) -> tuple[list[int], list[float] | None]:
        """Tokens a running sequence has written beyond the first `seen`, and their log-probabilities if it wants them."""
        if sequence.slot < 0:
            return [], None
        new = slice(seen, int(self.column["written"][sequence.slot]))
        logprobs = self.logprobs_SL[sequence.slot, new].tolist() if sequence.params.logprobs else None
        return self.tokens_SL[sequence.slot, new].tolist(), logprobs

    # ---- starting

    def _admit(self, room: int) -> list[Sequence]:
        """Run the prompts of as many waiting sequences as fit in one prompt pass, and write their first tokens."""
        prompts: dict[tuple[int, ...], list[Sequence]] = {}
        longest = taken = 0
        while self.waiting and taken < room:
            ids = tuple(self.waiting[0].prompt_ids)
            if ids not in prompts:
                longest_now = max(longest, len(ids))
                if prompts and longest_now * (len(prompts) + 1) > self.prefill_tokens:
                    break
                longest = longest_now
            prompts.setdefault(ids, []).append(self.waiting.popleft())
            taken += 1
        # one of each prompt first, in a row, so that the prompt pass writes neighbouring slots; then the copies
        first, unique = len(self.running), len(prompts)
        order = [group[0] for group in prompts.values()] + [s for group in prompts.values() for s in group[1:]]
        source = list(range(unique)) + [i for i, group in enumerate(prompts.values()) for _ in group[1:]]
        padded = np.zeros((unique, longest), dtype=np.int64)
        for row, ids in enumerate(prompts):
            padded[row, :len(ids)] = ids
        lengths = [len(ids) for ids in prompts]
        where = list(range(first, first + unique))
        self.cache.reset(where)
        hidden_UTD = self.lm.hidden(torch.from_numpy(padded), cache=self.cache, slots=where, lengths=lengths)
        if len(order) > unique:
            self.cache.copy([first + i for i in source[unique:]], list(range(first + unique, first + len(order))))
        for slot, sequence in enumerate(order, start=first):
            self._occupy(slot, sequence)
        logits_UV = self._logits(hidden_UTD[torch.arange(unique), torch.tensor(lengths) - 1])
        return self._write(logits_UV[source], first)

    def _occupy(self, slot: int, sequence: Sequence) -> None:
        params, column = sequence.params, self.column
        sequence.slot = slot
        self.running.append(sequence)
        values = {
            "written": 0, "limit": sequence.limit, "temperature": params.temperature, "top_k": max(0, params.top_k), "top_p": params.top_p,
            "key": stream_key(sequence.seed, sequence.output.index), "stop_set": self._stop_set(params), "logprobs": params.logprobs,
            "strings": bool(params.stop),
        }
        for name, value in values.items():
            column[name][slot] = value
        self.forced_SL[slot] = False
        self.budget.start(slot, sequence.prompt_ids, params.thinking_budget, params.thinking_grace)

    def _stop_set(self, params: SamplingParams) -> int:
        ids = tuple(sorted({*params.stop_token_ids, *(() if params.ignore_eos else self.eos_ids)}))
        if ids not in self.stop_sets:
            row = np.zeros((1, self.stop_UV.shape[1]), dtype=bool)
            row[0, list(ids)] = True
            self.stop_sets[ids] = len(self.stop_UV)
            self.stop_UV = np.concatenate([self.stop_UV, row])
        return self.stop_sets[ids]

    # ---- writing

    def _logits(self, hidden_AD: torch.Tensor) -> torch.Tensor:
        return self.lm.lm_head(hidden_AD).float()

    def _write(self, logits_AV: torch.Tensor, first: int) -> list[Sequence]:
        """Choose and record a token for slots first, first+1, ...; returns the sequences that end with it."""
        slots_A = np.arange(first, len(self.running))
        rows = slice(first, len(self.running))
        column = self.column
        at_A = column["written"][rows]
        uniform_A = torch.from_numpy(sampling.uniforms(column["key"][rows], at_A))
        chosen_A, normaliser_A = sampling.sample(
            logits_AV, torch.from_numpy(column["temperature"][rows]), torch.from_numpy(column["top_k"][rows]),
            torch.from_numpy(column["top_p"][rows]), uniform_A)
        tokens_A = chosen_A.numpy().copy()
        if self.budget.used:
            forced_rows, forced_tokens = self.budget.forced(slots_A)
            tokens_A[forced_rows] = forced_tokens
            self.budget.update(slots_A, tokens_A, forced_rows)
            self.forced_SL[slots_A[forced_rows], at_A[forced_rows]] = True
        if column["logprobs"][rows].any():
            self.logprobs_SL[slots_A, at_A] = sampling.logprobs(logits_AV, torch.from_numpy(tokens_A), normaliser_A).numpy()
        self.tokens_SL[slots_A, at_A] = tokens_A
        column["last"][rows] = tokens_A
        column["written"][rows] += 1
        stopped_A = self.stop_UV[column["stop_set"][rows], tokens_A]
        full_A = column["written"][rows] >= column["limit"][rows]
        ended: dict[int, tuple[str, int | str | None]] = {}
        for row in np.flatnonzero(stopped_A | full_A).tolist():
            ended[first + row] = ("stop", int(tokens_A[row])) if stopped_A[row] else ("length", None)
        for slot in (np.flatnonzero(column["strings"][rows]) + first).tolist():
            self._check_strings(slot, ended)
        return self._release(ended)

    def _check_strings(self, slot: int, ended: dict[int, tuple[str, int | str | None]]) -> None:
        sequence = self.running[slot]
        assert sequence.stop_check is not None
        found = sequence.stop_check(self.tokens_SL[slot, :self.column["written"][slot]].tolist(), int(self.column["last"][slot]))
        if found is not None:
            ended[slot] = ("stop", found)

    # ---- finishing

    def drop_aborted(self) -> list[Sequence]:
        """End sequences marked `aborted`, waiting or running; their slots are free at once."""
        dropped = [s for s in self.waiting if s.aborted]
        if dropped:
            self.waiting = deque(s for s in self.waiting if not s.aborted)
            for sequence in dropped:
                sequence.output.finish_reason = "abort"
        return dropped + self._release({s.slot: ("abort", None) for s in self.running if s.aborted})

    def _release(self, ended: dict[int, tuple[str, int | str | None]]) -> list[Sequence]:
        """Fill the outputs of the ended slots and close the holes they leave."""
        done = []
        for slot in sorted(ended):
            sequence = self.running[slot]
            written, output = int(self.column["written"][slot]), sequence.output
            output.finish_reason, output.stop_reason = ended[slot]
            output.token_ids = self.tokens_SL[slot, :written].tolist()
            output.forced_positions = np.flatnonzero(self.forced_SL[slot, :written]).tolist()
            if sequence.params.logprobs:
                output.logprobs = self.logprobs_SL[slot, :written].tolist()
            done.append(sequence)
        if done:
            remaining = len(self.running) - len(done)
            holes = [slot for slot in sorted(ended) if slot < remaining]
            movers = [slot for slot in range(remaining, len(self.running)) if slot not in ended]
            if holes:
                self._move(movers, holes)
            del self.running[remaining:]
        return done

    def _move(self, source: list[int], target: list[int]) -> None:
        self.cache.copy(source, target)
        self.budget.copy(source, target)
        reach = int(self.column["written"][source].max())
        for table in (self.tokens_SL, self.logprobs_SL, self.forced_SL):
            table[target, :reach] = table[source, :reach]
        for values in self.column.values():
            values[target] = values[source]
        for a, b in zip(source, target):
            self.running[b] = self.running[a]
            self.running[b].slot = b
