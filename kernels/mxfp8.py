"""MXFP8: E4M3 values in blocks of 32 with a power-of-two (E8M0) scale a block. The readable reference.

The scale is rounded up from amax / 448 (TransformerEngine `float_to_e8m0`: multiply by the float32 reciprocal, then raise the
exponent if any mantissa bit is set), so that no value overflows E4M3. There is no scale for the whole tensor.
`kernels/mxfp8_fast.py` computes the same values for training on a CPU and is tested equal to this file.
"""

from dataclasses import dataclass

import torch

BLOCK = 32
E4M3_MAX = 448.0


@dataclass(frozen=True)
class MXFP8Tensor:
    """codes float8_e4m3fn [..., n], scales uint8 [..., n/32] (E8M0: 2^(byte - 127))."""

    codes: torch.Tensor
    scales: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """q * 2^e; exact in bfloat16 for normal values (4 significant bits)."""
        blocks = self.codes.float().unflatten(-1, (-1, BLOCK))
        return (blocks * power_of_two(self.scales).unsqueeze(-1)).flatten(-2).to(dtype)


def quantize(x: torch.Tensor) -> MXFP8Tensor:
    """Quantizes x [..., n] (bfloat16 or float32) in 1x32 blocks along the last axis, to nearest. ValueError unless n % 32 == 0."""
    if x.numel() == 0 or x.shape[-1] % BLOCK:
        raise ValueError(f"a {list(x.shape)} tensor does not divide into 1x{BLOCK} blocks")
    blocks = x.float().unflatten(-1, (-1, BLOCK))
    scales = e8m0_up(blocks.abs().amax(-1) * torch.tensor(1 / E4M3_MAX, dtype=torch.float32))
    inverse = power_of_two((254 - scales.int()).to(torch.uint8))
    codes = (blocks * inverse.unsqueeze(-1)).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return MXFP8Tensor(codes.flatten(-2), scales)


def e8m0_up(v: torch.Tensor) -> torch.Tensor:
    """The biased exponent (uint8) of the smallest power of two >= v, v >= 0 finite float32; at most 254."""
    bits = v.float().contiguous().view(torch.int32)
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    exact_or_top = (mantissa == 0) | (exponent == 254) | ((exponent == 0) & (mantissa <= 0x400000))
    return torch.where(exact_or_top, exponent, exponent + 1).to(torch.uint8)


def power_of_two(biased: torch.Tensor) -> torch.Tensor:
    """float32 2^(biased - 127); byte 0 is the subnormal 2^-127."""
    bits = torch.where(biased == 0, torch.tensor(0x400000, dtype=torch.int32), biased.int() << 23)
    return bits.view(torch.float32)
