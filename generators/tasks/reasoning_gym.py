"""Tasks of the reasoning-gym package (Apache-2.0): its questions and its own scoring, our worked solutions.

Chosen because they are cheap, score their own answers 1.0, are pure functions of a seed in every process, and have a solution
that can be written out in a few regular steps. reasoning-gym draws item i of seed s from Random(s + i), so neighbouring seeds
overlap; each of our problems is item 0 of a dataset seeded with a hash of (task, seed, index).
"""
from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from generators.tasks.problem import Problem, Task
from generators.verify.answer import Verdict, check_format

Entry = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ReasoningGymTask(Task):
    """One reasoning-gym dataset. `options` are its config fields; `work_out` writes the steps."""

    dataset: str
    work_out: Callable[[Entry], str]
    options: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:  # type: ignore[override]  # one class, many tasks
        return f"rg_{self.dataset}"

    def with_params(self, params):
        return super().with_params({"options": {**self.options, **params}})

    def make(self, rng: random.Random, seed: int, index: int) -> Problem:
        entry = _generator(self.dataset, json.dumps(self.options, sort_keys=True)).entry(rng.getrandbits(62))
        question = " ".join(entry["question"].split())
        metadata = {"entry": {"question": entry["question"], "answer": entry["answer"], "metadata": entry["metadata"]}}
        return Problem(self.name, question, self.work_out(entry), entry["answer"], metadata)

    def check(self, problem: Problem, response: str, *, truncated: bool = False) -> Verdict:
        answer, fault = check_format(response, truncated=truncated)
        if fault is not None:
            return fault
        entry = problem.metadata.get("entry") or {"question": problem.question, "answer": problem.answer, "metadata": {}}
        try:
            score = _generator(self.dataset, "{}").score(answer, entry)
        except (ValueError, ArithmeticError, SyntaxError):  # its scorers parse without looking first
            return Verdict(False, 0.0, "answer.unreadable")
        # its partial credit (0.01 for any text, part of a point for part of a word) must not pass for a solution
        return Verdict(True, 1.0, "ok") if score >= 1.0 else Verdict(False, 0.0, "answer.wrong")


class _Generator:
    def __init__(self, dataset: str, options: dict[str, int]) -> None:
        import reasoning_gym  # slow to import (sympy): only who uses these tasks pays

        try:
            self.data = reasoning_gym.create_dataset(dataset, seed=0, size=1, **options)
        except TypeError as error:
            raise ValueError(f"reasoning-gym's {dataset} does not take these options: {error}") from error
        except AssertionError as error:
            raise ValueError(f"reasoning-gym's {dataset} refuses these options: {error}") from error

    def entry(self, seed: int) -> Entry:
        self.data.seed = seed
        return self.data[0]

    def score(self, answer: str, entry: Entry) -> float:
        return self.data.score_answer(answer, entry)


@lru_cache(maxsize=64)
def _generator(dataset: str, options: str) -> _Generator:
    return _Generator(dataset, json.loads(options))


def chain_sum(entry: Entry) -> str:
    """Left to right, one operation a line."""
    parts = entry["metadata"]["expression"].split()
    total, lines = int(parts[0]), []
    for sign, term in zip(parts[1::2], parts[2::2]):
        after = total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{total}{sign}{term}={after}")
        total = after
    return "\n".join(lines)


def gcd(entry: Entry) -> str:
    """Euclid's algorithm: a=q*b+r until nothing remains."""
    numbers = list(entry["metadata"]["numbers"])
    lines, a = [], numbers[0]
    for b in numbers[1:]:
        a, b = max(a, b), min(a, b)
        while b:
            lines.append(f"{a}={a // b}*{b}+{a % b}")
            a, b = b, a % b
    return "\n".join(lines)


def spell_backward(entry: Entry) -> str:
    """The letters one by one, then from the end."""
    word = entry["metadata"]["word"]
    return f"{' '.join(word)}\n{' '.join(reversed(word))}"


def letter_counting(entry: Entry) -> str:
    """A running count after each word that has the letter."""
    letter, count, steps = entry["metadata"]["target_letter"], 0, []
    for word in entry["metadata"]["span"]:
        here = word.lower().count(letter)
        count += here
        if here:
            steps.append(f"{word} {here} {count}")
    return "\n".join(steps)


def prime_factorization(entry: Entry) -> str:
    """Divide by the smallest prime as long as it goes."""
    rest, lines = entry["metadata"]["number"], []
    for factor in entry["metadata"]["factors"]:
        lines.append(f"{rest}/{factor}={rest // factor}")
        rest //= factor
    return "\n".join(lines)


def leg_counting(entry: Entry) -> str:
    """Animals times legs, with a running sum."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    total, lines = 0, []
    for animal, count in entry["metadata"]["animals"].items():
        legs = count * ANIMALS[animal]
        lines.append(f"{animal} {count}*{ANIMALS[animal]}={legs} {total}+{legs}={total + legs}")
        total += legs
    return "\n".join(lines)


REASONING_GYM: tuple[ReasoningGymTask, ...] = (
    ReasoningGymTask(dataset="chain_sum", work_out=chain_sum, options={"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}),
    ReasoningGymTask(dataset="gcd", work_out=gcd, options={"min_value": 1, "max_value": 60}),
    ReasoningGymTask(dataset="spell_backward", work_out=spell_backward, options={"min_word_len": 3, "max_word_len": 5}),
    ReasoningGymTask(dataset="letter_counting", work_out=letter_counting, options={"min_words": 2, "max_words": 5}),
    ReasoningGymTask(dataset="prime_factorization", work_out=prime_factorization, options={"min_value": 2, "max_value": 200}),
    ReasoningGymTask(dataset="leg_counting", work_out=leg_counting, options={"min_animals": 1, "max_animals": 3, "max_instances": 9}),
)
