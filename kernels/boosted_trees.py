"""Gradient-boosted trees evaluated from flat arrays: a small model in a data file, no library at run time, no pickle.

A node is a row of each array. An inner node sends a row to `left` where row[feature] <= threshold and to `right` otherwise; a leaf has `left` -1 and
holds its score in `threshold`. `roots` are the trees' first nodes; a row's logit is the bias and the sum of its leaves.
"""

from typing import NamedTuple

import numba
import numpy as np


class Trees(NamedTuple):
    """T trees of M nodes in all."""

    feature: np.ndarray  # int16 [M]
    threshold: np.ndarray  # float32 [M]
    left: np.ndarray  # int32 [M]
    right: np.ndarray  # int32 [M]
    roots: np.ndarray  # int32 [T]
    bias: float


def probabilities_reference(trees: Trees, rows: np.ndarray) -> np.ndarray:
    """float32 [B] of rows float32 [B, F], one row and one tree at a time."""
    logits = np.full(len(rows), trees.bias)
    for place, row in enumerate(rows):
        for root in trees.roots:
            node = root
            while trees.left[node] >= 0:
                node = trees.left[node] if row[trees.feature[node]] <= trees.threshold[node] else trees.right[node]
            logits[place] += trees.threshold[node]
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def probabilities(trees: Trees, rows: np.ndarray) -> np.ndarray:
    """The same, compiled."""
    logits = np.empty(len(rows), np.float64)
    _logits(trees.feature, trees.threshold, trees.left, trees.right, trees.roots, trees.bias, rows, logits)
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


@numba.njit(cache=True, nogil=True)
def _logits(feature, threshold, left, right, roots, bias, rows, logits):
    for place in range(rows.shape[0]):
        row = rows[place]
        total = bias
        for tree in range(roots.size):
            node = roots[tree]
            while left[node] >= 0:
                node = left[node] if row[feature[node]] <= threshold[node] else right[node]
            total += threshold[node]
        logits[place] = total
