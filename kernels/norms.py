"""RMSNorm and the gated group RMSNorm of the Mamba mixer.

The two round at different places, and bf16 parity needs both as the released models do it: the block norm multiplies by the weight in float32
and casts once; the gated norm casts the normalised value first and multiplies by the weight in the activation dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm_reference(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last axis; statistics and weight in float32, one cast at the end."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (weight_D.to(wide.dtype) * (wide * scale)).to(x.dtype)


def gated_rms_norm_reference(y: Tensor, z: Tensor, weight_D: Tensor, eps: float, groups: int) -> Tensor:
    """norm(y * silu(z)) * weight, normalised in `groups` equal slices of the last axis; the result has the dtype of z."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    gated = y.to(dtype) * F.silu(z.to(dtype))
    sliced = gated.unflatten(-1, (groups, -1))
    normed = (sliced * torch.rsqrt(sliced.square().mean(-1, keepdim=True) + eps)).flatten(-2)
    return normed.to(z.dtype) * weight_D.to(z.dtype)


rms_norm = rms_norm_reference
gated_rms_norm = gated_rms_norm_reference
