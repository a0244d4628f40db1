"""Adding two fractions: cross-multiply, add, reduce by the greatest common divisor. Any equal answer counts (5/6, 10/12, \\frac{5}{6}),
which is why what is not a plain number is compared by math-verify.

    What is 1/2 + 1/6?   ->   1*6=6
                              1*2=2
                              6+2=8
                              2*6=12
                              8/12=2/3
"""
from __future__ import annotations

import random
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from generators.tasks.problem import Problem, Task


@dataclass(frozen=True, kw_only=True)
class Fractions(Task):
    """largest: the largest denominator, 2 or more; numerators are smaller than their denominators."""

    name: ClassVar[str] = "fractions"
    equivalence: ClassVar[str] = "math"
    largest: int = 9

    def make(self, rng: random.Random, seed: int, index: int) -> Problem:
        b, d = rng.randint(2, self.largest), rng.randint(2, self.largest)
        a, c = rng.randint(1, b - 1), rng.randint(1, d - 1)
        answer = Fraction(a, b) + Fraction(c, d)
        top, bottom = a * d + c * b, b * d
        lines = [f"{a}*{d}={a * d}", f"{c}*{b}={c * b}", f"{a * d}+{c * b}={top}", f"{b}*{d}={bottom}"]
        if str(answer) != f"{top}/{bottom}":
            lines.append(f"{top}/{bottom}={answer}")
        return Problem(self.name, f"What is {a}/{b} + {c}/{d}?", "\n".join(lines), str(answer))
