"""A verifiable task as an environment: one question, one answer, the task's own checker is the verdict.

The reward is the verifier's, plus a small share for form: exactly one closed <think> block, an answer after it, a turn that
ended by itself. Form pays so little (0.1 against 1) that no wrong answer can outweigh a right one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from generators.tasks import TASKS
from pipelines.errors import UserError
from training.environments.environment import Outcome

__all__ = ["VerifiableTask", "well_formed"]

THINK_END = "</think>"
REDRAWS, STRIDE = 64, 1 << 40  # redraws lie where no other episode's index is


def well_formed(response: str) -> bool:
    """Exactly one closed thinking block (its opening tag belongs to the prompt, or starts the response) and something after it."""
    before, end, after = response.partition(THINK_END)
    return bool(end) and THINK_END not in after and "<think>" not in after and before.count("<think>") <= 1 and bool(after.strip())


@dataclass(frozen=True)
class Episode:
    problem: Any  # generators.tasks Problem
    response: str | None = None
    truncated: bool = False


class VerifiableTask:
    """Single-turn environment over generators.tasks.TASKS[name]."""

    def __init__(
        self, name: str, *, params: Mapping[str, Any] | None = None, format_reward: float = 0.1, exclude: frozenset[str] = frozenset()
    ) -> None:
        """exclude: ids of held-out problems, which no episode may ask."""
        if name not in TASKS:
            raise UserError(f"unknown task {name!r}; there are {', '.join(sorted(TASKS))}")
        self.name, self.format_reward, self.exclude = name, format_reward, exclude
        try:
            self.task = TASKS[name].with_params(params) if params else TASKS[name]
        except ValueError as error:
            raise UserError(str(error)) from None

    def reset(self, seed: int, index: int) -> tuple[Episode, list[dict[str, Any]]]:
        for redraw in range(REDRAWS):  # still a function of (seed, index) alone
            problem = self.task.problem(seed, index + redraw * STRIDE)
            if problem.id not in self.exclude:
                return Episode(problem), problem.prompt_messages()
        raise UserError(f"task {self.name}: {REDRAWS} draws in a row were held-out problems; hold out fewer, or make the task larger")

    def step(self, state: Episode, response: str, *, truncated: bool = False) -> tuple[Episode, None]:
        assert state.response is None, "a single-turn episode takes one response"
        return Episode(state.problem, response, truncated), None

    def verdict(self, state: Episode) -> Outcome:
        assert state.response is not None, "verdict before any step"
        judged = self.task.check(state.problem, state.response, truncated=state.truncated)
        form = self.format_reward if well_formed(state.response) and not state.truncated else 0.0
        return Outcome(float(judged.reward) + form, bool(judged.ok), str(judged.reason), {"verifier": float(judged.reward), "format": form})
