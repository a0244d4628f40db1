"""The mixer's inside as one node against the three kernels under autograd, in float64: values and every gradient, packed documents, either dtype."""

import pytest
import torch

from kernels import mamba
from kernels.mamba import Sizes, Weights, mix, mix_reference


def problem(sizes, length=75, batch=2, seed=0):
    heads, width, groups, state, _ = sizes
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=g)
    inside, channels = heads * width, heads * width + 2 * groups * state
    weights = Weights(normal(channels, 4) / 2, normal(channels), normal(heads) - 2, torch.log(torch.rand(heads, generator=g, dtype=torch.float64) * 8 + 1),
                      normal(heads), normal(inside))
    ids = torch.cumsum((torch.rand(batch, length, generator=g) < 0.05).long(), 1)
    return normal(batch, length, inside + channels + heads), weights, ids, normal(batch, length, inside)


def graded(form, projected, weights, sizes, ids, slope):
    leaves = [t.clone().requires_grad_() for t in (projected, *weights)]
    y = form(leaves[0], Weights(*leaves[1:]), sizes, ids)
    return [y.detach(), *torch.autograd.grad(y, leaves, slope.to(y.dtype))]


@pytest.fixture
def one_node(monkeypatch):
    """The composition is out of reach: what runs is the node."""
    monkeypatch.setattr(mamba, "mix_reference", None)
    return mix


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sizes", [Sizes(4, 16, 2, 16, 1e-5), Sizes(2, 64, 1, 32, 1e-5)])
def test_values_and_gradients_are_those_of_float64(one_node, sizes, packed):
    projected, weights, ids, slope = problem(sizes)
    ids = ids if packed else None
    expected = graded(mix_reference, projected, weights, sizes, ids, slope)
    found = graded(one_node, projected.float(), Weights(*(w.float() for w in weights)), sizes, ids, slope)
    for name, mine, true in zip(("y", "projected", *Weights._fields), found, expected):
        assert (mine - true).abs().max() <= 1e-4 * true.abs().max(), name


def test_bfloat16_is_no_further_from_float64_than_the_kernels_apart(one_node):
    sizes = Sizes(4, 64, 2, 64, 1e-5)
    projected, weights, ids, slope = problem(sizes, seed=3)
    projected, slope = projected.bfloat16(), slope.bfloat16()
    exact = graded(mix_reference, projected.double(), weights, sizes, ids, slope)
    narrow = Weights(*(w.float() for w in weights))
    apart = graded(mix_reference, projected, narrow, sizes, ids, slope)
    for name, mine, other, true in zip(("y", "projected", *Weights._fields), graded(one_node, projected, narrow, sizes, ids, slope), apart, exact):
        assert mine.dtype == other.dtype
        allowed = max(1.1 * (other.double() - true).norm(), 2**-8 * true.norm())  # of a few heads' sums either may be the luckier: a rounding is allowed
        assert (mine.double() - true).norm() <= allowed, name


def test_other_widths_are_composed():
    sizes = Sizes(2, 12, 1, 20, 1e-5)
    projected, weights, ids, slope = problem(sizes, length=9)
    expected = graded(mix_reference, projected, weights, sizes, ids, slope)
    found = graded(mix, projected.float(), Weights(*(w.float() for w in weights)), sizes, ids, slope)
    for mine, true in zip(found, expected):
        torch.testing.assert_close(mine, true.float(), rtol=1e-4, atol=1e-4)
