"""Column subtraction: one line a column, from the right, `top-bottom-borrowed=digit`; ten is added to a top that is too small,
and the next column pays it back.

    425 - 67   ->   15-7-0=8
                    12-6-1=5
                    4-0-1=3       (read from the bottom up: 358)
"""
from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from generators.tasks.problem import Problem, Task, number_of_digits


@dataclass(frozen=True, kw_only=True)
class Subtraction(Task):
    """digits: (least, most) digits of each number; the larger stands first."""

    name: ClassVar[str] = "subtraction"
    digits: tuple[int, int] = (1, 3)

    def make(self, rng: random.Random, seed: int, index: int) -> Problem:
        a, b = sorted((number_of_digits(rng, rng.randint(*self.digits)) for _ in range(2)), reverse=True)
        return Problem(self.name, f"What is {a} - {b}?", "\n".join(column_differences(a, b)), str(a - b))


def column_differences(a: int, b: int) -> list[str]:
    """The lines of the worked difference of a >= b."""
    lines, borrowed = [], 0
    for x, y in zip(reversed(str(a)), reversed(str(b).zfill(len(str(a))))):
        top, need = int(x), int(y) + borrowed
        lent = top < need
        top += 10 * lent
        lines.append(f"{top}-{y}-{borrowed}={top - need}")
        borrowed = int(lent)
    return lines
