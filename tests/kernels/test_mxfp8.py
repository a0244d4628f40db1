"""MXFP8 against its definition in float64, and the fast version against the reference, bit for bit."""

import math

import numpy as np
import pytest
import torch

from kernels import mxfp8, mxfp8_fast

E4M3 = np.array([m / 8 * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7) for e in range(16) for m in range(8)][:-1])


def sample(rows, n, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, n, generator=g) * torch.exp(4 * torch.randn(rows, n // 32, generator=g)).repeat_interleave(32, 1)
    x[0, :32] = 0
    x[1, :32] = torch.linspace(-448, 448, 32)  # amax exactly 448: the scale is 1, not 2
    return x.bfloat16()


def bits(x):
    return x.bfloat16().contiguous().view(torch.int16)


def test_scales_and_codes_follow_the_definition():
    x = sample(16, 96, 1)
    q = mxfp8.quantize(x)
    assert q.codes.dtype == torch.float8_e4m3fn and q.scales.dtype == torch.uint8 and q.scales.shape == (16, 3)
    values = x.double().numpy()
    for r in range(16):
        for b in range(3):
            block = values[r, b * 32:b * 32 + 32]
            amax = np.abs(block).max()
            exponent = math.ceil(math.log2(amax / 448)) if amax else -127
            assert int(q.scales[r, b]) == exponent + 127
            got = q.codes[r, b * 32:b * 32 + 32].double().numpy()
            for v, code in zip(block / 2.0**exponent, got, strict=True):
                distance = np.abs(E4M3 - abs(v))
                best = np.flatnonzero(distance == distance.min())
                expected = E4M3[best[0] if len(best) == 1 or best[0] % 2 == 0 else best[1]]
                assert code == math.copysign(expected, v)


def test_nothing_overflows_and_values_are_close():
    x = sample(64, 256, 2)
    error = (mxfp8.quantize(x).dequantize() - x.float()).abs()
    blocks = x.float().unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True).expand(-1, -1, 32).flatten(-2)
    assert torch.all(error <= x.float().abs() * 2**-4 + blocks * 2**-17)


@pytest.mark.parametrize("shape", [(32, 32), (64, 288), (96, 2080)])
def test_fast_is_the_reference_bit_for_bit(shape):
    x = sample(*shape, sum(shape))
    assert torch.equal(bits(mxfp8_fast.rows(x)), bits(mxfp8.quantize(x).dequantize()))
    assert torch.equal(bits(mxfp8_fast.columns(x)), bits(mxfp8.quantize(x.T.contiguous()).dequantize().T))


def test_columns_pad_tokens_with_zeros():
    x = sample(40, 32, 9)
    assert torch.equal(bits(mxfp8_fast.columns(x)), bits(mxfp8_fast.columns(torch.cat([x, x.new_zeros(24, 32)]))))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="1x32"):
        mxfp8.quantize(torch.zeros(4, 48))
    with pytest.raises(ValueError, match="1x32"):
        mxfp8_fast.rows(torch.zeros(4, 48).bfloat16())
