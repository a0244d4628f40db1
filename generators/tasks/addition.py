"""Column addition: one line a column, from the right, `digit+digit+carry=sum`; a sum's tens are the next column's carry.

    358 + 67   ->   8+7+0=15
                    5+6+1=12
                    3+0+1=04      (read the units from the bottom up: 425)
"""
from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from generators.tasks.problem import Problem, Task, number_of_digits


@dataclass(frozen=True, kw_only=True)
class Addition(Task):
    """digits: (least, most) digits of each number."""

    name: ClassVar[str] = "addition"
    digits: tuple[int, int] = (1, 3)

    def make(self, rng: random.Random, seed: int, index: int) -> Problem:
        a, b = (number_of_digits(rng, rng.randint(*self.digits)) for _ in range(2))
        return Problem(self.name, f"What is {a} + {b}?", "\n".join(column_sums(a, b)), str(a + b))


def column_sums(a: int, b: int) -> list[str]:
    """The lines of the worked sum."""
    width = max(len(str(a)), len(str(b)))
    lines, carry = [], 0
    for x, y in zip(reversed(str(a).zfill(width)), reversed(str(b).zfill(width))):
        total = int(x) + int(y) + carry
        lines.append(f"{x}+{y}+{carry}={total:02d}")
        carry = total // 10
    return lines
