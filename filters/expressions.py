"""A recipe's own rules: "digits <= 0.2 and words >= 30", over any signals, without a line of Python.

An expression is comparisons (`<  <=  >  >=  ==  !=`, also chained: `3 <= mean_word_length <= 10`) of signals, numbers and their sums, differences,
products and quotients, joined by `and`, `or`, `not` and parentheses. That is the whole grammar: Python's parser reads it, everything else in the tree is
refused, nothing is ever evaluated but the columns. A page that lacks a signal (it was measured before the signal existed) breaks no rule.
"""

import ast
import difflib
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

_COMPARE = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq, ast.NotEq: operator.ne}
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_DEEPEST = 50  # nested parentheses and the like; no rule a person writes comes near


@dataclass(frozen=True)
class OwnRule:
    """A document stays where the expression holds. `signals` are the names it reads, in order of appearance."""

    reason: str  # "family.rule"
    text: str
    tree: ast.expr
    signals: tuple[str, ...]

    def holds(self, read: Callable[[str], np.ndarray]) -> np.ndarray:
        """Elementwise over the columns that `read` gives by name."""
        columns = {name: read(name) for name in self.signals}
        missing = reduce(np.logical_or, [np.isnan(column) for column in columns.values()])
        with np.errstate(divide="ignore", invalid="ignore"):
            return _value(self.tree, columns) | missing

    def describe(self, values: Sequence[float]) -> str:
        return ", ".join(f"{name} {value:.6g}" for name, value in zip(self.signals, values, strict=True)) + f", must be {self.text}"

    @property
    def bound(self) -> str:
        return self.text


def own_rule(name: str, text: str, known: Collection[str]) -> OwnRule:
    """The rule "family.rule" that keeps what satisfies `text`; `known` are the signals there are.

    Raises:
        ValueError: the name has no such form, or the text is no such expression; names the unknown signal and its nearest match.
    """
    family, _, rule = name.partition(".")
    if not (family.isidentifier() and rule.isidentifier()):
        raise ValueError(f'rule {name!r}: a name is "family.rule", for example my.digits')
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(f"rule {name}: cannot read {text!r}") from None
    _check(tree, name, text, known, 0)
    if not _is_condition(tree):
        raise ValueError(f"rule {name}: {text!r} is no condition; write for example digits <= 0.2")
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    if not names:
        raise ValueError(f"rule {name}: {text!r} reads no signal")
    return OwnRule(name, text.strip(), tree, tuple(sorted(set(names), key=lambda signal: text.find(signal))))


def _is_condition(node: ast.expr) -> bool:
    return isinstance(node, ast.BoolOp | ast.Compare) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))


def _check(node: ast.expr, name: str, text: str, known: Collection[str], depth: int) -> None:
    """Every node is of the grammar, conditions stand where conditions belong, and every name is a signal."""
    if depth > _DEEPEST:
        raise ValueError(f"rule {name}: nested deeper than {_DEEPEST}")
    match node:
        case ast.BoolOp(values=parts):
            conditions = True
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            parts, conditions = [operand], True
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            parts, conditions = [operand], False
        case ast.Compare(left=left, ops=operations, comparators=right) if all(type(operation) in _COMPARE for operation in operations):
            parts, conditions = [left, *right], False
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _ARITHMETIC:
            parts, conditions = [left, right], False
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool) and abs(value) < 1e300:
            return
        case ast.Name(id=signal):
            if signal not in known:
                near = difflib.get_close_matches(signal, known, 1)
                raise ValueError(f"rule {name}: no signal {signal!r}" + (f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(known))}"))
            return
        case _:
            raise ValueError(f"rule {name}: {ast.unparse(node)!r} has no meaning here; use signals, numbers, + - * /, comparisons, and, or, not")
    for part in parts:
        if _is_condition(part) != conditions:
            raise ValueError(f"rule {name}: {ast.unparse(part)!r} is {'a condition' if not conditions else 'no condition'}")
        _check(part, name, text, known, depth + 1)


def _value(node: ast.expr, columns: dict[str, np.ndarray]) -> np.ndarray | float:
    match node:
        case ast.BoolOp(op=operation, values=parts):
            join = np.logical_and if isinstance(operation, ast.And) else np.logical_or
            return reduce(join, [_value(part, columns) for part in parts])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return np.logical_not(_value(operand, columns))
        case ast.UnaryOp(operand=operand):
            return -_value(operand, columns)
        case ast.Compare(left=left, ops=operations, comparators=right):
            values = [_value(part, columns) for part in (left, *right)]
            return reduce(np.logical_and, [_COMPARE[type(op)](a, b) for op, a, b in zip(operations, values, values[1:], strict=False)])
        case ast.BinOp(left=left, op=operation, right=right):
            return _ARITHMETIC[type(operation)](_value(left, columns), _value(right, columns))
        case ast.Name(id=signal):
            return columns[signal]
        case ast.Constant(value=value):
            return np.float64(value)
    raise AssertionError(node)  # _check has seen the tree
