"""Every task's answers, recomputed from the question's text alone; every worked line, evaluated."""
import json
import math
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generators.tasks import TASKS

COUNT = 150  # fresh problems a task
ROOT = Path(__file__).resolve().parents[2]


def ints(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"-?\d+", text)]


def solve_word_problem(question: str) -> str:
    total = None
    for sentence in question.split(". "):
        numbers = ints(sentence)
        if "boxes" in sentence:
            total = numbers[0] * numbers[1]
        elif total is None:
            total = numbers[0]
        elif numbers:
            hero = question.split()[0]
            gain = "more" in sentence
            assert gain or sentence.startswith(hero)
            total += numbers[0] if gain else -numbers[0]
    return str(total)


def solve_sequence(question: str) -> str:
    terms = ints(question)
    if terms[1] - terms[0] == terms[2] - terms[1]:
        return str(terms[-1] + terms[1] - terms[0])
    assert terms[1] == 2 * terms[0] and terms[2] == 2 * terms[1]
    return str(2 * terms[-1])


def solve_counting(question: str) -> str:
    wanted, row = re.fullmatch(r"How many times does (\w+) appear in: (.*)", question).groups()
    return str(row.split().count(wanted))


def solve_legs(question: str) -> str:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    listed = re.search(r"if you have (.*)\?", question)[1].split(", ")
    total = 0
    for entry in listed:
        number, animal = entry.split(" ", 1)
        total += int(number) * ANIMALS[animal if int(number) == 1 else animal.removesuffix("s")]
    return str(total)


def factors(n: int) -> str:
    return " × ".join(str(p) for p in range(2, n + 1) if all(p % q for q in range(2, p)) for _ in range(next(e for e in range(20) if n % p ** (e + 1))))


SOLVERS = {  # from the words of a question to its answer, written without looking at the tasks
    "addition": lambda q: str(sum(ints(q))),
    "subtraction": lambda q: str(int(re.findall(r"\d+", q)[0]) - int(re.findall(r"\d+", q)[1])),
    "multiplication": lambda q: str(math.prod(ints(q))),
    "comparison": lambda q: str(max(ints(q))),
    "counting": solve_counting,
    "sequences": solve_sequence,
    "word_problems": solve_word_problem,
    "fractions": lambda q: str(sum(Fraction(f) for f in re.findall(r"\d+/\d+", q))),
    "rg_chain_sum": lambda q: str(sum(int(n.replace(" ", "")) for n in re.findall(r"(?:^|[+-] )?\d+", q.split(":")[1]))),
    "rg_gcd": lambda q: str(math.gcd(*ints(q))),
    "rg_spell_backward": lambda q: q.split(": ")[-1][::-1],
    "rg_letter_counting": lambda q: str(re.search(r': "(.*)"\?', q)[1].lower().count(re.search(r'letter "(.)"', q)[1])),
    "rg_prime_factorization": lambda q: factors(ints(q)[0]),
    "rg_leg_counting": solve_legs,
}


def test_every_task_has_a_solver_here():
    assert set(SOLVERS) == set(TASKS)
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize("name", TASKS)
def test_answers_follow_from_the_question(name):
    task = TASKS[name]
    for index in range(COUNT):
        problem = task.problem(20261121, index)
        assert problem.answer == SOLVERS[name](problem.question), problem


@pytest.mark.parametrize("name", TASKS)
def test_every_equation_in_the_reasoning_holds(name):
    """left=right and left<right, with nothing but numbers and operators, must be true; most tasks have them in every line."""
    checked = 0
    for index in range(COUNT):
        for left, relation, right in re.findall(r"(?<![\d+*/-])([\d+*/-]+)([=<>])([\d+*/-]+)", TASKS[name].problem(7, index).reasoning):
            a, b = value(left), value(right)
            assert {"=": a == b, "<": a < b, ">": a > b}[relation], (name, left, relation, right)
            checked += 1
    if name not in ("counting", "rg_spell_backward", "rg_letter_counting"):
        assert checked >= COUNT


