"""The chunked head loss against torch's, in float64 where it matters."""

import pytest
import torch
from torch.nn import functional as F

from training import losses


def problem(K, D, V, seed, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(K, D, generator=g).to(dtype).requires_grad_()
    w = (torch.randn(V, D, generator=g) * 0.3).requires_grad_()
    return h, w, torch.randint(0, V, (K,), generator=g), torch.rand(K, generator=g) * (torch.rand(K, generator=g) > 0.4)


@pytest.mark.parametrize("chunk", [1 << 20, 7 * 50, 1])
def test_value_and_gradients_are_those_of_float64_autograd(chunk, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk)
    h, w, labels, weights = problem(33, 16, 50, 1)
    loss = losses.linear_cross_entropy(h, w, labels, weights)
    (3 * loss).backward()
    hd, wd = h.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    expected = (F.cross_entropy(hd @ wd.T, labels, reduction="none") * weights).sum() / weights.sum()
    (3 * expected).backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(h.grad.double(), hd.grad, rtol=1e-4, atol=1e-7)
    assert torch.allclose(w.grad.double(), wd.grad, rtol=1e-4, atol=1e-7)
    per_token = losses.token_losses(h, w, labels)
    assert torch.allclose(per_token.double(), F.cross_entropy(hd @ wd.T, labels, reduction="none"), rtol=1e-5)


def test_bfloat16_hidden_states_and_float32_head():
    h, w, labels, weights = problem(300, 64, 128, 2, torch.bfloat16)
    loss = losses.linear_cross_entropy(h, w, labels, weights)
    loss.backward()
    hd, wd = h.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    expected = (F.cross_entropy(hd @ wd.T, labels, reduction="none") * weights).sum() / weights.sum()
    expected.backward()
    assert h.grad.dtype == torch.bfloat16 and w.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=3e-3)
    assert (h.grad.double() - hd.grad).norm() < 0.01 * hd.grad.norm()
    assert (w.grad.double() - wd.grad).norm() < 0.01 * wd.grad.norm()


def test_masked_tokens_leave_no_trace_and_no_weight_is_no_loss():
    h, w, labels, weights = problem(40, 8, 20, 3)
    chosen = weights > 0
    full = losses.linear_cross_entropy(h, w, labels, weights)
    full.backward()
    assert not h.grad[~chosen].any()
    assert full.item() == pytest.approx(losses.linear_cross_entropy(h[chosen], w, labels[chosen], weights[chosen]).item(), rel=1e-6)
    nothing = losses.linear_cross_entropy(h, w, labels, torch.zeros(40))
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, h)[0].any()


def test_huge_logits_stay_finite():
    h, w, labels, _ = problem(8, 8, 16, 4)
    loss = losses.linear_cross_entropy(h * 1e4, w, labels)
    assert torch.isfinite(loss) and torch.isfinite(torch.autograd.grad(loss, w)[0]).all()
