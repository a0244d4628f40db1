"""The GPU twins of the norms, interpreted, against the definitions: values, gradients, rounding places."""

import pytest
import torch

from kernels.norms import gated_rms_norm, gated_rms_norm_reference, rms_norm, rms_norm_reference

EPS = 1e-5
pytestmark = pytest.mark.usefixtures("gpu")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def graded(run, inputs, dtype, upstream):
    leaves = [t.to(dtype).requires_grad_() for t in inputs]
    y = run(*leaves)
    y.backward(upstream.to(y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("shape", [(1, 8), (3, 5, 96), (37, 33)])
def test_rms_norm(shape):
    inputs, upstream = (draw(*shape), draw(shape[-1], seed=1)), draw(*shape, seed=2)
    slow = graded(lambda x, w: rms_norm_reference(x, w, EPS), inputs, torch.float64, upstream)
    fast = graded(lambda x, w: rms_norm(x, w, EPS), inputs, torch.float32, upstream)
    for one, other in zip(fast, slow):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups, width", [(1, 24), (4, 64), (2, 40)])
def test_gated_rms_norm(groups, width):
    """z is a slice of a wider tensor, as in the mixer."""
    inputs, upstream = (draw(2, 11, width), draw(2, 11, width + 9, seed=1), draw(width, seed=2)), draw(2, 11, width, seed=3)
    slow = graded(lambda y, z, w: gated_rms_norm_reference(y, z[..., :width], w, EPS, groups), inputs, torch.float64, upstream)
    fast = graded(lambda y, z, w: gated_rms_norm(y, z[..., :width], w, EPS, groups), inputs, torch.float32, upstream)
    for one, other in zip(fast, slow):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-4)


def test_bf16_rounds_where_the_definition_rounds():
    """Block norm: weight in float32, one cast. Gated norm: cast, then the weight. The sums' order may move a value over a rounding edge, rarely."""
    x, z, w = (draw(40, 64, seed=s).bfloat16() for s in (0, 1, 2))
    w = w[0]
    for mine, true, other in (
        (rms_norm(x, w, EPS), rms_norm_reference(x, w, EPS), rms_norm_reference(x, torch.ones_like(w), EPS) * w),
        (gated_rms_norm(x, z, w, EPS, 4), gated_rms_norm_reference(x, z, w, EPS, 4), (gated_rms_norm_reference(x.float(), z.float(), w.float(), EPS, 4)).bfloat16()),
    ):
        assert mine.dtype == torch.bfloat16
        assert (mine != true).float().mean() < 0.002
        assert (mine != other).float().mean() > 0.1  # the other order would show


def test_gradients_in_bf16():
    inputs, upstream = (draw(9, 48), draw(48, seed=1)), draw(9, 48, seed=2)
    slow = graded(lambda x, w: rms_norm_reference(x, w, EPS), [t.bfloat16() for t in inputs], torch.float32, upstream.bfloat16())
    fast = graded(lambda x, w: rms_norm(x, w, EPS), inputs, torch.bfloat16, upstream)
    for one, other in zip(fast, slow):
        torch.testing.assert_close(one.float(), other, rtol=2**-7, atol=1e-3)
