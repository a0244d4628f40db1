"""What an environment is: a reset, a step and a verdict. The trainer knows nothing else about the world.

Episodes are keyed by (seed, index), never by a call order, so a resumed run meets the same worlds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

__all__ = ["Environment", "Outcome"]

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """The verdict on a finished episode. `parts` names what the reward is made of; `ok` is the verifier's answer alone."""

    reward: float
    ok: bool
    reason: str
    parts: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class Environment(Protocol):
    """One world. States are opaque to the caller and immutable: step returns a new one."""

    name: str

    def reset(self, seed: int, index: int) -> tuple[Any, Messages]:
        """Start episode (seed, index): its state and the messages the policy answers first."""

    def step(self, state: Any, response: str, *, truncated: bool = False) -> tuple[Any, Messages | None]:
        """Take the policy's answer: the new state, and the messages to answer next, or None when the episode is over.

        truncated: the response met the token limit before the policy ended its turn.
        """

    def verdict(self, state: Any) -> Outcome:
        """Judge a finished episode."""
