"""Experts for a handful of tokens: y_t = sum_k weight_tk * down_e relu(up_e x_t)², without a gradient.

Decoding is bound by reading weights. One compiled pass reads each chosen expert once, and no other; a batched product over all experts reads E / K
times as much for one token, and a loop of library calls costs more to start than to run. Sums are float32; a token's result does not depend on
its neighbours, for each is summed by itself, choice by choice.

Shapes: T tokens, K choices a token, E experts, L width experts read and write, M their inner width.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.bits import in_spans
from kernels.lanes import JIT, load, runs_here

MOST_TOKENS = 32  # beyond, products per expert are large enough for the library


def fits(x_TL: Tensor, up_EML: Tensor, down_ELM: Tensor) -> bool:
    return (x_TL.shape[0] <= MOST_TOKENS and runs_here(x_TL, up_EML, down_ELM) and x_TL.dtype == up_EML.dtype == down_ELM.dtype
            and up_EML.is_contiguous() and down_ELM.is_contiguous())


def experts_step(x_TL: Tensor, up_EML: Tensor, down_ELM: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """[T,L] in the dtype of x. Each product's inner activation is float32; the sum over choices too."""
    tokens, choices = index_TK.shape
    x = x_TL.detach().float().contiguous().numpy()
    up, down = _bits(up_EML), _bits(down_ELM)
    pairs = index_TK.reshape(-1).numpy()
    order = np.argsort(pairs, kind="stable")  # an expert's tokens run one after another, while its weights are near
    out = np.empty((tokens * choices, x.shape[1]), np.float32)
    in_spans(lambda a, b: _pairs(order[a:b], pairs, x, up, down, choices, out), len(order), 2 * len(order) * up_EML.shape[1] * up_EML.shape[2])
    y_TL = (torch.from_numpy(out).view(tokens, choices, -1) * weight_TK[..., None]).sum(1)
    return y_TL.to(x_TL.dtype)


def _bits(t: Tensor) -> np.ndarray:
    t = t.detach()
    return (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy()


@njit(**JIT)
def _pairs(order, pairs, x, up, down, choices, out):
    inner_size, width = up.shape[1:]
    inner = np.empty(inner_size, np.float32)
    for pair in order:
        expert, row = pairs[pair], x[pair // choices]
        for m in range(inner_size):
            weights, total = up[expert, m], np.float32(0.0)
            for i in range(width):
                total += load(weights, i) * row[i]
            positive = max(total, np.float32(0.0))
            inner[m] = positive * positive
        for i in range(width):
            weights, total = down[expert, i], np.float32(0.0)
            for m in range(inner_size):
                total += load(weights, m) * inner[m]
            out[pair, i] = total
