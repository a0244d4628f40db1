"""NVFP4 against TransformerEngine's formulas written again as scalars, and the fast version against the reference, bit for bit."""

import itertools

import numpy as np
import pytest
import torch

from kernels import nvfp4, nvfp4_fast

GRID = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float64)
# Every E4M3 value >= 0, from its definition: exponent bias 7, three mantissa bits, 448 the largest.
E4M3 = np.array([m / 8 * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7) for e in range(16) for m in range(8)][:-1])


def nearest(grid, v):
    """Round-to-nearest on a table whose even indices win ties."""
    distance = np.abs(grid - np.float64(v))
    best = np.flatnonzero(distance == distance.min())
    return int(best[0] if len(best) == 1 or best[0] % 2 == 0 else best[1])


def transformer_engine(block, block_amax, amax):
    """(codes, scale) of a block: the scale chain of core_nvfp4.cuh in float32 scalars, roundings by table look-up."""
    f, flt_max = np.float32, np.finfo(np.float32).max
    with np.errstate(divide="ignore", over="ignore"):
        s_enc = min(f(2688) / f(amax), flt_max)
        s_enc = f(1) if amax == 0 or s_enc == 0 else s_enc
        scale = f(E4M3[nearest(E4M3, min(f(block_amax) * (s_enc * (f(1) / f(6))), f(448)))])
        enc = min(f(1) / (scale * (f(1) / s_enc)), flt_max)
        scaled = [np.clip(f(v) * enc, f(-6), f(6)) for v in block]
    return [nearest(GRID, abs(v)) | (8 if v < 0 else 0) for v in scaled], scale


