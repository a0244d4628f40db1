"""Which number is larger: keep the best so far; compare lengths, then digits from the left until two differ.

    Which is larger: 482, 479 or 61?   ->   482 479: 3=3, 4=4, 8>7
                                            482 61: 3>2
"""
from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from generators.tasks.problem import Problem, Task, number_of_digits


@dataclass(frozen=True, kw_only=True)
class Comparison(Task):
    """digits: (least, most) digits of each number. numbers: (least, most) numbers compared, all different.
    near: share of questions whose numbers agree in length and first digit, the hard ones."""

    name: ClassVar[str] = "comparison"
    digits: tuple[int, int] = (1, 3)
    numbers: tuple[int, int] = (2, 3)
    near: float = 0.5

    def make(self, rng: random.Random, seed: int, index: int) -> Problem:
        count = rng.randint(*self.numbers)
        values: list[int] = []
        if rng.random() < self.near and self.digits[1] > 1:
            digits = rng.randint(max(2, self.digits[0]), self.digits[1])
            first, step = rng.randint(1, 9), 10 ** (digits - 1)
            values = rng.sample(range(first * step, (first + 1) * step), count)
        while len(values) < count:
            value = number_of_digits(rng, rng.randint(*self.digits))
            if value not in values:
                values.append(value)
        shown = f"{', '.join(map(str, values[:-1]))} or {values[-1]}"
        lines, best = [], values[0]
        for value in values[1:]:
            lines.append(f"{best} {value}: {compare(best, value)}")
            best = max(best, value)
        return Problem(self.name, f"Which is larger: {shown}?", "\n".join(lines), str(best))


def compare(a: int, b: int) -> str:
    """The comparison of two different numbers, written out: lengths, then digits up to the first that differ."""
    steps = [(len(str(a)), len(str(b)))]
    if steps[0][0] == steps[0][1]:
        steps += [(int(x), int(y)) for x, y in zip(str(a), str(b))]
    written = []
    for x, y in steps:
        written.append(f"{x}{'=' if x == y else '>' if x > y else '<'}{y}")
        if x != y:
            break
    return ", ".join(written)
