"""A recipe's own rules: the grammar, its refusals, and what decide and explain make of them."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from filters.expressions import own_rule
from filters.rules import Bound, at_most, decide, explain, rules

KNOWN = ("digits", "words", "lines", "mean_word_length")


def test_an_own_rule_is_decided_and_explained_like_the_others():
    signals = pa.StructArray.from_arrays([pa.array([0.1, 0.3, None, 0.1]), pa.array([40, 40, 1, 12], pa.int32())], ["digits", "words"])
    table = rules("toy", ("digits", at_most(0.25)))
    mine = (own_rule("my.short", "digits <= 0.5 and words >= 30", KNOWN),)
    keep, reason, detail = decide(signals, ["en", "de", "en", ""], [table, mine], {"toy": Bound()})
    assert keep.tolist() == [True, True, True, False], "a missing signal breaks no rule"
    assert (reason[3], detail[3]) == ("my.short", "digits 0.1, words 12, must be digits <= 0.5 and words >= 30")
    assert decide(signals, [""] * 4, [table, mine])[1] == ["", "toy.digits", "", "my.short"]
    (decision,) = explain({"digits": 0.1, "words": 12}, "en", [mine])
    assert (decision.rule, decision.signal, decision.bound, decision.passed) == ("my.short", "digits 0.1, words 12", "digits <= 0.5 and words >= 30", False)
    (single,) = explain({"words": 12}, "en", [(own_rule("my.few", "not words < 10", KNOWN),)])
    assert (single.signal, single.value, single.passed) == ("words", 12, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digit <= 0.2", "no signal 'digit'; did you mean digits?"),
        ("digits <= ", "cannot read"),
        ("digits", "is no condition"),
        ("digits + 1", "is no condition"),
        ("1 < 2", "reads no signal"),
        ("__import__('os').system('x') < 1", "has no meaning here"),
        ("words.real > 1", "has no meaning here"),
        ("words ** 9 ** 9 > 1", "has no meaning here"),
        ("(words > 1) + 1 > 1", "is a condition"),
        ("words > 1 and lines", "is no condition"),
        ("words > True", "has no meaning here"),
        ("words in (1, 2)", "has no meaning here"),
        ("words > 'x'", "has no meaning here"),
        ("-" * 60 + "words > 1", "nested deeper"),
        ("(" * 5000 + "words" + ")" * 5000 + " > 1", "cannot read"),
        ("words > 1\0", "cannot read"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(ValueError, match="rule my.rule: ") as caught:
        own_rule("my.rule", text, KNOWN)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_name_has_two_parts():
    for name in ("short", "my.", ".x", "my.a.b", "my.a b"):
        with pytest.raises(ValueError, match="family.rule"):
            own_rule(name, "words > 1", KNOWN)


@st.composite
def conditions(draw, depth=3):
    def number(depth):
        kind = draw(st.integers(0, 5 if depth else 1))
        if kind < 2:
            return draw(st.sampled_from(KNOWN)) if kind else str(draw(st.sampled_from([0.0, 0.5, 2.0, 1e3])))
        return f"({number(depth - 1)} {draw(st.sampled_from('+-*/'))} {number(depth - 1)})" if kind < 5 else f"-{number(depth - 1)}"

    def condition(depth):
        kind = draw(st.integers(0, 3 if depth else 0))
        if kind == 0:
            parts = [number(2) for _ in range(draw(st.integers(2, 3)))]
            return "".join(f" {draw(st.sampled_from(['<', '<=', '>', '>=', '==', '!=']))} {part}" if i else part for i, part in enumerate(parts))
        return f"not ({condition(depth - 1)})" if kind == 1 else f"({condition(depth - 1)}) {draw(st.sampled_from(['and', 'or']))} ({condition(depth - 1)})"

    return condition(depth) + " or words < 0"


@settings(max_examples=200, deadline=None)
@given(conditions(), st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0, 7.0])] * 4), min_size=1, max_size=4))
def test_an_expression_means_what_python_says_it_means(text, rows):
    columns = dict(zip(KNOWN, np.array(rows).T, strict=True))
    found = own_rule("my.rule", text, KNOWN).holds(columns.__getitem__)
    for position, row in enumerate(rows):
        names = {name: np.float64(value) for name, value in zip(KNOWN, row, strict=True)}
        try:
            with np.errstate(all="ignore"):
                wanted = eval(text, {"__builtins__": {}}, names)  # the oracle; literals are floats, since -0 and -0.0 divide differently
        except ZeroDivisionError:  # of two literals; columns give what IEEE 754 says
            reject()
        assert bool(found[position]) == bool(wanted)


def test_missing_values_pass():
    rule = own_rule("my.rule", "words > 5 and digits < 1", KNOWN)
    assert rule.holds({"words": np.array([math.nan, 1.0]), "digits": np.array([3.0, math.nan])}.__getitem__).all()
