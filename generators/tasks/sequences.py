"""Next number of a sequence: find the step from the first two pairs, apply it once more.

    What comes next: 4, 7, 10, 13   ->   7-4=3
                                         10-7=3
                                         13+3=16
"""
from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from generators.tasks.problem import Problem, Task


@dataclass(frozen=True, kw_only=True)
class Sequences(Task):
    """start: (least, most) first term of rising and doubling sequences. step: (least, most) difference. terms: (least, most) shown."""

    name: ClassVar[str] = "sequences"
    start: tuple[int, int] = (1, 30)
    step: tuple[int, int] = (1, 9)
    terms: tuple[int, int] = (3, 4)

    def make(self, rng: random.Random, seed: int, index: int) -> Problem:
        rule, terms, step = rng.choice(("up", "up", "down", "double")), rng.randint(*self.terms), rng.randint(*self.step)
        first = rng.randint(*self.start)
        if rule == "double":
            first = rng.randint(1, 9)
            shown = [first * 2**i for i in range(terms)]
            lines = [f"{first}*2={shown[1]}", f"{shown[1]}*2={shown[2]}", f"{shown[-1]}*2={shown[-1] * 2}"]
            answer = shown[-1] * 2
        elif rule == "up":
            shown = [first + i * step for i in range(terms)]
            lines = [f"{shown[1]}-{shown[0]}={step}", f"{shown[2]}-{shown[1]}={step}", f"{shown[-1]}+{step}={shown[-1] + step}"]
            answer = shown[-1] + step
        else:
            shown = [first + (terms - i) * step for i in range(terms)]
            lines = [f"{shown[0]}-{shown[1]}={step}", f"{shown[1]}-{shown[2]}={step}", f"{shown[-1]}-{step}={shown[-1] - step}"]
            answer = shown[-1] - step
        return Problem(self.name, f"What comes next: {', '.join(map(str, shown))}", "\n".join(lines), str(answer))
