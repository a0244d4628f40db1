"""Depthwise causal convolution, width 4, with bias and SiLU: the short memory in front of the Mamba scan.

y_t = silu(bias + sum_j w_j x_{t-3+j}); taps that would reach into another document (seq_idx) read zero. The carried state is the last W-1
inputs. A sum of shifted products is the reference; torch's conv1d has no way to stop at documents.

Shapes: B batch, L length, C channels, W taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv_reference(x_BLC: Tensor, weight_CW: Tensor, bias_C: Tensor, *, seq_idx_BL: Tensor | None = None, state_BWC: Tensor | None = None) -> Tensor:
    """Shifted products in float32 (or float64 for float64 input); returns [B,L,C] in the dtype of x. `state` is [B,W-1,C], the inputs before x."""
    batch, length, channels = x_BLC.shape
    taps = weight_CW.shape[1]
    dtype = torch.promote_types(x_BLC.dtype, torch.float32)
    before = x_BLC.new_zeros(batch, taps - 1, channels) if state_BWC is None else state_BWC.to(x_BLC.dtype)
    window = torch.cat([before, x_BLC], 1).to(dtype)
    total = bias_C.to(dtype).expand(batch, length, channels)
    for tap in range(taps):
        back = taps - 1 - tap
        term = window[:, tap:tap + length] * weight_CW[:, tap].to(dtype)
        if seq_idx_BL is not None and back:
            earlier = F.pad(seq_idx_BL, (back, 0))[:, :length]
            if back < length:
                same = earlier == seq_idx_BL
                same[:, :back] = (seq_idx_BL[:, :back] == seq_idx_BL[:, :1])  # state and zeros before the row: the first document's
            else:
                same = seq_idx_BL == seq_idx_BL[:, :1]
            term = term * same[..., None]
        total = total + term
    return F.silu(total).to(x_BLC.dtype)


causal_conv = causal_conv_reference
