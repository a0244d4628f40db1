"""Continuous batching: many sequences in fixed slots of one cache, joining and leaving between steps.

The running sequences always fill slots 0..A-1 without a hole, because then the model updates its states in place; when one
finishes, the last one moves into its place (one row copied, once, instead of every row gathered on every step). A step gives each
running sequence its next token (or several: `speculate`), then reads at most `prefill_tokens` of prompts: a padded batch of short ones,
or the next chunk of a long one, which waits in slot A until it is read. So the time of a step is bounded whatever arrives. Equal prompts are
read once and their state copied.

A sequence is admitted when a slot is free and its bytes, keys and values up to its limit and its Mamba states, fit in what `memory` leaves.

Everything kept per slot is a numpy column, so a step costs a few array operations however many sequences run; Python loops only
over sequences that start or finish, or that a grammar or a stop string watches.

Shapes: A active rows, T positions read at once (1, or 1 + guesses), S slots, V vocabulary, U unique prompts.
"""
from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model.cache import Cache
from model.engine import sampling
from model.engine.budget import ThinkingBudget
from model.engine.params import CompletionOutput, SamplingParams
from model.engine.prefix import BLOCK, PrefixStore
from model.engine.sampling import stream_key
from model.engine.speculate import Drafter

if TYPE_CHECKING:
    from model.engine.grammar import Matcher

PREFILL_TOKENS = 8192  # of prompts in one step, padding included: long enough for full-speed products


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
    stop_check: Callable[[list[int], int], str | None] | None = field(default=None, repr=False)
    matcher: Matcher | None = field(default=None, repr=False)


@dataclass
class _Reading:
    """A prompt too long for one step: the samples it is for (in slot A, the first of them), and how much of it is read."""

    group: list[Sequence]
    done: int