def value(side: str) -> Fraction:
    """A sum of products and quotients of whole numbers, which is all that traces hold."""
    total = Fraction(0)
    for sign, term in re.findall(r"([+-]?)([\d*/]+)", side):
        first, *rest = re.findall(r"[*/]?\d+", term)
        product = Fraction(int(first))
        for factor in rest:
            product = product * int(factor[1:]) if factor[0] == "*" else product / int(factor[1:])
        total += -product if sign == "-" else product
    return total


@pytest.mark.parametrize("name", ["addition", "subtraction", "multiplication"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_columns_spell_the_answer(name, data):
    """The answer can be read off the lines alone: units from the bottom up, the last line whole."""
    problem = TASKS[name].with_params({"digits": [1, 6]}).problem(data.draw(st.integers(0, 2**40)), data.draw(st.integers(0, 2**40)))
    results = [line.split("=")[1] for line in problem.reasoning.splitlines()]
    read = results[-1] + "".join(r[-1] for r in reversed(results[:-1]))
    assert int(read) == int(problem.answer)


@pytest.mark.parametrize("name", TASKS)
def test_own_solution_is_accepted_and_another_refused(name):
    task = TASKS[name]
    for index in range(40):
        problem, other = task.problem(3, index), task.problem(3, index + 1)
        assert task.check(problem, problem.response()).ok
        assert task.check(problem, problem.response().removeprefix("<think>\n")).ok, "the prompt may have written <think>"
        assert task.check(problem, problem.response(), truncated=True).reason == "format.truncated"
        if other.answer != problem.answer:
            verdict = task.check(problem, f"<think>\n{problem.reasoning}\n</think>\n{other.answer}")
            assert (verdict.ok, verdict.reward) == (False, 0.0) and verdict.reason.startswith("answer.")
        assert task.check(problem, problem.answer).reason == "format.no_think"
        assert not task.check(problem, "<think>\n</think>\nbanana split (").ok


@pytest.mark.parametrize("name", TASKS)
def test_solutions_are_short_and_questions_vary(name):
    problems = [TASKS[name].problem(0, i) for i in range(300)]
    assert max(len(p.reasoning) for p in problems) <= 100
    assert len({p.id for p in problems}) >= 150 or name == "rg_prime_factorization"  # 199 numbers in all
    assert all(not p.reasoning[:1].isspace() and p.reasoning == p.reasoning.strip() and p.answer for p in problems)
    assert all("think>" not in p.text() for p in problems)


def test_problems_are_pure_functions_in_every_process():
    code = ("import json; from generators.tasks import TASKS; "
            "print(json.dumps([[p.id, p.reasoning, p.answer] for t in TASKS.values() for i in (0, 5) for p in [t.problem(9, i)]]))")
    outside = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
                                        env={"PYTHONHASHSEED": "1"}).stdout)
    here = [[p.id, p.reasoning, p.answer] for t in TASKS.values() for i in (0, 5) for p in [t.problem(9, i)]]
    assert outside == here


def test_difficulty_is_a_parameter():
    hard = TASKS["addition"].with_params({"digits": [5, 5]})
    assert all(99999 >= n >= 10000 for n in ints(hard.problem(0, 0).question))
    assert len(TASKS["rg_spell_backward"].with_params({"min_word_len": 8, "max_word_len": 9}).problem(0, 0).answer) >= 8
    with pytest.raises(ValueError, match="no parameter 'digit'"):
        TASKS["addition"].with_params({"digit": 3})
    with pytest.raises(ValueError, match="options"):
        TASKS["rg_gcd"].with_params({"maximum": 3}).problem(0, 0)


def test_id_is_the_question():
    task = TASKS["sequences"]
    by_question = {}
    for i in range(400):
        p = task.problem(1, i)
        assert by_question.setdefault(p.question, p.id) == p.id
    assert len(set(by_question.values())) == len(by_question)
