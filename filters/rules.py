"""Rules are tables: a family is a name and rows of (rule, signal, bound); deciding is comparing columns with bounds.

A document fails at the first bound it breaks, in the order of the families and of their rows, and the reason is
"family.rule" with the value and the bound as detail. Because rules read signals only, thresholds change without reading a
page again, and every decision can be shown (`explain`). Per-language values are data (`filters/thresholds/*.yaml`). A recipe may add rules of its
own (`filters.expressions`), which are asked like the others.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import filters.thresholds as thresholds
from filters.expressions import OwnRule


@dataclass(frozen=True)
class Bound:
    """A closed interval; None is open. Both None: the rule is off."""

    low: float | None = None
    high: float | None = None

    def holds(self, values: np.ndarray) -> np.ndarray:
        """Elementwise; a missing value (NaN) breaks no rule."""
        inside = np.ones(len(values), dtype=bool)
        if self.low is not None:
            inside &= ~(values < self.low)
        if self.high is not None:
            inside &= ~(values > self.high)
        return inside

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g}..{self.high:g}"
        return f">= {self.low:g}" if self.low is not None else f"<= {self.high:g}" if self.high is not None else "off"


def between(low: float, high: float) -> Bound:
    return Bound(low, high)


def at_least(low: float) -> Bound:
    return Bound(low, None)


def at_most(high: float) -> Bound:
    return Bound(None, high)


@dataclass(frozen=True)
class Rule:
    """A signal within a bound. What a recipe says itself is an `expressions.OwnRule`; both can be asked the same."""

    family: str
    name: str
    signal: str
    bound: Bound

    @property
    def reason(self) -> str:
        return f"{self.family}.{self.name}"

    @property
    def signals(self) -> tuple[str, ...]:
        return (self.signal,)

    def holds(self, read: Callable[[str], np.ndarray]) -> np.ndarray:
        return self.bound.holds(read(self.signal))

    def describe(self, values: Sequence[float]) -> str:
        return f"{self.signal} {values[0]:.6g}, must be {self.bound}"


@dataclass(frozen=True)
class Decision:
    """One rule applied to one document; an own rule over several signals shows each of them ("digits 0.1, words 30") as `signal` and no one value."""

    rule: str
    signal: str
    value: float | None
    bound: str
    passed: bool


def rules(family: str, *rows: tuple) -> tuple[Rule, ...]:
    """A family from rows (rule, bound) where the signal has the rule's name, or (rule, signal, bound)."""
    return tuple(Rule(family, row[0], row[-2], row[-1]) for row in rows)


def resolve(families: Sequence[Sequence[Rule | OwnRule]], language: str, overrides: Mapping[str, Bound] | None = None) -> list[Rule | OwnRule]:
    """The rules in force for a language: published rows, then the language's own values, then the recipe's overrides.

    Overrides are keyed "family.rule", or "family" for all of its rules; a rule whose bound is open on both sides is off.
    A recipe's own rules are in force for every language as they are.
    """
    changed = {**thresholds.of(language).bounds, **(overrides or {})}
    resolved: list[Rule | OwnRule] = []
    for rule in (rule for family in families for rule in family):
        if isinstance(rule, OwnRule):
            resolved.append(rule)
            continue
        low_high = changed.get(rule.reason, changed.get(rule.family))
        bound = rule.bound if low_high is None else low_high if isinstance(low_high, Bound) else Bound(*low_high)
        if bound != Bound():
            resolved.append(Rule(rule.family, rule.name, rule.signal, bound))
    return resolved


def decide(
    signals: pa.StructArray,
    languages: Sequence[str],
    families: Sequence[Sequence[Rule | OwnRule]],
    overrides: Mapping[str, Bound] | None = None,
) -> tuple[np.ndarray, list[str], list[str]]:
    """Apply the families to a batch.

    Returns:
        keep (bool per row), reason ("" where kept, else "family.rule" of the first rule broken), detail ("value, must be bound").
    """
    read = _reader(signals)
    keep, reason, detail = np.ones(len(signals), dtype=bool), [""] * len(signals), [""] * len(signals)
    names, which = np.unique(np.asarray(languages, dtype=str), return_inverse=True)
    for index, language in enumerate(names.tolist()):
        mine = which == index
        for rule in resolve(families, language, overrides):
            broken = np.flatnonzero(mine & keep & ~rule.holds(read))
            keep[broken] = False
            for row in broken.tolist():
                reason[row], detail[row] = rule.reason, rule.describe([read(name)[row] for name in rule.signals])
    return keep, reason, detail


def _reader(signals: pa.StructArray) -> Callable[[str], np.ndarray]:
    """Columns by name, each turned into numbers once."""
    return cache(lambda name: column(signals, name))


def explain(
    signals: Mapping[str, float | None], language: str, families: Sequence[Sequence[Rule | OwnRule]], overrides: Mapping[str, Bound] | None = None
) -> list[Decision]:
    """Every rule's value, bound and outcome for one document, in the order in which they are applied.

    Raises:
        KeyError: a rule reads a signal that the document does not have.
    """

    def read(name: str) -> np.ndarray:
        value = signals[name]
        return np.array([math.nan if value is None else value], np.float64)

    decisions = []
    for rule in resolve(families, language, overrides):
        passed = bool(rule.holds(read)[0])
        if len(rule.signals) == 1:
            signal, value = rule.signals[0], signals[rule.signals[0]]
        else:
            signal, value = ", ".join(f"{name} {read(name)[0]:.6g}" for name in rule.signals), None
        decisions.append(Decision(rule.reason, signal, value, str(rule.bound), passed))
    return decisions


def column(signals: pa.StructArray, name: str) -> np.ndarray:
    """A signal as float64, missing values as NaN.

    Raises:
        KeyError: the batch has no such signal: a rule that silently never fires is worse than none.
    """
    index = signals.type.get_field_index(name)
    if index < 0:
        raise KeyError(f"no signal {name!r} in the batch")
    return pc.struct_field(signals, [index]).cast(pa.float64()).to_numpy(zero_copy_only=False)
