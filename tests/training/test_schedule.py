"""Schedules at the points their definitions fix, and what holds everywhere."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.schedule import constant, cosine, wsd


def test_warmup_stable_decay_at_its_corners():
    rate = [wsd(step, 100, 0.1, 0.4, 0.01) for step in range(100)]
    assert rate[0] == pytest.approx(0.1) and rate[4] == pytest.approx(0.5)  # linear over the first 10
    assert rate[9:60] == [1.0] * 51
    # Megatron-LM: min + (peak - min)(1 - sqrt(decay_ratio)); a quarter of the decay is 10 steps after step 60
    assert rate[69] == pytest.approx(0.01 + 0.99 * (1 - math.sqrt(10 / 40)))
    assert rate[99] == pytest.approx(0.01)


def test_nanos_and_supers_rates_in_tokens():
    """Super: peak 4.5e-4, floor 4.5e-6, 25T tokens, warmup 200B, last 5T decay."""
    rate = lambda tokens: 4.5e-4 * wsd(tokens, 25e12, 200e9 / 25e12, 0.2, 0.01)
    assert rate(100e9) == pytest.approx(2.25e-4) and rate(10e12) == pytest.approx(4.5e-4) and rate(25e12) == pytest.approx(4.5e-6)
    assert rate(21.25e12) == pytest.approx(4.5e-6 + (4.5e-4 - 4.5e-6) * 0.5)


def test_cosine_and_constant():
    assert cosine(9, 110, 10 / 110, 0.1) == pytest.approx(1) and cosine(59, 110, 10 / 110, 0.1) == pytest.approx(0.55)
    assert cosine(109, 110, 10 / 110, 0.1) == pytest.approx(0.1)
    assert [constant(step, 10, 0.2) for step in range(4)] == [0.5, 1.0, 1.0, 1.0] and constant(0, 10) == 1.0


@given(st.integers(1, 500), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_every_rate_is_within_its_bounds_and_decay_never_rises(total, warmup, decay, floor):
    for schedule in (lambda step: wsd(step, total, warmup, decay, floor), lambda step: cosine(step, total, warmup, floor)):
        rates = [schedule(step) for step in range(total)]
        assert all(0 <= rate <= 1 for rate in rates) and all(rate > 0 for rate in rates[:-1])  # a floor of 0 ends at 0
        peak = rates.index(max(rates))
        assert rates[:peak] == sorted(rates[:peak]) and all(a >= b - 1e-12 for a, b in zip(rates[peak:], rates[peak + 1:]))


def test_senseless_schedules_are_refused():
    for call in (lambda: wsd(0, 10, 0.7, 0.7, 0), lambda: wsd(-1, 10, 0, 0, 0), lambda: cosine(0, 0, 0, 0), lambda: constant(0, 10, 1.5)):
        with pytest.raises(ValueError):
            call()
