"""The router's scores and their gradients against float64; the same bits on any number of threads."""

import pytest
import torch

from kernels.routing import scores, scores_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens,width,experts", [(1, 16, 2), (37, 48, 5), (300, 64, 40), (64, 32, 16)])
def test_values_and_gradients(tokens, width, experts, dtype):
    g = torch.Generator().manual_seed(tokens)
    x, weight, slope = (torch.randn(*shape, generator=g) for shape in ((tokens, width), (experts, width), (tokens, experts)))
    fast = [x.to(dtype).requires_grad_(), weight.clone().requires_grad_()]
    slow = [leaf.detach().double().requires_grad_() for leaf in fast]
    y, exact = scores(*fast), torch.sigmoid(slow[0] @ slow[1].t())
    y.backward(slope)
    exact.backward(slope.double())
    assert y.dtype == torch.float32 and fast[0].grad.dtype == dtype
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast[1].grad.double(), slow[1].grad, rtol=1e-4, atol=1e-5)
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(fast[0].grad.double(), slow[0].grad, rtol=rounding, atol=1e-5)


def test_widths_that_are_no_whole_vectors_take_the_reference():
    x, weight = torch.randn(9, 12), torch.randn(3, 12)
    assert torch.equal(scores(x, weight), scores_reference(x, weight))


def test_same_bits_on_any_number_of_threads(monkeypatch):
    monkeypatch.setattr("kernels.bits.PARALLEL_ELEMENTS", 1)
    x, weight, slope = torch.randn(1000, 64), torch.randn(24, 64), torch.randn(1000, 24)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
            y = scores(*leaves)
            results.append((y, *torch.autograd.grad(y, leaves, slope)))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))
