"""Compiled attention against torch's with a mask in float64, values and gradients; packed documents are each alone."""

import numpy as np
import pytest
import torch

from kernels import attention
from kernels.attention import causal_attention, causal_attention_reference


def problem(length, heads, kv_heads, width, dtype=torch.float64, seed=0, batch=2):
    g = torch.Generator().manual_seed(seed)
    draw = lambda count: torch.randn(batch, length, count, width, generator=g, dtype=torch.float64).to(dtype)
    return draw(heads), draw(kv_heads), draw(kv_heads), draw(heads), torch.cumsum((torch.rand(batch, length, generator=g) < 0.1).long(), 1)


def run(form, tensors, weight, ids):
    leaves = [t.clone().requires_grad_() for t in tensors]
    y = form(*leaves, ids)
    return [y.detach(), *torch.autograd.grad(y, leaves, weight)]


@pytest.fixture
def compiled(monkeypatch):
    """The reference is out of reach: what runs is the compiled form."""
    monkeypatch.setattr(attention, "causal_attention_reference", None)
    return causal_attention


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length, heads, kv_heads, width", [(1, 4, 1, 32), (33, 8, 2, 32), (70, 8, 1, 64), (129, 4, 1, 32), (38, 6, 3, 16), (51, 3, 3, 48)])
def test_values_and_gradients_are_those_of_float64(compiled, length, heads, kv_heads, width, packed):
    *tensors, weight, ids = problem(length, heads, kv_heads, width)
    ids = ids if packed else None
    expected = run(causal_attention_reference, tensors, weight, ids)
    found = run(compiled, [t.float() for t in tensors], weight.float(), ids)
    for mine, true in zip(found, expected):
        torch.testing.assert_close(mine, true.float(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("pairs", [True, False])
def test_bfloat16_is_no_further_from_float64_than_torch(compiled, monkeypatch, pairs):
    if not pairs:  # as on a machine that does not multiply them
        monkeypatch.setattr(attention, "words_for", lambda dtype, *inner: np.empty(0, np.float32))
    *tensors, weight, ids = problem(90, 8, 2, 32, torch.bfloat16, seed=3)
    true = run(causal_attention_reference, [t.double() for t in tensors], weight.double(), ids)
    torchs = run(causal_attention_reference, tensors, weight, ids)
    for mine, other, exact in zip(run(compiled, tensors, weight, ids), torchs, true):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - exact).norm() <= 1.05 * (other.double() - exact).norm()


def test_packed_documents_are_each_alone(compiled):
    q, k, v, weight, _ = problem(40, 4, 1, 32, torch.float32, batch=1)
    ids = torch.tensor([[0] * 17 + [1] * 23])
    whole = run(compiled, [q, k, v], weight, ids)
    for part in (slice(0, 17), slice(17, 40)):
        alone = run(compiled, [t[:, part] for t in (q, k, v)], weight[:, part], None)
        for mine, true in zip(whole, alone):
            torch.testing.assert_close(mine[:, part], true, rtol=1e-6, atol=1e-6)


def test_large_scores_stay_finite(compiled):
    *tensors, weight, ids = problem(20, 4, 1, 32, torch.float32)
    assert all(t.isfinite().all() for t in run(compiled, [tensors[0] * 1e4, *tensors[1:]], weight, ids))
