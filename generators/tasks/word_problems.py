"""Word problems of one or two steps: each sentence with a number is one line of arithmetic.

    Ann has 7 apples. She buys 5 more. She gives 3 to Ben. How many ...?   ->   7+5=12
                                                                               12-3=9
"""
from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from generators.tasks.problem import Problem, Task

_NAMES = ("Ann", "Ben", "Tom", "Mary", "John", "Lisa", "Sam", "Kate", "Paul", "Eva")
_THINGS = ("apples", "books", "coins", "cards", "pens", "cups", "stones", "tickets")
_GAINS = ("{name} buys {n} more.", "{name} finds {n} more.", "{other} gives {name} {n} more.")
_LOSSES = ("{name} gives {n} to {other}.", "{name} loses {n}.", "{name} sells {n}.")
_GROUPS = "{name} has {a} boxes with {b} {things} in each."


@dataclass(frozen=True, kw_only=True)
class WordProblems(Task):
    """steps: (least, most) steps. largest: of any number handed over; of what one starts with. groups: share that start from boxes."""

    name: ClassVar[str] = "word_problems"
    steps: tuple[int, int] = (1, 2)
    largest: int = 20
    groups: float = 0.25

    def make(self, rng: random.Random, seed: int, index: int) -> Problem:
        name, other = rng.sample(_NAMES, 2)
        things, steps = rng.choice(_THINGS), rng.randint(*self.steps)
        sentences, lines = [], []
        if rng.random() < self.groups:
            a, b = rng.randint(2, 9), rng.randint(2, 9)
            sentences.append(_GROUPS.format(name=name, a=a, b=b, things=things))
            lines.append(f"{a}*{b}={a * b}")
            held, steps = a * b, steps - 1
        else:
            held = rng.randint(1, self.largest)
            sentences.append(f"{name} has {held} {things}.")
        for _ in range(steps):
            if rng.random() < 0.5 and held > 1:
                n = rng.randint(1, min(held, self.largest))
                sentences.append(rng.choice(_LOSSES).format(name=name, other=other, n=n))
                lines.append(f"{held}-{n}={held - n}")
                held -= n
            else:
                n = rng.randint(1, self.largest)
                sentences.append(rng.choice(_GAINS).format(name=name, other=other, n=n))
                lines.append(f"{held}+{n}={held + n}")
                held += n
        question = f"{' '.join(sentences)} How many {things} does {name} have?"
        return Problem(self.name, question, "\n".join(lines), str(held))