class Scheduler:
    """Sequences wait, run, finish. `step()` moves everybody on and returns those that finished."""

    def __init__(self, lm, cache: Cache, budget: ThinkingBudget, eos_ids: list[int], *, prefill_tokens: int = PREFILL_TOKENS, memory: int | None = None,
                 prefixes: PrefixStore | None = None, drafter: Drafter | None = None) -> None:
        self.lm, self.cache, self.budget, self.eos_ids = lm, cache, budget, eos_ids
        self.prefill_tokens, self.memory, self.prefixes, self.drafter = prefill_tokens, memory, prefixes, drafter
        slots, vocabulary = cache.slots, lm.config.vocab_size
        self.slots = slots
        self.refill = max(1, slots // 8)  # admit once so many slots are free: a prompt pass is dear, an idle slot is not
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.reading: _Reading | None = None
        self.guessing = False  # whether the slots hold guesses for the next step
        self.weights_version = 0
        width = cache.max_length + (drafter.guesses if drafter else 0)
        self.tokens_SL = np.zeros((slots, width), dtype=np.int32)
        self.logprobs_SL = np.zeros((slots, width), dtype=np.float32)
        self.versions_SL = np.zeros((slots, width), dtype=np.int32)
        self.forced_SL = np.zeros((slots, width), dtype=bool)
        self.column = {
            "last": np.zeros(slots, np.int64), "written": np.zeros(slots, np.int64), "limit": np.zeros(slots, np.int64),
            "temperature": np.zeros(slots, np.float32), "top_k": np.zeros(slots, np.int64), "top_p": np.ones(slots, np.float64),
            "key": np.zeros(slots, np.uint64), "stop_set": np.zeros(slots, np.int64), "logprobs": np.zeros(slots, bool),
            "strings": np.zeros(slots, bool), "grammar": np.zeros(slots, bool), "top_logprobs": np.zeros(slots, np.int64),
        }
        self.stop_sets: dict[tuple[int, ...], int] = {}
        self.stop_UV = np.zeros((0, vocabulary), dtype=bool)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running or self.reading)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """Write for everyone running, then read prompts if there is room and somebody waits."""
        done = self.drop_aborted()
        if self.running:
            done += self._decode()
        if self.reading:
            return done + self._read_on()
        room = self.slots - len(self.running)
        if self.waiting and room >= min(len(self.waiting), self.refill):
            done += self._admit(room)
        return done

    def written(self, sequence: Sequence, seen: int = 0) -> tuple[list[int], list[float] | None]:
        """Tokens a running sequence has written beyond the first `seen`, and their log-probabilities if it wants them."""
        if sequence.slot < 0:
            return [], None
        new = slice(seen, int(self.column["written"][sequence.slot]))
        logprobs = self.logprobs_SL[sequence.slot, new].tolist() if sequence.params.logprobs else None
        return self.tokens_SL[sequence.slot, new].tolist(), logprobs

    def bytes_of(self, sequence: Sequence) -> int:
        """What a sequence may come to occupy."""
        return self.cache.bytes_of(len(sequence.prompt_ids) + sequence.limit)

    # ---- reading prompts

    def _admit(self, room: int) -> list[Sequence]:
        """Start as many waiting sequences as slots, memory and one step's prompt tokens allow."""
        prompts: dict[tuple[int, ...], list[Sequence]] = {}
        longest = taken = 0
        free = float("inf") if self.memory is None else self.memory - sum(map(self.bytes_of, self.running))
        while self.waiting and taken < room:
            ids = tuple(self.waiting[0].prompt_ids)
            free -= self.bytes_of(self.waiting[0])
            if free < 0:
                break
            if ids not in prompts:
                longest_now = max(longest, len(ids))
                if prompts and longest_now * (len(prompts) + 1) > self.prefill_tokens:
                    break
                longest = longest_now
            prompts.setdefault(ids, []).append(self.waiting.popleft())
            taken += 1
        groups = list(prompts.values())
        if not groups:
            return []
        where = list(range(len(self.running), len(self.running) + len(groups)))
        self.cache.reset(where)
        if self.drafter:
            self.drafter.cache.reset(where)
        if len(groups) == 1:
            return self._read_long(groups[0])
        return self._read(groups, *self._resume(groups))

    def _resume(self, groups: list[list[Sequence]]) -> tuple[list[int], list[list[int]]]:
        """(tokens each prompt need not read, the ends at which reading it pauses: block ends worth remembering, then its own)."""
        done, ends = [0] * len(groups), [[len(group[0].prompt_ids)] for group in groups]
        if self.prefixes:
            for row, group in enumerate(groups):
                ids = group[0].prompt_ids
                done[row], parted = self.prefixes.load(ids, len(self.running) + row)
                ends[row] = sorted({end for end in (parted, (len(ids) - 1) // BLOCK * BLOCK) if end > done[row]}) + ends[row]
        return done, ends

    def _read_long(self, group: list[Sequence]) -> list[Sequence]:
        """A single prompt: in chunks if it is longer than a step may read."""
        (done,), ends = self._resume([group])
        if len(group[0].prompt_ids) - done <= self.prefill_tokens:
            return self._read([group], [done], ends)
        self.reading = _Reading(group, done)
        return self._read_on()

    def _read_on(self) -> list[Sequence]:
        """The next chunk of the long prompt."""
        reading, slot = self.reading, len(self.running)
        ids = reading.group[0].prompt_ids
        if len(ids) - reading.done <= self.prefill_tokens:
            self.reading = None
            end = (len(ids) - 1) // BLOCK * BLOCK
            return self._read([reading.group], [reading.done], [[end] * (self.prefixes is not None and end > reading.done) + [len(ids)]])
        end = max(reading.done + 1, (reading.done + self.prefill_tokens) // BLOCK * BLOCK)
        self._pass([slot], [ids], [reading.done], [end])
        reading.done = end
        if self.prefixes and end % BLOCK == 0:
            self.prefixes.save(ids, slot, end)
        return []

    def _read(self, groups: list[list[Sequence]], done: list[int], ends: list[list[int]]) -> list[Sequence]:
        """Read prompts to their ends, copy them for their other samples, and write everybody's first token."""
        first, unique = len(self.running), len(groups)
        slots, prompts = list(range(first, first + unique)), [group[0].prompt_ids for group in groups]
        hidden_UD = None
        for turn in reversed(range(max(map(len, ends)))):  # rows with fewer pauses join the later passes
            upto = [e[-1 - turn] if turn < len(e) else n for e, n in zip(ends, done)]
            now_UD = self._pass(slots, prompts, done, upto)
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
            target = list(range(first + unique, first + len(order)))
            self.cache.copy([first + i for i in source[unique:]], target)
            if self.drafter:
                self.drafter.copy([first + i for i in source[unique:]], target)
        for slot, sequence in enumerate(order, start=first):
            self._occupy(slot, sequence)
        hidden_AD = hidden_UD[source]
        return self._write(self._logits(hidden_AD)[:, None], hidden_AD[:, None], first)

    def _pass(self, slots: list[int], prompts: list[list[int]], done: list[int], ends: list[int]) -> Tensor:
        """Append prompts[i][done[i]:ends[i]] to slots (neighbours, padded to a rectangle). Returns the last hidden state of each, [U,D]."""
        lengths = [b - a for a, b in zip(done, ends)]
        ids_UT = np.zeros((len(slots), max(lengths)), dtype=np.int64)
        for row, (ids, a, b) in enumerate(zip(prompts, done, ends)):
            ids_UT[row, :b - a] = ids[a:b]
        hidden_UTD = self.lm.hidden(torch.from_numpy(ids_UT), cache=self.cache, slots=slots, lengths=lengths)
        if self.drafter and self.drafter.payoff.wanted:
            self.drafter.read(slots, hidden_UTD, torch.from_numpy(ids_UT), lengths)
        return hidden_UTD[torch.arange(len(slots)), torch.tensor(lengths).clamp(min=1) - 1]

    def _occupy(self, slot: int, sequence: Sequence) -> None:
        params, column = sequence.params, self.column
        sequence.slot = slot
        self.running.append(sequence)
        values = {
            "written": 0, "limit": sequence.limit, "temperature": params.temperature, "top_k": max(0, params.top_k), "top_p": params.top_p,
            "key": stream_key(sequence.seed, sequence.output.index), "stop_set": self._stop_set(params), "logprobs": params.logprobs,
            "strings": bool(params.stop), "grammar": sequence.matcher is not None, "top_logprobs": params.top_logprobs,
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

    def _decode(self) -> list[Sequence]:
        """The next token of everyone running, and as many more as were guessed right."""
        begun, active, guessed = time.perf_counter(), len(self.running), self.guessing
        read_AT = self.column["last"][:active, None]
        if guessed:
            read_AT = np.concatenate([read_AT, self.drafter.tokens_SK[:active]], 1)
        hidden_ATD = self.lm.hidden(torch.from_numpy(read_AT), cache=self.cache, tentative=guessed)
        before = int(self.column["written"][:active].sum())
        done = self._write(self._logits(hidden_ATD), hidden_ATD, 0, read_AT[:, 1:])
        if self.drafter:
            tokens = int(self.column["written"][:len(self.running)].sum()) + sum(len(s.output.token_ids) for s in done) - before
            self.drafter.payoff.note(active, guessed, time.perf_counter() - begun, tokens)
        return done

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.lm.logits(hidden)

    def _choose(self, logits_ATV: Tensor, rows: slice, at_AT: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Tokens [A,T] and log normalisers [A*T] (or None): what each row draws at positions `at` of its sample."""
        count = at_AT.shape[1]
        if not self.column["temperature"][rows].any():
            return logits_ATV.argmax(-1), None
        temperature, top_k, top_p, key = (np.repeat(self.column[name][rows], count) for name in ("temperature", "top_k", "top_p", "key"))
        uniform = torch.from_numpy(sampling.uniforms(key, at_AT.reshape(-1)))
        chosen, normaliser = sampling.sample(logits_ATV.flatten(0, 1), *map(torch.from_numpy, (temperature, top_k, top_p)), uniform)
        return chosen.view(at_AT.shape), normaliser

    def _write(self, logits_ATV: Tensor, hidden_ATD: Tensor, first: int, guesses_AK: np.ndarray | None = None) -> list[Sequence]:
        """Choose and record tokens for slots first, first+1, ...; returns the sequences that end with them.

        A row writes its token at the first position, and goes on to the next position while what it wrote is what had been guessed there."""
        slots_A = np.arange(first, len(self.running))
        rows, every_A = slice(first, len(self.running)), np.arange(len(slots_A))
        column, length = self.column, logits_ATV.shape[1]
        at_AT = column["written"][rows][:, None] + np.arange(length)
        masked_ATV = self._mask_grammars(logits_ATV, rows)
        chosen_AT, normaliser = self._choose(masked_ATV, rows, at_AT)
        if masked_ATV is not logits_ATV:
            normaliser = None  # of the model's own distribution, not the masked one
        tokens_AT, counts_A = chosen_AT.numpy().copy(), np.ones(len(slots_A), np.int64)
        if length > 1:
            watched_A = column["grammar"][rows] | self.budget.watching(slots_A)  # what comes next depends on what was written: one token a step
            counts_A += np.where(watched_A, 0, np.cumprod(tokens_AT[:, :-1] == guesses_AK, 1).sum(1))
        if self.budget.used:
            forced_rows, forced_tokens = self.budget.forced(slots_A)
            tokens_AT[forced_rows, 0] = forced_tokens
            self.budget.update(slots_A, tokens_AT[:, 0], forced_rows)
            self.forced_SL[slots_A[forced_rows], at_AT[forced_rows, 0]] = True
        if column["logprobs"][rows].any():
            logprobs = sampling.logprobs(logits_ATV.flatten(0, 1), torch.from_numpy(tokens_AT.reshape(-1)), normaliser)
            self.logprobs_SL[slots_A[:, None], at_AT] = logprobs.numpy().reshape(at_AT.shape)
        self.tokens_SL[slots_A[:, None], at_AT] = tokens_AT
        self.versions_SL[slots_A[:, None], at_AT] = self.weights_version
        ended = self._ends(first, tokens_AT, counts_A)
        for row in np.flatnonzero(column["top_logprobs"][rows]).tolist():
            sequence = self.running[first + row]
            sequence.output.top_logprobs += sampling.most_likely(logits_ATV[row, :counts_A[row]], sequence.params.top_logprobs)
        column["last"][rows] = tokens_AT[every_A, counts_A - 1]
        column["written"][rows] += counts_A
        if length > 1:
            self.cache.accept(torch.from_numpy(counts_A))
        if self.drafter:
            self._guess(first, hidden_ATD, tokens_AT, counts_A)
        return self._release(ended)

    def _guess(self, first: int, hidden_ATD: Tensor, tokens_AT: np.ndarray, counts_A: np.ndarray) -> None:
        """Guess what the next step will choose, if that pays."""
        if first == 0:
            self.guessing = self.drafter.payoff.next(len(self.running))
        if self.guessing:
            rows = slice(first, len(self.running))
            at_A = self.column["written"][rows]
            self.drafter.guess(first, hidden_ATD, torch.from_numpy(tokens_AT), torch.from_numpy(counts_A),
                               lambda logits_AV, i: self._choose(logits_AV[:, None], rows, at_A[:, None] + i)[0][:, 0])

    def _mask_grammars(self, logits_ATV: Tensor, rows: slice) -> Tensor:
        watched = np.flatnonzero(self.column["grammar"][rows]).tolist()
        if not watched:
            return logits_ATV
        logits_ATV = logits_ATV.clone()
        for row in watched:
            logits_ATV[row, 0].masked_fill_(~self.running[rows.start + row].matcher.allowed(), -torch.inf)
        return logits_ATV

    def _ends(self, first: int, tokens_AT: np.ndarray, counts_A: np.ndarray) -> dict[int, tuple[str, int | str | None]]:
        """Which slots end with what they wrote, and why; shortens `counts` to what they wrote until then."""
        rows = slice(first, len(self.running))
        left_A = self.column["limit"][rows] - self.column["written"][rows]
        np.minimum(counts_A, left_A, out=counts_A)
        ended: dict[int, tuple[str, int | str | None]] = {first + int(row): ("length", None) for row in np.flatnonzero(counts_A == left_A)}
        stops_AT = self.stop_UV[self.column["stop_set"][rows][:, None], tokens_AT] & (np.arange(tokens_AT.shape[1]) < counts_A[:, None])
        for row in np.flatnonzero(stops_AT.any(1)).tolist():
            counts_A[row] = stops_AT[row].argmax() + 1
            ended[first + row] = ("stop", int(tokens_AT[row, counts_A[row] - 1]))
        for row in np.flatnonzero(self.column["strings"][rows]).tolist():
            sequence, start = self.running[first + row], int(self.column["written"][first + row])
            for count in range(1, counts_A[row] + 1):
                found = sequence.stop_check(self.tokens_SL[first + row, :start + count].tolist(), int(tokens_AT[row, count - 1]))
                if found is not None:
                    counts_A[row], ended[first + row] = count, ("stop", found)
                    break
        for row in np.flatnonzero(self.column["grammar"][rows]).tolist():
            self.running[first + row].matcher.accept(int(tokens_AT[row, 0]))
        return ended

    # ---- finishing

    def drop_aborted(self) -> list[Sequence]:
        """End sequences marked `aborted`, waiting or running; their slots are free at once."""
        dropped = [s for s in self.waiting if s.aborted]
        if dropped:
            self.waiting = deque(s for s in self.waiting if not s.aborted)
        if self.reading:
            dropped += [s for s in self.reading.group if s.aborted]
            self.reading.group = [s for s in self.reading.group if not s.aborted]
            if not self.reading.group:
                self.reading = None
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
            output.weights_versions = self.versions_SL[slot, :written].tolist()
            output.forced_positions = np.flatnonzero(self.forced_SL[slot, :written]).tolist()
            if sequence.params.logprobs:
                output.logprobs = self.logprobs_SL[slot, :written].tolist()
            sequence.slot = -1
            done.append(sequence)
        if done:
            before = len(self.running)
            remaining = before - len(done)
            holes = [slot for slot in sorted(ended) if slot < remaining]
            movers = [slot for slot in range(remaining, before) if slot not in ended]
            if holes:
                self._move(movers, holes)
            del self.running[remaining:]
            if self.reading:
                self._move_states([before], [remaining])
        return done

    def _move(self, source: list[int], target: list[int]) -> None:
        self._move_states(source, target)
        self.budget.copy(source, target)
        reach = int(self.column["written"][source].max())
        for table in (self.tokens_SL, self.logprobs_SL, self.versions_SL, self.forced_SL):
            table[target, :reach] = table[source, :reach]
        for values in self.column.values():
            values[target] = values[source]
        for a, b in zip(source, target):
            self.running[b] = self.running[a]
            self.running[b].slot = b

    def _move_states(self, source: list[int], target: list[int]) -> None:
        self.cache.copy(source, target)
        if self.drafter:
            self.drafter.copy(source, target)
