"""What a task is: questions made from numbers, solutions worked out step by step, and a check of anyone's answer.

A task knows the answer because it made the question. Its worked solution is written for a small model to imitate: one short,
regular line a step, digits taken from right to left, nothing said twice. `Task.problem(seed, index)` is a pure function, so a
dataset of problems is just a seed and a range of indices.
"""
from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import xxhash

from generators.verify.answer import Verdict, check_format, same_answer


@dataclass(frozen=True)
class Problem:
    """A question with its worked solution. `reasoning` goes between <think> and </think>, `answer` after it."""

    task: str
    question: str
    reasoning: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """xxh3-128 (hex) of task and question: the same question is the same problem, whatever seed it came from."""
        return xxhash.xxh3_128_hexdigest(f"{self.task}\n{self.question}")

    def prompt_messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.question}]

    def response(self) -> str:
        """What an assistant would write, from <think> on."""
        return f"<think>\n{self.reasoning}\n</think>\n{self.answer}"

    def messages(self) -> list[dict[str, str]]:
        return [*self.prompt_messages(), {"role": "assistant", "content": self.response()}]

    def text(self) -> str:
        """Plain rendering, for pretraining mixtures."""
        return f"Question: {self.question}\n{self.reasoning}\nAnswer: {self.answer}"


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A family of problems. Fields of a subclass are its difficulty; `with_params` changes them by name."""

    name: ClassVar[str]
    version: ClassVar[int] = 1  # raised whenever the same (seed, index) gives another problem
    equivalence: ClassVar[str] = "number"  # how answers are compared: "exact", "number" or "math"

    @abstractmethod
    def make(self, rng: random.Random, seed: int, index: int) -> Problem:
        """One problem from a generator seeded with (task, seed, index)."""

    def problem(self, seed: int, index: int) -> Problem:
        """Problem number `index` of stream `seed`: a pure function of the task's fields and these two."""
        return self.make(rng_for(self.name, seed, index), seed, index)

    def check(self, problem: Problem, response: str, *, truncated: bool = False) -> Verdict:
        """Whether a response (with or without the <think> that a prompt already wrote) is well formed and right.

        truncated: the writer was cut off by a length limit. Reward is 1 for a right answer in the right form, else 0."""
        answer, fault = check_format(response, truncated=truncated)
        if fault is not None:
            return fault
        return same_answer(problem.answer, answer, self.equivalence)

    def with_params(self, params: Mapping[str, Any]) -> Self:
        """A copy of another difficulty. ValueError names an unknown parameter; YAML lists become tuples."""
        known = {f.name for f in fields(self)}
        for key in params:
            if key not in known:
                raise ValueError(f"task {self.name} has no parameter {key!r} (it has {', '.join(sorted(known)) or 'none'})")
        return replace(self, **{k: tuple(v) if isinstance(v, list) else v for k, v in params.items()})


def rng_for(name: str, seed: int, index: int) -> random.Random:
    """A generator of its own for each (task, seed, index); SHA-256 keeps neighbouring numbers unrelated."""
    return random.Random(int.from_bytes(hashlib.sha256(f"{name}\n{seed}\n{index}".encode()).digest()[:16], "big"))


def number_of_digits(rng: random.Random, digits: int) -> int:
    """A number with exactly so many digits (one digit: 0 to 9)."""
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)
