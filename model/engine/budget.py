"""The thinking budget: how a model that thinks is made to stop thinking.

The rule of Nemotron's budget tool: once `budget` thinking tokens are written, close thinking right after the next newline, so
that no sentence is cut; at `budget + grace` close it anywhere; leave a model alone that closes by itself. Tokens are counted from
the last <think>, also when that stands in the prompt. Closing means putting the end tokens (usually just </think>) in place of
what was sampled, one a step.

All slots at once: a few int arrays, no loop over slots.
"""
from __future__ import annotations

import numpy as np

_OFF, _BEFORE, _THINKING, _CLOSED = range(4)


class ThinkingBudget:
    """Thinking state of every slot. Costs nothing until `enable` is called, with newline_V: bool [V], tokens with a newline in them."""

    def __init__(self, slots: int, think_id: int, end_ids: list[int]) -> None:
        self.think_id, self.end_ids, self.newline_V = think_id, np.asarray(end_ids, dtype=np.int64), np.zeros(0, dtype=bool)
        self.phase_S = np.full(slots, _OFF, dtype=np.int8)
        self.budget_S, self.grace_S, self.count_S, self.forced_S = (np.zeros(slots, dtype=np.int64) for _ in range(4))
        self.after_newline_S = np.zeros(slots, dtype=bool)

    @property
    def used(self) -> bool:
        return len(self.newline_V) > 0

    def enable(self, newline_V: np.ndarray) -> None:
        self.newline_V = newline_V

    def start(self, slot: int, prompt_ids: list[int], budget: int | None, grace: int) -> None:
        """Reads the prompt: thinking may already be open at its end."""
        self.phase_S[slot] = _OFF
        if budget is None:
            return
        self.budget_S[slot], self.grace_S[slot], self.forced_S[slot] = budget, grace, 0
        opened = len(prompt_ids) - 1 - prompt_ids[::-1].index(self.think_id) if self.think_id in prompt_ids else -1
        closed = self.end_ids[-1] in prompt_ids[opened + 1:] if opened >= 0 else False
        self.phase_S[slot] = _BEFORE if opened < 0 or closed else _THINKING
        self.count_S[slot] = len(prompt_ids) - opened - 1 if opened >= 0 else 0
        self.after_newline_S[slot] = bool(self.newline_V[prompt_ids[-1]])

    def watching(self, slots_A: np.ndarray) -> np.ndarray:
        """bool [A]: slots whose next token may yet be forced."""
        return (self.phase_S[slots_A] == _BEFORE) | (self.phase_S[slots_A] == _THINKING)

    def forced(self, slots_A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows into slots_A, tokens): what these rows must write now instead of what they sampled."""
        over = self.count_S[slots_A] - self.budget_S[slots_A]
        due = (over >= self.grace_S[slots_A]) | ((over >= 0) & self.after_newline_S[slots_A]) | (self.forced_S[slots_A] > 0)
        rows = np.flatnonzero((self.phase_S[slots_A] == _THINKING) & due)
        return rows, self.end_ids[self.forced_S[slots_A[rows]]]

    def update(self, slots_A: np.ndarray, tokens_A: np.ndarray, forced_rows: np.ndarray) -> None:
        """Takes note of the tokens just written."""
        self.forced_S[slots_A[forced_rows]] += 1
        thinking = self.phase_S[slots_A] == _THINKING
        self.count_S[slots_A] += thinking
        self.after_newline_S[slots_A] = self.newline_V[tokens_A]
        ended = thinking & ((tokens_A == self.end_ids[-1]) | (self.forced_S[slots_A] >= len(self.end_ids)))
        self.phase_S[slots_A[ended]] = _CLOSED
        opened = (self.phase_S[slots_A] == _BEFORE) & (tokens_A == self.think_id)
        self.phase_S[slots_A[opened]] = _THINKING
        self.count_S[slots_A[opened]] = 0

    def copy(self, source: list[int], target: list[int]) -> None:
        """Slots `target` take over the state of slots `source`."""
        for values in (self.phase_S, self.budget_S, self.grace_S, self.count_S, self.forced_S, self.after_newline_S):
            values[target] = values[source]
