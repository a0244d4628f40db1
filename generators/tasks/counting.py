"""Counting: go through the items in order and write the count after each.

    How many times does b appear in: a b c b   ->   a0 b1 c1 b2
"""
from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from generators.tasks.problem import Problem, Task

# letters that byte-pair tokenizers keep apart when spaces stand between them, and short common words
_LETTERS = "abcdeghkmnoprstuw"
_ITEMS = ("red", "blue", "cat", "dog", "tree", "car", "book", "sun", "fish", "hat")


@dataclass(frozen=True, kw_only=True)
class Counting(Task):
    """length: (least, most) items in the row. kinds: (least, most) different items. words: share of rows made of words."""

    name: ClassVar[str] = "counting"
    length: tuple[int, int] = (3, 10)
    kinds: tuple[int, int] = (2, 4)
    words: float = 0.3

    def make(self, rng: random.Random, seed: int, index: int) -> Problem:
        pool = _ITEMS if rng.random() < self.words else _LETTERS
        kinds = rng.sample(pool, rng.randint(*self.kinds))
        row = rng.choices(kinds, k=rng.randint(*self.length))
        wanted = rng.choice(kinds)
        steps, count = [], 0
        for item in row:
            count += item == wanted
            steps.append(f"{item}{count}")
        return Problem(self.name, f"How many times does {wanted} appear in: {' '.join(row)}", " ".join(steps), str(count))
