"""Mixture of experts and the dense MLP for the few rows of a decoding step: route, then every chosen expert once, over the rows that chose it.

Decoding is bound by reading weights: a chosen expert's panels are read once however many rows chose it, and no others are. Experts take their turn in
order, and a row adds up its own in that order, so its sum does not depend on its neighbours.

Shapes: M rows, D hidden size, E experts, K choices a row, L width experts read and write.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kernels.lanes import JIT, sigmoid
from kernels.skinny import PANEL, as_words, linear, padded, product, words_of


@njit(**JIT)
def mlp(words, up, down, inputs, count, hidden, inner, outer):
    """down(relu(up(x))²): [count, padded(outer)] float32, from rows of words."""
    raised = linear(words, up, inputs, count, hidden, inner)
    middle, stride = np.empty(count * inner, np.float32), padded(inner)
    for m in range(count):
        source, to = raised[m * stride:m * stride + inner], middle[m * inner:(m + 1) * inner]
        for i in range(inner):
            value = max(source[i], np.float32(0.0))
            to[i] = value * value
    return linear(words, down, as_words(middle, words), count, inner, outer)


@njit(**JIT)
def experts_step(words, at, inputs, chosen, shares, sizes):
    """Sum of the chosen experts, weighted: [M, L] float32. inputs: rows of words, L wide; chosen and shares [M, K]; words[at:]: each expert's two
    packed matrices, one expert after another."""
    rows, choices = chosen.shape
    outer, inner = sizes.expert_width, sizes.expert_inner
    width, stride = words_of(outer, words), padded(outer)
    up_size, down_size = padded(inner) * width, padded(outer) * words_of(inner, words)
    out = np.zeros(rows * outer, np.float32)
    mine, share = np.empty(rows, np.int64), np.empty(rows, np.float32)
    gathered = np.empty(rows * width, inputs.dtype)
    for e in range(sizes.experts):
        count = 0
        for m in range(rows):
            for k in range(choices):
                if chosen[m, k] == e:
                    mine[count], share[count] = m, shares[m, k]
                    gathered[count * width:(count + 1) * width] = inputs[m * width:(m + 1) * width]
                    count += 1
                    break  # once, even if all scores are NaN
        if count:
            up = at + e * (up_size + down_size)
            result = mlp(words, up, up + up_size, gathered, count, outer, inner, outer)
            for i in range(count):
                source, to = result[i * stride:i * stride + outer], out[mine[i] * outer:(mine[i] + 1) * outer]
                for d in range(outer):
                    to[d] += share[i] * source[d]
    return out


@njit(**JIT)
def route(x, small, at, rows, sizes, scaling):
    """(chosen experts int64, their weights float32), both [M, K]: the largest of sigmoid score + bias (ties: the lower number), weighed by the scores
    alone. small[at:]: the router's panels, then the bias [E]. Float32 whatever the experts are."""
    count, choices = sizes.experts, sizes.choices
    stride = padded(count)
    scores = np.empty(rows * stride, np.float32)
    product(small, at, x, rows, sizes.hidden, 0, stride // PANEL, scores, stride)
    bias = small[at + stride * sizes.hidden:at + stride * sizes.hidden + count]
    chosen, shares = np.empty((rows, choices), np.int64), np.empty((rows, choices), np.float32)
    ranks = np.empty(count, np.float32)
    for m in range(rows):
        row = scores[m * stride:m * stride + count]
        for e in range(count):
            row[e] = sigmoid(row[e])
            ranks[e] = row[e] + bias[e]
        total = np.float32(0.0)
        for k in range(choices):
            best = 0
            for e in range(1, count):
                if ranks[e] > ranks[best]:
                    best = e
            ranks[best] = -np.inf
            chosen[m, k], shares[m, k] = best, row[best]
            total += row[best]
        factor = scaling / (total + np.float32(1e-20)) if sizes.normalised else scaling
        for k in range(choices):
            shares[m, k] *= factor
    return chosen, shares
