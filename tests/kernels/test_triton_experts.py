"""The GPU twin of the grouped experts, interpreted, against every expert on every token: values, gradients, experts without tokens."""

import pytest
import torch

from kernels.experts import experts, experts_reference

pytestmark = pytest.mark.usefixtures("gpu")


@pytest.fixture(autouse=True)
def small_tiles(gpu, monkeypatch):
    from kernels.triton import experts as twin

    for name in ("ROWS", "COLUMNS", "DEPTH"):
        monkeypatch.setattr(twin, name, 16)


def graded(run, dtype, tokens, count, choices, width=20, inner=37, used=None):
    g = torch.Generator().manual_seed(tokens)
    normal = lambda *shape: torch.randn(*shape, generator=g).bfloat16().to(dtype).requires_grad_()
    x, up, down = normal(tokens, width), normal(count, inner, width), normal(count, width, inner)
    index = torch.rand(tokens, used or count, generator=g).argsort(1)[:, :choices]
    weight = torch.rand(tokens, choices, generator=g).to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    y = run(x, up, down, index, weight)
    y.backward(torch.randn(tokens, width, generator=g).to(y.dtype))
    return [y.detach(), x.grad, up.grad, down.grad, weight.grad]


@pytest.mark.parametrize("tokens, count, choices, used", [(1, 3, 2, None), (50, 5, 2, None), (40, 6, 2, 3), (37, 1, 1, None)])
def test_experts(tokens, count, choices, used):
    slow, fast = (graded(run, dtype, tokens, count, choices, used=used) for run, dtype in ((experts_reference, torch.float64), (experts, torch.float32)))
    for mine, true in zip(fast, slow):
        assert (mine - true).abs().max() <= 1e-5 * max(true.abs().max(), 1.0)


def test_experts_in_bf16():
    slow, fast = (graded(run, dtype, 50, 5, 2) for run, dtype in ((experts_reference, torch.float64), (experts, torch.bfloat16)))
    for mine, true in zip(fast, slow):
        assert (mine.double() - true).norm() <= 0.01 * true.norm()


def test_gradients_are_the_same_bits_again():
    assert all(torch.equal(a, b) for a, b in zip(graded(experts, torch.float32, 50, 5, 2), graded(experts, torch.float32, 50, 5, 2)))
