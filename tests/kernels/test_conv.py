"""The fast causal convolution against shifted products, and those against torch's conv1d."""

import pytest
import torch
import torch.nn.functional as F

from kernels.conv import causal_conv, causal_conv_reference, causal_conv_step


def inputs(length, dtype=torch.float32, batch=2, channels=48, seed=0):
    g = torch.Generator().manual_seed(seed)
    wide = torch.randn(batch, length, channels + 24, generator=g).to(dtype)  # a slice of a wider projection, as in the mixer
    ids = torch.cumsum((torch.rand(batch, length, generator=g) < 0.2).long(), 1)
    return wide, torch.randn(channels, 4, generator=g), torch.randn(channels, generator=g), ids, torch.randn(batch, 3, channels, generator=g).to(dtype)


def test_reference_is_conv1d():
    wide, weight, bias, _, state = inputs(17)
    x = wide[..., 8:56]
    expected = F.silu(F.conv1d(torch.cat([state, x], 1).transpose(1, 2), weight[:, None], bias, groups=48)).transpose(1, 2)
    torch.testing.assert_close(causal_conv_reference(x, weight, bias, state_BWC=state), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("length", [1, 3, 5, 64, 150])
def test_fast_equals_reference(length, packed, carried):
    wide, weight, bias, ids, state = inputs(length, seed=length)
    cotangent = torch.randn(2, length, 48, generator=torch.Generator().manual_seed(9))
    results = []
    for run in (causal_conv_reference, causal_conv):
        leaves = [t.clone().requires_grad_() for t in (wide, weight, bias, state)]
        y = run(leaves[0][..., 8:56], leaves[1], leaves[2], seq_idx_BL=ids if packed else None, state_BWC=leaves[3] if carried else None)
        (y * cotangent).sum().backward()
        results.append([y] + [leaf.grad for leaf in leaves if leaf.grad is not None])
    for slow, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)


def test_bf16_rounds_once():
    wide, weight, bias, ids, _ = inputs(50, torch.bfloat16)
    x = wide[..., 8:56]
    exact = causal_conv_reference(x.float(), weight, bias, seq_idx_BL=ids)
    fast = causal_conv(x, weight, bias, seq_idx_BL=ids)
    assert fast.dtype == torch.bfloat16
    assert ((fast.float() - exact).abs() <= exact.abs() * 2 ** -8 + 1e-6).all()


def test_each_document_alone():
    wide, weight, bias, _, _ = inputs(20)
    x, ids = wide[:1, :, 8:56], torch.tensor([[4] * 7 + [1] * 2 + [9] * 11])
    alone = torch.cat([causal_conv(part, weight, bias) for part in x.split([7, 2, 11], 1)], 1)
    torch.testing.assert_close(causal_conv(x, weight, bias, seq_idx_BL=ids), alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_equal_the_whole(dtype):
    wide, weight, bias, _, state = inputs(6, dtype)
    x = wide[..., 8:56]
    expected = causal_conv_reference(x, weight, bias, state_BWC=state)
    states, rows = torch.full((4, 3, 48), 5.0, dtype=dtype), torch.tensor([2, 0])
    states[rows] = state
    y = torch.stack([causal_conv_step(x[:, t], weight, bias, states, rows) for t in range(6)], 1)
    torch.testing.assert_close(y, expected)
    assert torch.equal(states[rows], x[:, -3:]) and (states[[1, 3]] == 5.0).all()
    causal_conv_step(x[:, 0], weight, bias, states, rows, torch.tensor([False, True]))
    assert torch.equal(states[2], x[0, -3:]) and torch.equal(states[0, 2], x[1, 0])


def test_silu_at_its_ends():
    x = torch.cat([torch.linspace(-300, 300, 4096), torch.linspace(-4, 4, 4096)]).view(1, -1, 16).requires_grad_()
    y = causal_conv(x, torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(16, 4), torch.zeros(16))
    y.sum().backward()
    exact = x.detach().double().requires_grad_()
    F.silu(exact).sum().backward()
    torch.testing.assert_close(y, F.silu(exact).float(), rtol=2e-6, atol=1e-35)
    torch.testing.assert_close(x.grad, exact.grad.float(), rtol=2e-5, atol=1e-6)
