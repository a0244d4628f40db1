"""NVFP4: 4-bit floats in blocks of 16 with an FP8 scale a block and an FP32 scale a tensor. The readable reference.

Every step follows TransformerEngine's scale chain (core_nvfp4.cuh, reference_nvfp4.py) in float32, bit for bit:

    S_enc = min(2688 / amax, FLT_MAX)           global encode scale; 2688 = 448 * 6, the largest E4M3 times the largest E2M1
    s     = e4m3(min(block_amax * (S_enc * (1/6)), 448))                       the association matters: other orders round twice
    q     = e2m1(x * min(1 / (s * (1/S_enc)), FLT_MAX))                        saturating at 6
    x^    = q * s * (amax / 2688)

`kernels/nvfp4_fast.py` computes the same `q * s` in one pass for training on a CPU and is tested equal to this file.

Stochastic rounding follows cvt.rs.satfinite.e2m1x4: 8 random bits r an element, t = |x| + r/256 * step, floor to the grid.
TransformerEngine draws r from Philox; here r is a hash of (seed, element index), so that a run resumes to the same bits.
"""

from dataclasses import dataclass

import torch

from kernels.hadamard import inverse_rht, rht

BLOCK = 16
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # codes 0-7; bit 3 is the sign
E2M1_MAX = 6.0
E4M3_MAX = 448.0
FLT_MAX = torch.finfo(torch.float32).max
_MASK32 = 0xFFFFFFFF


@dataclass(frozen=True)
class NVFP4Tensor:
    """codes uint8 [..., n/2] (even element in the low nibble), scales float8_e4m3fn [..., n/16], amax float32 [].

    16x16 blocks store their scale once a row, as the hardware reads it. `hadamard`: the codes are of the rotated tensor.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    amax: torch.Tensor
    hadamard: bool = False

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.codes.shape[:-1], self.codes.shape[-1] * 2))

    def operand(self) -> torch.Tensor:
        """q * s in float32 [..., n]: what a GEMM multiplies. Exact in bfloat16 (1+1 and 1+3 significant bits, 2^-10 to 2688)."""
        table = torch.tensor((*E2M1_VALUES, *(-v for v in E2M1_VALUES)), dtype=torch.float32, device=self.codes.device)
        nibbles = torch.stack((self.codes & 15, self.codes >> 4), dim=-1).flatten(-2)
        return (table[nibbles.long()].unflatten(-1, (-1, BLOCK)) * self.scales.float().unsqueeze(-1)).flatten(-2)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The values the tensor stands for, in the basis of the tensor that was quantized (a Hadamard rotation is undone)."""
        x = self.operand() * (self.amax / (E4M3_MAX * E2M1_MAX))
        return (inverse_rht(x) if self.hadamard else x).to(dtype)


