"""Rules are tables: a family is a name and rows of (rule, signal, bound); deciding is comparing columns with bounds.

A document fails at the first bound it breaks, in the order of the families and of their rows, and the reason is
"family.rule" with the value and the bound as detail. Because rules read signals only, thresholds change without reading a
page again, and every decision can be shown (`explain`). Per-language values are data (`filters/thresholds/*.yaml`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

import filters.thresholds as thresholds


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
    family: str
    name: str
    signal: str
    bound: Bound

    @property
    def reason(self) -> str:
        return f"{self.family}.{self.name}"


@dataclass(frozen=True)
class Decision:
    """One rule applied to one document."""

    rule: str
    signal: str
    value: float | None
    bound: str
    passed: bool


def rules(family: str, *rows: tuple) -> tuple[Rule, ...]:
    """A family from rows (rule, bound) where the signal has the rule's name, or (rule, signal, bound)."""
    return tuple(Rule(family, row[0], row[-2], row[-1]) for row in rows)


def resolve(families: Sequence[tuple[Rule, ...]], language: str, overrides: Mapping[str, Bound] | None = None) -> list[Rule]:
    """The rules in force for a language: published rows, then the language's own values, then the recipe's overrides.

    Overrides are keyed "family.rule", or "family" for all of its rules; a rule whose bound is open on both sides is off.
    """
    changed = {**thresholds.of(language).bounds, **(overrides or {})}
    resolved = []
    for rule in (rule for family in families for rule in family):
        low_high = changed.get(rule.reason, changed.get(rule.family))
        bound = rule.bound if low_high is None else low_high if isinstance(low_high, Bound) else Bound(*low_high)
        if bound != Bound():
            resolved.append(Rule(rule.family, rule.name, rule.signal, bound))
    return resolved


def decide(
    signals: pa.StructArray,
    languages: Sequence[str],
    families: Sequence[tuple[Rule, ...]],
    overrides: Mapping[str, Bound] | None = None,
) -> tuple[np.ndarray, list[str], list[str]]:
    """Apply the families to a batch.

    Returns:
        keep (bool per row), reason ("" where kept, else "family.rule" of the first rule broken), detail ("value bound").
    """
    rows = len(signals)
    keep, reason, detail = np.ones(rows, dtype=bool), [""] * rows, [""] * rows
    languages = np.asarray(languages, dtype=object)
    for language in sorted(set(languages)):
        mine = np.flatnonzero(languages == language)
        for rule in resolve(families, language, overrides):
            values = column(signals, rule.signal)[mine]
            for position in np.flatnonzero(~rule.bound.holds(values)):
                row = mine[position]
                if keep[row]:
                    keep[row], reason[row], detail[row] = False, rule.reason, f"{rule.signal} {values[position]:.6g}, must be {rule.bound}"
    return keep, reason, detail


def explain(
    signals: Mapping[str, float | None], language: str, families: Sequence[tuple[Rule, ...]], overrides: Mapping[str, Bound] | None = None
) -> list[Decision]:
    """Every rule's value, bound and outcome for one document, in the order in which they are applied."""
    decisions = []
    for rule in resolve(families, language, overrides):
        value = signals[rule.signal]
        passed = value is None or bool(rule.bound.holds(np.array([value], dtype=np.float64))[0])
        decisions.append(Decision(rule.reason, rule.signal, value, str(rule.bound), passed))
    return decisions


def column(signals: pa.StructArray, name: str) -> np.ndarray:
    """A signal as float64, missing values as NaN.

    Raises:
        KeyError: the batch has no such signal: a rule that silently never fires is worse than none.
    """
    index = signals.type.get_field_index(name)
    if index < 0:
        raise KeyError(f"no signal {name!r} in the batch")
    return np.array([math.nan if value is None else value for value in signals.field(index).to_pylist()], dtype=np.float64)
