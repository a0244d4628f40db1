"""The one-pass cross-entropy against log_softmax in float64, value and gradient."""

import pytest
import torch

from kernels.cross_entropy import cross_entropy_, cross_entropy_reference


@pytest.mark.parametrize("vocabulary", [1, 5, 16, 17, 50, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_those_of_float64(dtype, vocabulary):
    g = torch.Generator().manual_seed(vocabulary)
    logits = (torch.randn(9, vocabulary, generator=g) * 8).to(dtype)
    labels, share = torch.randint(0, vocabulary, (9,), generator=g), torch.rand(9, generator=g)
    expected, slope = cross_entropy_reference(logits.double(), labels, share.double())
    losses = cross_entropy_(logits, labels, share)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.double(), slope, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_the_reference_is_autograd():
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(7, 30, dtype=torch.float64, generator=g).requires_grad_()
    labels, share = torch.randint(0, 30, (7,), generator=g), torch.rand(7, dtype=torch.float64, generator=g)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    (losses * share).sum().backward()
    mine, slope = cross_entropy_reference(logits.detach(), labels, share)
    torch.testing.assert_close(mine, losses.detach())
    torch.testing.assert_close(slope, logits.grad)


def test_float64_takes_the_reference_and_huge_logits_stay_finite():
    logits = torch.tensor([[1e30, -1e30, 3e30]])
    wide, labels, share = logits.double(), torch.tensor([0]), torch.ones(1)
    assert cross_entropy_(wide, labels, share).isfinite().all() and wide.isfinite().all()
    assert cross_entropy_(logits, labels, share).isfinite().all()
    torch.testing.assert_close(logits, torch.tensor([[-1.0, 0.0, 1.0]]), rtol=0, atol=1e-37)  # the compiled exponential ends at e^-87
