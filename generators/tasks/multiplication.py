"""A number times one digit: one line a column, from the right, `digit*digit+carry=product`; the tens carry over.

    47 * 6   ->   7*6+0=42
                  4*6+4=28        (the last line leads, then the units upwards: 282)
"""
from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from generators.tasks.problem import Problem, Task, number_of_digits


@dataclass(frozen=True, kw_only=True)
class Multiplication(Task):
    """digits: (least, most) digits of the first factor; the second has one, from 2 to 9."""

    name: ClassVar[str] = "multiplication"
    digits: tuple[int, int] = (1, 2)

    def make(self, rng: random.Random, seed: int, index: int) -> Problem:
        a, b = number_of_digits(rng, rng.randint(*self.digits)), rng.randint(2, 9)
        return Problem(self.name, f"What is {a} * {b}?", "\n".join(column_products(a, b)), str(a * b))


def column_products(a: int, b: int) -> list[str]:
    """The lines of the worked product with a one-digit b."""
    lines, carry = [], 0
    for x in reversed(str(a)):
        product = int(x) * b + carry
        lines.append(f"{x}*{b}+{carry}={product:02d}")
        carry = product // 10
    return lines
