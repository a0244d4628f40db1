"""The tasks by name. Each is one file: a question, a worked solution, a check."""
from generators.tasks.addition import Addition
from generators.tasks.comparison import Comparison
from generators.tasks.counting import Counting
from generators.tasks.fractions import Fractions
from generators.tasks.multiplication import Multiplication
from generators.tasks.problem import Problem, Task
from generators.tasks.reasoning_gym import REASONING_GYM
from generators.tasks.sequences import Sequences
from generators.tasks.subtraction import Subtraction
from generators.tasks.word_problems import WordProblems
from generators.verify.answer import Verdict

TASKS: dict[str, Task] = {task.name: task for task in (
    Addition(), Subtraction(), Multiplication(), Comparison(), Counting(), Sequences(), WordProblems(), Fractions(), *REASONING_GYM)}

__all__ = ["Problem", "TASKS", "Task", "Verdict"]
