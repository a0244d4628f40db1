"""What is kept of every running sequence, in numpy columns: a step costs a few array operations however many sequences run.

The running sequences always fill slots 0..A-1 without a hole, because then the model updates its states in place; when one finishes, the last one
moves into its place (one row copied, once, instead of every row gathered on every step).

Shapes: S slots, L tokens a sequence may write, U different sets of stop tokens, V vocabulary.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from model.engine.adjust import Adjustment
from model.engine.params import CompletionOutput, SamplingParams
from model.engine.sampling import stream_key
from model.engine.scoring import PromptScores

if TYPE_CHECKING:
    from model.engine.grammar import Matcher


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
    adjustment: Adjustment | None = field(default=None, repr=False)
    scores: PromptScores | None = field(default=None, repr=False)  # one for all samples of a request
    swaps: list[tuple[int, int]] = field(default_factory=list)  # (tokens written by then, version of the weights from then on)


class Slots:
    """Columns [S] and tables [S,L]; `running` are the sequences in them, in order."""

    def __init__(self, count: int, length: int, vocabulary: int, eos_ids: list[int]) -> None:
        self.eos_ids, self.running = eos_ids, []
        self.last, self.written, self.limit, self.top_k, self.stop_set = (np.zeros(count, np.int64) for _ in range(5))
        self.temperature, self.top_p, self.key = np.zeros(count, np.float32), np.ones(count, np.float64), np.zeros(count, np.uint64)
        self.tokens_SL, self.logprobs_SL = np.zeros((count, length), np.int32), np.zeros((count, length), np.float32)
        self.forced_SL = np.zeros((count, length), bool)
        self._stop_sets: dict[tuple[int, ...], int] = {}
        self.stop_UV = np.zeros((0, vocabulary), bool)
        self.weights_version = 0
        self._look()

    def _look(self) -> None:
        """What any running sequence asks for; most ask for nothing, and then nobody looks again at every step."""
        self.sampled = any(s.params.temperature > 0 for s in self.running)
        self.logprobs = any(s.params.logprobs for s in self.running)
        self.with_stops = np.array([s.slot for s in self.running if s.params.stop], np.int64)
        self.with_top = np.array([s.slot for s in self.running if s.params.top_logprobs], np.int64)
        self.steered = np.array([s.slot for s in self.running if s.matcher or s.adjustment], np.int64)
        self.plain = not (self.sampled or self.logprobs or len(self.with_top) or len(self.steered))  # greedy, and nothing but tokens

    def occupy(self, sequences: list[Sequence]) -> None:
        """Put sequences into the next slots."""
        for slot, sequence in enumerate(sequences, start=len(self.running)):
            params, sequence.slot = sequence.params, slot
            sequence.swaps = [(0, self.weights_version)]
            self.running.append(sequence)
            self.written[slot], self.limit[slot], self.stop_set[slot] = 0, sequence.limit, self._stop_set(params)
            self.temperature[slot], self.top_k[slot], self.top_p[slot] = params.temperature, max(0, params.top_k), params.top_p
            self.key[slot] = stream_key(sequence.seed, sequence.output.index)
            self.forced_SL[slot] = False
        self._look()

    def _stop_set(self, params: SamplingParams) -> int:
        ids = tuple(sorted({*params.stop_token_ids, *(() if params.ignore_eos else self.eos_ids)}))
        if ids not in self._stop_sets:
            row = np.zeros((1, self.stop_UV.shape[1]), bool)
            row[0, list(ids)] = True
            self._stop_sets[ids] = len(self.stop_UV)
            self.stop_UV = np.concatenate([self.stop_UV, row])
        return self._stop_sets[ids]

    def swapped(self) -> None:
        """Tokens written from now on come from new weights."""
        self.weights_version += 1
        for sequence in self.running:
            sequence.swaps.append((int(self.written[sequence.slot]), self.weights_version))

    def fill(self, sequence: Sequence, reason: str, stop: int | str | None) -> None:
        """The output of a sequence that ends."""
        slot, output = sequence.slot, sequence.output
        written = int(self.written[slot])
        output.finish_reason, output.stop_reason = reason, stop
        output.token_ids = self.tokens_SL[slot, :written].tolist()
        output.forced_positions = np.flatnonzero(self.forced_SL[slot, :written]).tolist()
        begins, versions = zip(*sequence.swaps)
        output.weights_versions = np.repeat(versions, np.diff([*begins, written])).tolist()
        if sequence.params.logprobs:
            output.logprobs = self.logprobs_SL[slot, :written].tolist()
        sequence.slot = -1

    def close(self, gone: list[int]) -> tuple[list[int], list[int]]:
        """Close the holes that slots `gone` leave; returns which slots moved, and where to."""
        remaining = len(self.running) - len(gone)
        target = [slot for slot in sorted(gone) if slot < remaining]
        source = [slot for slot in range(remaining, len(self.running)) if slot not in gone]
        for column in (self.last, self.written, self.limit, self.top_k, self.stop_set, self.temperature, self.top_p, self.key):
            column[target] = column[source]
        reach = int(self.written[source].max(initial=0))
        for table in (self.tokens_SL, self.logprobs_SL, self.forced_SL):
            table[target, :reach] = table[source, :reach]
        for a, b in zip(source, target):
            self.running[b] = self.running[a]
            self.running[b].slot = b
        del self.running[remaining:]
        self._look()
        return source, target