def quantize(x: torch.Tensor, block: tuple[int, int] = (1, 16), rounding: str = "nearest", hadamard: bool = False,
             seed: int = 0) -> NVFP4Tensor:
    """Quantizes x [..., n] (bfloat16 or float32) along its last axis, n % 16 == 0.

    block (1, 16): activations and gradients; (16, 16): weights, so that W and W^T are the same numbers (rows % 16 == 0).
    rounding "nearest" (ties to the even code) or "stochastic" (seeded). Scales are always rounded to nearest.
    Raises ValueError on another block, rounding or shape.
    """
    rows, n = x.numel() // max(x.shape[-1], 1), x.shape[-1]
    if block not in ((1, 16), (16, 16)):
        raise ValueError(f"NVFP4 blocks are (1, 16) or (16, 16), not {block}")
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f'rounding is "nearest" or "stochastic", not {rounding!r}')
    if n == 0 or rows == 0 or n % BLOCK or rows % block[0]:
        raise ValueError(f"a {list(x.shape)} tensor does not divide into {block[0]}x{block[1]} blocks")
    x_RN = (rht(x) if hadamard else x).float().reshape(rows, n)
    magnitude_RBK = x_RN.abs().unflatten(-1, (-1, BLOCK))  # R rows, B blocks a row, K = 16
    amax = magnitude_RBK.amax()
    block_amax_RB = magnitude_RBK.amax(-1)
    if block == (16, 16):
        block_amax_RB = block_amax_RB.unflatten(0, (-1, BLOCK)).amax(1).repeat_interleave(BLOCK, dim=0)
    scales_RB, encode_RB = block_scales(block_amax_RB, amax)
    scaled_RN = (x_RN.unflatten(-1, (-1, BLOCK)) * encode_RB.unsqueeze(-1)).flatten(-2).clamp(-E2M1_MAX, E2M1_MAX)
    if rounding == "nearest":
        codes_RN = e2m1_nearest(scaled_RN)
    else:
        index_RN = torch.arange(rows * n, device=x.device).reshape(rows, n)
        codes_RN = e2m1_stochastic(scaled_RN, random_bits(seed, index_RN))
    packed = codes_RN[:, 0::2] | (codes_RN[:, 1::2] << 4)
    lead = x.shape[:-1]
    return NVFP4Tensor(packed.reshape(*lead, n // 2), scales_RB.reshape(*lead, n // BLOCK), amax, hadamard)


def block_scales(block_amax: torch.Tensor, amax: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(E4M3 decode scales, float32 encode multipliers) of blocks, given the tensor's amax (float32 []). No lower floor."""
    one = torch.ones((), dtype=torch.float32, device=amax.device)
    global_encode = torch.clamp(E4M3_MAX * E2M1_MAX * one / amax, max=FLT_MAX)
    global_encode = torch.where((amax == 0) | (global_encode == 0), one, global_encode)
    scales = torch.clamp(block_amax * (global_encode * (one / E2M1_MAX)), max=E4M3_MAX).to(torch.float8_e4m3fn)
    encode = torch.clamp(one / (scales.float() * (one / global_encode)), max=FLT_MAX)
    return scales, encode


def e2m1_nearest(scaled: torch.Tensor) -> torch.Tensor:
    """uint8 codes of values within [-6, 6]; ties go to the even code; an exact -0.0 gets code 0, as in TransformerEngine."""
    a = scaled.abs()
    code = torch.zeros_like(scaled, dtype=torch.uint8)
    # Midpoints between neighbours; the half-way case belongs to the even code, hence > and >= in turn.
    for threshold, inclusive in ((0.25, 0), (0.75, 1), (1.25, 0), (1.75, 1), (2.5, 0), (3.5, 1), (5.0, 0)):
        code += (a >= threshold) if inclusive else (a > threshold)
    return code | ((scaled < 0).to(torch.uint8) << 3)


def e2m1_stochastic(scaled: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """uint8 codes of values within [-6, 6], rounded up with probability r/256 of a step; bits: integers 0..255."""
    a = scaled.abs()
    step = torch.where(a < 2, 0.5, torch.where(a < 4, 1.0, 2.0))
    t = a + bits.float() * (1 / 256) * step
    code = torch.zeros_like(scaled, dtype=torch.uint8)
    for value in E2M1_VALUES[1:]:
        code += t >= value
    return code | ((scaled < 0).to(torch.uint8) << 3)


def seed_words(seed: int) -> tuple[int, int]:
    """Two 32-bit keys from a seed of any size (the splitmix64 finaliser on its low 64 bits)."""
    z = (seed + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    z ^= z >> 31
    return z & _MASK32, z >> 32


def random_bits(seed: int, index: torch.Tensor) -> torch.Tensor:
    """8 random bits (int64 0..255) an element: a hash of (seed, index mod 2^32), the same on every machine.

    Three multiply-xorshift rounds (constants of murmur3 and Wellons' lowbias32) with half the key in each of two rounds,
    so that two seeds give unrelated streams rather than shifted copies of one.
    """
    key0, key1 = seed_words(seed)
    h = (index * 0x9E3779B1 + key0) & _MASK32
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & _MASK32
    h = ((h ^ (h >> 15) ^ key1) * 0x846CA68B) & _MASK32
    return h >> 24


def gemm_alpha(amax_a: torch.Tensor | float, amax_b: torch.Tensor | float) -> torch.Tensor:
    """float32 factor that turns a product of two operands q*s into the product of the tensors: both global decode scales."""
    factor = torch.tensor(E2M1_MAX * E2M1_MAX * E4M3_MAX * E4M3_MAX, dtype=torch.float32)
    return torch.as_tensor(amax_a, dtype=torch.float32) * torch.as_tensor(amax_b, dtype=torch.float32) / factor
