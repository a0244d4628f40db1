"""The Feistel shuffle is a bijection, its array form equals its reference, and it does shuffle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.feistel import LIMIT, Permutation


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 3000), seed=st.integers(), epoch=st.integers(0, 5))
def test_it_is_a_bijection(n, seed, epoch):
    image = Permutation(n, seed, epoch).take(np.arange(n))
    assert sorted(image.tolist()) == list(range(n))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, LIMIT), seed=st.integers(0, 1 << 64), data=st.data())
def test_array_form_and_inverse_equal_the_reference(n, seed, data):
    points = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8))
    permutation = Permutation(n, seed, "web", 3)
    expected = [permutation[point] for point in points]
    assert permutation.take(np.array(points)).tolist() == expected
    assert [permutation.inverse(point) for point in expected] == points
    assert all(0 <= point < n for point in expected)


def test_keys_name_different_orders():
    orders = {tuple(Permutation(50, *key).take(np.arange(50))) for key in [(0,), (1,), (0, 0), (0, 1), ("0",), ("a", 0)]}
    assert len(orders) == 6


@pytest.mark.parametrize("n", [5, 16, 17, 100])
def test_every_element_reaches_every_place_equally_often(n):
    # chi-square of the n x n table of (from, to) over many keys; its mean is (n-1)**2 and its deviation sqrt(2)*(n-1).
    keys = 4000
    table = np.zeros((n, n))
    for seed in range(keys):
        table[np.arange(n), Permutation(n, "uniform", seed).take(np.arange(n))] += 1
    expected = keys / n
    chi_square = ((table - expected) ** 2 / expected).sum()
    assert abs(chi_square - (n - 1) ** 2) < 6 * np.sqrt(2) * (n - 1)


def test_neighbours_do_not_stay_neighbours():
    image = Permutation(100_000, 7).take(np.arange(100_000))
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.02


def test_bad_arguments():
    with pytest.raises(ValueError, match="2\\*\\*62"):
        Permutation(-1)
    with pytest.raises(ValueError, match="outside"):
        Permutation(3)[3]
    with pytest.raises(ValueError, match="must lie"):
        Permutation(3).take(np.array([3]))
