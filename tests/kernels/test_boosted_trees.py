"""The compiled evaluation of boosted trees against the plain one, on random forests and random rows."""

import numpy as np
import pytest

from kernels.boosted_trees import Trees, probabilities, probabilities_reference


def random_trees(draw: np.random.Generator, trees: int, features: int) -> Trees:
    feature, threshold, left, right, roots = [], [], [], [], []

    def grow(depth: int) -> int:
        node = len(feature)
        for column, value in ((feature, 0), (threshold, draw.normal() / 4), (left, -1), (right, -1)):
            column.append(value)
        if depth and draw.random() < 0.8:
            feature[node] = int(draw.integers(features))
            left[node], right[node] = grow(depth - 1), grow(depth - 1)
        return node

    for _ in range(trees):
        roots.append(grow(5))
    return Trees(np.array(feature, np.int16), np.array(threshold, np.float32), *(np.array(column, np.int32) for column in (left, right, roots)), 0.25)


@pytest.mark.parametrize("seed", range(3))
def test_compiled_trees_agree_with_the_plain_ones(seed):
    draw = np.random.default_rng(seed)
    trees, rows = random_trees(draw, 20, 7), draw.normal(size=(50, 7)).astype(np.float32)
    np.testing.assert_allclose(probabilities(trees, rows), probabilities_reference(trees, rows), rtol=1e-6)


def test_a_row_on_a_threshold_goes_left():
    stump = Trees(np.array([0, 0, 0], np.int16), np.array([1.5, -2, 2], np.float32), *(np.array(c, np.int32) for c in ([1, -1, -1], [2, -1, -1], [0])), 0.0)
    low, high = probabilities(stump, np.array([[1.5], [1.6]], np.float32))
    assert low < 0.5 < high
