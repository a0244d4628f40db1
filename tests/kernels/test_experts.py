"""Sorted experts against every expert on every token: values, gradients, empty experts, the gemm hook, and determinism."""

import pytest
import torch
import torch.nn.functional as F

from kernels.expert_products import reads_masters
from kernels.expert_rows import choose, place
from kernels.experts import experts, experts_reference, relu_squared


def inputs(tokens, count=6, choices=2, outer=16, inner=24, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, dtype=dtype, generator=g)
    index = torch.rand(tokens, count - 1, generator=g).topk(choices, 1)[1]  # the last expert gets nothing
    return normal(tokens, outer), normal(count, inner, outer), normal(count, outer, inner), index, torch.rand(tokens, choices, dtype=dtype, generator=g)


@pytest.mark.parametrize("tokens", [1, 5, 200])
def test_values_and_gradients(tokens):
    x, up, down, index, weight = inputs(tokens)
    results = []
    for run in (experts_reference, experts):
        leaves = [t.clone().requires_grad_() for t in (x, up, down, weight)]
        y = run(*leaves[:3], index, leaves[3])
        y.square().sum().backward()
        results.append([y] + [leaf.grad for leaf in leaves])
    for slow, fast in zip(*results):
        torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("tokens", [1, 3, 16, 64])
def test_few_tokens_without_gradient(tokens):
    x, up, down, index, weight = inputs(tokens, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(experts(x, up, down, index, weight), experts_reference(x, up, down, index, weight), rtol=1e-4, atol=1e-4)


def test_gemm_hook_sees_every_product_and_the_gradient_goes_through_it():
    x, up, down, index, weight = inputs(40)
    seen = []

    def gemm(x_TK, w_NK):
        seen.append((x_TK.shape[0], tuple(w_NK.shape)))
        return 2 * F.linear(x_TK, w_NK)

    x.requires_grad_()
    y = experts(x, up, down, index, weight, gemm=gemm)
    torch.testing.assert_close(y, 8 * experts_reference(x, up, down, index, weight))  # relu² doubles twice
    assert sum(rows for rows, shape in seen if shape == (24, 16)) == 80 and len(seen) == 2 * 5
    y.sum().backward()
    assert x.grad.abs().sum() > 0


def test_same_bits_twice():
    x, up, down, index, weight = inputs(300, dtype=torch.float32)
    assert torch.equal(experts(x, up, down, index, weight), experts(x, up, down, index, weight))


@pytest.mark.parametrize("tokens", [1, 5, 300])
def test_compiled_rows_and_their_gradients(tokens):
    """The fused form (float32, plain products) against every expert in float64."""
    exact = inputs(tokens, outer=24, inner=40)
    results = []
    for run, dtype in ((experts_reference, torch.float64), (experts, torch.float32)):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (*exact[:3], exact[4])]
        y = run(*leaves[:3], exact[3], leaves[3])
        y.square().sum().backward()
        results.append([y] + [leaf.grad for leaf in leaves])
    for slow, fast in zip(*results):
        assert (fast - slow).abs().max() <= 1e-5 * slow.abs().max()


def test_bf16_accumulates_in_float32():
    x, up, down, index, weight = inputs(64, dtype=torch.float32)
    exact = experts_reference(*(t.bfloat16().float() for t in (x, up, down)), index, weight)
    y = experts(x.bfloat16(), up.bfloat16(), down.bfloat16(), index, weight)
    assert y.dtype == torch.bfloat16
    assert ((y.float() - exact).abs() <= 0.02 * exact.abs().max()).all()


@pytest.mark.parametrize("tokens", [40, 301])
def test_bf16_rows_by_float32_masters(tokens):
    """Whatever multiplies here: gradients of masters come in float32, near those of every expert in float64 on the same rounded inputs."""
    x, up, down, index, weight = (t.float() if t.is_floating_point() else t for t in inputs(tokens, outer=24, inner=40))
    x = x.bfloat16()
    fast = [t.clone().requires_grad_() for t in (x, up, down, weight)]
    slow = [t.double().requires_grad_() for t in (x, up.bfloat16(), down.bfloat16(), weight)]
    dtype = torch.float32 if reads_masters(x, up) else torch.bfloat16
    y, exact = experts(fast[0], *(t.to(dtype) for t in fast[1:3]), index, fast[3]), experts_reference(*slow[:3], index, slow[3])
    dy = torch.randn(y.shape).bfloat16()
    y.backward(dy)
    exact.backward(dy.double())
    for got, wanted in zip((y, *(leaf.grad for leaf in fast)), (exact, *(leaf.grad for leaf in slow))):
        assert (got.double() - wanted).norm() <= 0.01 * wanted.norm()
    assert fast[1].grad.dtype == fast[2].grad.dtype == torch.float32


def test_relu_squared():
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(relu_squared, (x,))
    assert torch.equal(relu_squared(x), torch.relu(x) ** 2)
    x = torch.randn(3, 20_001, requires_grad=True)
    y = relu_squared(x)
    assert torch.equal(y, torch.relu(x) ** 2)
    assert torch.equal(torch.autograd.grad(y, x, torch.ones_like(y) * 3)[0], 6 * torch.relu(x))


def test_choices_and_their_rows():
    """The compiled top-k and counting sort against torch's."""
    ranks = torch.randn(500, 11, generator=torch.Generator().manual_seed(0))
    ranks[3] = 0.5
    ranks[4, 2:] = ranks[4, 1]
    index = choose(ranks, 3)
    assert torch.equal(index, ranks.sort(dim=1, descending=True, stable=True)[1][:, :3])
    loads = torch.bincount(index.view(-1), minlength=11)
    rooms = [load + 5 for load in loads.tolist()]
    rows, tokens = place(index, rooms)
    owner = torch.repeat_interleave(torch.arange(11), torch.tensor(rooms))
    assert torch.equal(owner[rows], index) and rows.unique().numel() == rows.numel()
    assert torch.equal(tokens[rows], torch.arange(500)[:, None].expand(500, 3)) and tokens.sum() == 3 * torch.arange(500).sum()