def sample(rows, n, seed, dtype=torch.bfloat16):
    """Values over many binades, with a zero block, a tiny block, exact zeros of both signs and values on midpoints."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, n, generator=g) * torch.exp(torch.randn(rows, n // 16, generator=g)).repeat_interleave(16, 1)
    x[0, :16] = 0
    x[1, :16] *= 1e-7
    x[2, ::5], x[2, 1::5] = 0.0, -0.0
    x[3, :16] = torch.tensor([6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -6, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5])
    return x.to(dtype)


def unpacked(codes):
    return torch.stack((codes & 15, codes >> 4), -1).flatten(-2)


def bits(x):
    return x.bfloat16().contiguous().view(torch.int16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("block", [(1, 16), (16, 16)])
def test_codes_and_scales_are_transformer_engines(dtype, block):
    x = sample(32, 64, 11, dtype)
    q = nvfp4.quantize(x, block)
    values, amax = x.float().numpy(), float(x.abs().max())
    codes, scales = unpacked(q.codes).numpy(), q.scales.float().numpy()
    assert q.codes.shape == (32, 32) and q.codes.dtype == torch.uint8 and q.scales.dtype == torch.float8_e4m3fn and q.amax == amax
    for r, b in itertools.product(range(32), range(4)):
        top = r // 16 * 16
        rows = slice(top, top + 16) if block == (16, 16) else slice(r, r + 1)
        expected, scale = transformer_engine(values[r, b * 16:b * 16 + 16], np.abs(values[rows, b * 16:b * 16 + 16]).max(), amax)
        assert scales[r, b] == scale
        assert codes[r, b * 16:b * 16 + 16].tolist() == expected


def test_the_even_element_is_in_the_low_nibble_and_values_decode():
    x = torch.zeros(1, 16)
    x[0, :4] = torch.tensor([6.0, -0.5, 1.5, -4.0]) * 448
    q = nvfp4.quantize(x)  # amax 2688: S_enc = 1, s = 448, all exact
    assert q.codes[0, :2].tolist() == [7 | 9 << 4, 3 | 14 << 4]
    assert q.scales[0, 0] == 448
    assert torch.equal(q.dequantize(), x)


def test_dequantized_values_are_close_and_weights_read_the_same_both_ways():
    w = sample(32, 64, 5)
    q = nvfp4.quantize(w, (16, 16))
    assert torch.equal(q.operand(), nvfp4.quantize(w.T.contiguous(), (16, 16)).operand().T)
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(6))
    for hadamard in (False, True):
        error = (nvfp4.quantize(x, hadamard=hadamard).dequantize() - x).norm() / x.norm()
        assert 0.05 < error < 0.12  # 4-bit noise; a Gaussian gives about 9%


def test_an_all_zero_tensor_stays_zero():
    q = nvfp4.quantize(torch.zeros(2, 32))
    assert q.amax == 0 and not q.dequantize().any() and not nvfp4_fast.rows(torch.zeros(2, 32).bfloat16()).values.any()


def test_stochastic_rounding_over_every_random_byte():
    """Over r = 0..255 each value goes to its two neighbours only, with a mean within step/256 below it."""
    a = torch.linspace(0, 6, 997)
    r = torch.arange(256)
    codes = nvfp4.e2m1_stochastic(a[:, None].expand(-1, 256), r.expand(997, -1))
    values = torch.from_numpy(GRID)[codes.long()]
    low = torch.from_numpy(GRID[np.searchsorted(GRID, a.numpy(), side="right") - 1])
    high = torch.from_numpy(GRID[np.searchsorted(GRID, a.numpy(), side="left")])
    assert torch.all((values == low[:, None]) | (values == high[:, None]))
    step = torch.where(a < 2, 0.5, torch.where(a < 4, 1.0, 2.0)).double()
    bias = values.mean(1) - a.double()
    assert torch.all(bias <= 1e-6) and torch.all(bias >= -step / 256 - 1e-6)
    assert torch.equal(nvfp4.e2m1_stochastic(-a, torch.zeros(997)) & 7, nvfp4.e2m1_stochastic(a, torch.zeros(997)))


def test_random_bits_are_uniform_and_independent_of_neighbours_and_seeds():
    index = torch.arange(1 << 18)
    streams = [nvfp4.random_bits(seed, index) for seed in (0, 1, 2**40, -7)]
    for stream in streams:
        counts = torch.bincount(stream, minlength=256).double()
        chi2 = float(((counts - 1024) ** 2 / 1024).sum())
        assert 150 < chi2 < 380  # 255 degrees of freedom: mean 255, deviation 22.6
    for a, b in [*itertools.combinations(streams, 2), (streams[0][1:], streams[0][:-1]), (streams[0][256:], streams[0][:-256])]:
        joint = torch.bincount((a >> 4) * 16 + (b >> 4), minlength=256).double()
        assert float(((joint - len(a) / 256) ** 2 / (len(a) / 256)).sum()) < 380
    assert streams[0][12345] == nvfp4.random_bits(0, torch.tensor(12345))


def test_stochastic_rounding_is_unbiased_where_nearest_is_not():
    x = torch.full((256, 64), 0.1)
    x[:, ::16] = 6.0  # every block's scale is set by a 6, so 0.1 is below half a step and nearest flushes it
    assert nvfp4.quantize(x).dequantize()[:, 1].abs().max() == 0
    mean = nvfp4.quantize(x, rounding="stochastic", seed=3).dequantize()[x == x.new_tensor(0.1)].mean()
    assert abs(mean - 0.1) < 0.006


CASES = {
    "rows": (lambda x: nvfp4_fast.rows(x), lambda x: nvfp4.quantize(x)),
    "rows stochastic": (lambda x: nvfp4_fast.rows(x, "stochastic", 5), lambda x: nvfp4.quantize(x, rounding="stochastic", seed=5)),
    "tiles": (nvfp4_fast.tiles, lambda x: nvfp4.quantize(x, (16, 16))),
    "columns": (nvfp4_fast.columns, lambda x: nvfp4.quantize(x.T.contiguous(), hadamard=True)),
    "columns stochastic": (
        lambda x: nvfp4_fast.columns(x, "stochastic", 5),
        lambda x: nvfp4.quantize(x.T.contiguous(), hadamard=True, rounding="stochastic", seed=5),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [(16, 16), (48, 272), (64, 2064)])
def test_fast_is_the_reference_bit_for_bit(name, shape):
    fast, reference = CASES[name]
    x = sample(*shape, sum(shape))
    got, expected = fast(x), reference(x)
    operand = expected.operand().T if "columns" in name else expected.operand()
    assert got.amax == float(expected.amax)
    assert torch.equal(bits(got.values), bits(operand))


def test_threads_do_not_change_a_bit(monkeypatch):
    from kernels import bits as spans

    x = sample(80, 96, 8)
    alone = [fast(x).values for fast, _ in CASES.values()]
    monkeypatch.setattr(spans, "PARALLEL_ELEMENTS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert all(torch.equal(bits(a), bits(fast(x).values)) for a, (fast, _) in zip(alone, CASES.values(), strict=True))


def test_columns_pad_tokens_with_zeros():
    x = sample(21, 32, 9)
    padded = torch.cat([x, x.new_zeros(11, 32)])
    assert torch.equal(bits(nvfp4_fast.columns(x, "stochastic", 1).values), bits(nvfp4_fast.columns(padded, "stochastic", 1).values))


def test_the_product_applies_alpha_to_the_sum_before_its_only_rounding():
    """bfloat16(alpha * sum) with exact products: equal to float64 but where float32 sums are inexact, and not to rounding twice."""
    a, b = nvfp4_fast.rows(sample(128, 256, 21)), nvfp4_fast.rows(sample(192, 256, 22))
    exact = a.values.double() @ b.values.double().T
    alpha = nvfp4.gemm_alpha(a.amax, b.amax)
    once, twice = (exact.float() * alpha).bfloat16(), (exact.bfloat16().float() * alpha).bfloat16()
    got = nvfp4_fast.matmul(a, nvfp4_fast.Operand(b.values.t(), b.amax))
    assert (got != once).float().mean() < 1e-3
    assert (got != twice).float().mean() > 0.1
    x, w = nvfp4.quantize(sample(128, 256, 21)).dequantize().double(), nvfp4.quantize(sample(192, 256, 22)).dequantize().double()
    assert torch.allclose(got.double(), x @ w.T, rtol=2**-7, atol=1e-3 * float((x @ w.T).abs().max()))


def test_non_finite_values_reach_the_product():
    x = sample(16, 32, 3)
    for poison in (float("nan"), float("inf")):
        x[4, 4] = poison
        a, b = nvfp4_fast.rows(x), nvfp4_fast.rows(sample(16, 32, 4))
        assert not torch.isfinite(nvfp4_fast.matmul(a, nvfp4_fast.Operand(b.values.t(), b.amax))).any()


@pytest.mark.parametrize("call", [
    lambda: nvfp4.quantize(torch.zeros(4, 24)),
    lambda: nvfp4.quantize(torch.zeros(8, 32), (16, 16)),
    lambda: nvfp4.quantize(torch.zeros(16, 32), (8, 8)),
    lambda: nvfp4.quantize(torch.zeros(16, 32), rounding="up"),
    lambda: nvfp4_fast.rows(torch.zeros(4, 24).bfloat16()),
    lambda: nvfp4_fast.rows(torch.zeros(4, 32)),
    lambda: nvfp4_fast.tiles(torch.zeros(8, 32).bfloat16()),
    lambda: nvfp4_fast.columns(torch.zeros(16, 32).bfloat16(), "up"),
])
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(ValueError):
        call()
