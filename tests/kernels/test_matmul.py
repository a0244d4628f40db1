"""Compiled bfloat16 products against float64: every edge of the tiling, groups, sums over sums, threads; and the projection under autograd."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import linear as projection
from kernels import matmul
from kernels.linear import linear
from kernels.simd import HAS_PAIRS

pairs = pytest.mark.skipif(not HAS_PAIRS, reason="this CPU multiplies no bfloat16 pairs: torch's products are used")
ROUNDING = 2.0**-8  # half a unit in the last place of bfloat16


def close(got: torch.Tensor, exact: torch.Tensor, size: torch.Tensor, relative: float) -> None:
    """`size`: the sum of absolute products, which bounds what float32 sums may lose."""
    error = (got.double() - exact).abs()
    assert (error <= relative * exact.abs() + 1e-6 * size + 1e-30).all(), error.max()


def check_products(tokens: int, inputs: int, outputs: int, seed: int, masters: torch.dtype) -> None:
    g = torch.Generator().manual_seed(seed)
    x, w, dy = (torch.randn(*shape, generator=g) for shape in ((tokens, inputs), (outputs, inputs), (tokens, outputs)))
    x, dy, w = x.bfloat16(), dy.bfloat16(), w.to(masters)
    a, b, c = x.double(), w.bfloat16().double(), dy.double()
    close(matmul.times_turned(x, w), a @ b.t(), a.abs() @ b.t().abs(), ROUNDING)
    if outputs % 2 == 0:
        close(matmul.times(dy, w), c @ b, c.abs() @ b.abs(), ROUNDING)
    total = matmul.outer(dy, x)
    close(total, c.t() @ a, c.t().abs() @ a.abs(), 0)
    close(matmul.outer(dy, x, out=total.clone()), 2 * (c.t() @ a), 2 * (c.t().abs() @ a.abs()), 0)


@pairs
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 75), st.integers(1, 45), st.integers(1, 80), st.integers(0, 1 << 30), st.sampled_from((torch.float32, torch.bfloat16)))
def test_every_shape(tokens, half_inputs, outputs, seed, masters):
    check_products(tokens, 2 * half_inputs, outputs, seed, masters)


@pairs
@pytest.mark.parametrize("tokens,inputs,outputs", [(9, 4100, 40), (1100, 34, 36), (20, 64, 5000), (8, 32, 32)])
def test_more_than_one_block_or_stage(tokens, inputs, outputs):
    check_products(tokens, inputs, outputs, 7, torch.float32)


@pairs
def test_groups_are_products_of_their_own():
    g = torch.Generator().manual_seed(3)
    loads = [0, 40, 1, 0, 23, 0]
    x, dy, w = torch.randn(64, 66, generator=g).bfloat16(), torch.randn(64, 38, generator=g).bfloat16(), torch.randn(6, 38, 66, generator=g)
    groups = list(zip(x.split(loads), dy.split(loads), w))
    assert torch.equal(matmul.times_turned(x, w, loads), torch.cat([matmul.times_turned(rows, weight) for rows, _, weight in groups if len(rows)]))
    assert torch.equal(matmul.times(dy, w, loads), torch.cat([matmul.times(rows, weight) for _, rows, weight in groups if len(rows)]))
    outer = matmul.outer(dy, x, loads)
    assert all(torch.equal(got, matmul.outer(left, right)) if len(right) else not got.any() for got, (right, left, _) in zip(outer, groups))


@pairs
@pytest.mark.parametrize("loads", [None, [40] * 17 + [20]])
def test_same_bits_on_any_number_of_threads(loads, monkeypatch):
    monkeypatch.setattr("kernels.bits.PARALLEL_ELEMENTS", 1)
    g = torch.Generator().manual_seed(4)
    x, dy = torch.randn(700, 258, generator=g).bfloat16(), torch.randn(700, 330, generator=g).bfloat16()
    w = torch.randn(*([len(loads)] if loads else []), 330, 258, generator=g)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append((matmul.times_turned(x, w, loads), matmul.times(dy, w, loads), matmul.outer(dy, x, loads)))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


@pairs
def test_strided_operands_and_what_is_not_finite():
    x = torch.randn(2, 64, 96).bfloat16()[:, :, 8:72]
    w = torch.randn(64, 128).t()
    torch.testing.assert_close(matmul.times_turned(x.reshape(-1, 64), w), F.linear(x, w.bfloat16()).view(-1, 128), rtol=2 * ROUNDING, atol=1e-3)
    x = torch.randn(64, 32).bfloat16()
    x[3, 5], x[40, 0] = float("nan"), float("inf")
    y = matmul.times_turned(x, torch.ones(48, 32))
    assert y[3].isnan().all() and y[40].isinf().all() and y.isfinite().all(1).sum() == 62


@pairs
@pytest.mark.parametrize("masters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outputs", [33, 48])
def test_projection_and_its_gradients(masters, outputs, monkeypatch):
    """The compiled projection, also where this machine has better: the gradient of a master is float32 and was never rounded."""
    monkeypatch.setattr(matmul, "HAS_TILES", False)
    g = torch.Generator().manual_seed(outputs)
    x, w, dy = torch.randn(2, 50, 64, generator=g).bfloat16().requires_grad_(), torch.randn(outputs, 64, generator=g).to(masters).requires_grad_(), None
    assert projection.reads_masters(x, w)
    y = linear(x, w)
    dy = torch.randn(y.shape, generator=g).bfloat16()
    y.backward(dy)
    xd, wd = x.detach().double().view(-1, 64), w.detach().bfloat16().double()
    close(y.view(100, -1), xd @ wd.t(), xd.abs() @ wd.t().abs(), ROUNDING)
    rows = dy.double().view(100, -1)
    close(x.grad.view(100, -1), rows @ wd, rows.abs() @ wd.abs(), ROUNDING)
    close(w.grad, rows.t() @ xd, rows.t().abs() @ xd.abs(), 0 if masters == torch.float32 else ROUNDING)
    assert w.grad.dtype == masters and y.dtype == torch.bfloat16


def test_few_rows_and_other_dtypes_take_the_library():
    w = torch.randn(8, 6)
    for x in (torch.randn(3, 6).bfloat16(), torch.randn(100, 6), torch.randn(100, 5).bfloat16()):
        weight = w[:, :x.shape[1]]
        assert not projection.reads_masters(x, weight)
        assert torch.equal(linear(x, weight), F.linear(x, weight.to(x.dtype)))
