"""Fast norms against their definitions: values, gradients, and where each rounds in bf16."""

import pytest
import torch

from kernels.norms import gated_rms_norm, gated_rms_norm_reference, rms_norm, rms_norm_reference

EPS = 1e-5


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 8), (3, 5, 96), (2, 130, 64)])
def test_rms_norm(shape):
    results = []
    for run, dtype in ((rms_norm_reference, torch.float64), (rms_norm, torch.float32)):
        x, w = (t.to(dtype).requires_grad_() for t in (draw(*shape), draw(shape[-1], seed=1)))
        y = run(x, w, EPS)
        (y * draw(*shape, seed=2).to(dtype)).sum().backward()
        results.append((y, x.grad, w.grad))
    for slow, fast in zip(*results):
        torch.testing.assert_close(fast, slow.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 4])
def test_gated_rms_norm(groups):
    results = []
    for run, dtype in ((gated_rms_norm_reference, torch.float64), (gated_rms_norm, torch.float32)):
        y, wide, w = (t.to(dtype).requires_grad_() for t in (draw(2, 70, 64), draw(2, 70, 100, seed=1), draw(64, seed=2)))
        out = run(y, wide[..., :64], w, EPS, groups)
        (out * draw(2, 70, 64, seed=3).to(dtype)).sum().backward()
        results.append((out, y.grad, wide.grad, w.grad))
    for slow, fast in zip(*results):
        torch.testing.assert_close(fast, slow.float(), rtol=1e-4, atol=1e-4)


def test_rounding_order_in_bf16():
    """Block norm: weight in float32, one cast. Gated norm: cast, then the weight in bf16. Compared where no sum-order doubt remains."""
    x, w = draw(4, 64).bfloat16(), draw(64, seed=1)
    same = (rms_norm(x, w, EPS) == rms_norm_reference(x, w, EPS)).float().mean()
    assert same > 0.99
    y, z = draw(4, 64, seed=2), draw(4, 64, seed=3).bfloat16()
    same = (gated_rms_norm(y, z, w, EPS, 2) == gated_rms_norm_reference(y, z, w, EPS, 2)).float().mean()
    assert same > 0.99
