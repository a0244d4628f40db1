"""The GPU twin of the causal convolution, interpreted, against the shifted sum: values, gradients, documents, state, and the decoding step."""

import pytest
import torch

from kernels.conv import causal_conv, causal_conv_reference, causal_conv_step

pytestmark = pytest.mark.usefixtures("gpu")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def graded(run, dtype, length, packed, carried, channels=70):
    """Channels are a slice of a wider tensor, as in the mixer."""
    wide, weight, bias, state = (t.to(dtype).requires_grad_() for t in (draw(2, length, channels + 9), draw(channels, 4, seed=1), draw(channels, seed=2),
                                                                        draw(2, 3, channels, seed=3)))
    ids = (torch.rand(2, length, generator=torch.Generator().manual_seed(4)) < 0.2).long().cumsum(1) if packed else None
    y = run(wide[..., 4:channels + 4], weight, bias, seq_idx_BL=ids, state_BWC=state if carried else None)
    y.backward(draw(2, length, channels, seed=5).to(y.dtype))
    return [y.detach(), wide.grad, weight.grad, bias.grad, *([state.grad] if carried else [])]


@pytest.mark.parametrize("length, packed, carried", [(1, False, False), (2, True, True), (35, True, False), (33, False, True), (65, True, True)])
def test_conv(length, packed, carried):
    slow, fast = (graded(run, dtype, length, packed, carried) for run, dtype in ((causal_conv_reference, torch.float64), (causal_conv, torch.float32)))
    for mine, true in zip(fast, slow):
        torch.testing.assert_close(mine, true.float(), rtol=1e-4, atol=2e-5)


def test_conv_in_bf16():
    fast, slow = graded(causal_conv, torch.bfloat16, 35, True, True), graded(causal_conv_reference, torch.bfloat16, 35, True, True)
    assert (fast[0] != slow[0]).float().mean() < 0.01 and torch.allclose(fast[0].float(), slow[0].float(), rtol=2**-7)
    for mine, true in zip(fast[1:], slow[1:]):
        torch.testing.assert_close(mine.float(), true.float(), rtol=0.05, atol=0.1)  # autograd sums the definition's terms in bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("some", [False, True])
def test_step_continues_a_row(dtype, some):
    """Slots 3 and 1 of four; where only some are active, the others keep their bits."""
    x, weight, bias, slots = (t.to(dtype) for t in (draw(2, 6, 300), draw(300, 4, seed=1), draw(300, seed=2), draw(4, 3, 300, seed=3)))
    rows, active = torch.tensor([3, 1]), torch.tensor([True, False]) if some else None
    before = slots.clone()
    true = causal_conv_reference(x, weight, bias, state_BWC=before[rows])
    for t in range(6):
        y = causal_conv_step(x[:, t], weight, bias, slots, rows, active)
        torch.testing.assert_close(y[:1] if some else y, true[:1, t] if some else true[:, t], rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    assert torch.equal(slots[3], x[0, 3:]) and torch.equal(slots[[0, 2]], before[[0, 2]])
    assert torch.equal(slots[1], before[1] if some else x[1, 3:])
