"""y = x Wᵀ and its gradients, straight from float32 masters where the compiled products are the fastest there are, by torch's own products elsewhere.

Shapes: T tokens, K inputs, N outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import matmul

FEW = 32  # rows: packing a weight for fewer costs more than their product


def reads_masters(x: Tensor, w: Tensor) -> bool:
    """Whether a product of x [..., K] with w [N, K] (or [E, N, K]) reads the weight as it is, without a copy in the dtype of x."""
    return x.shape[:-1].numel() >= FEW and matmul.multiplies(x, w)


def times_turned(x_TK: Tensor, w_NK: Tensor, out_TN: Tensor | None = None) -> Tensor:
    """x wᵀ in the dtype of x."""
    return matmul.times_turned(x_TK, w_NK, out_TN=out_TN) if reads_masters(x_TK, w_NK) else torch.mm(x_TK, w_NK.to(x_TK.dtype).t(), out=out_TN)


def times(dy_TN: Tensor, w_NK: Tensor, out_TK: Tensor | None = None) -> Tensor:
    """dy w in the dtype of dy."""
    return matmul.times(dy_TN, w_NK, out_TK=out_TK) if reads_masters(dy_TN, w_NK) else torch.mm(dy_TN, w_NK.to(dy_TN.dtype), out=out_TK)


def outer(dy_TN: Tensor, x_TK: Tensor, out_NK: Tensor | None = None) -> Tensor:
    """dyᵀ x in float32; added to `out` if that is given."""
    if reads_masters(x_TK, dy_TN):
        return matmul.outer(dy_TN, x_TK, out=out_NK)
    product_NK = dy_TN.t() @ x_TK
    return product_NK.float() if out_NK is None else out_NK.add_(product_NK)


def linear(x: Tensor, w_NK: Tensor) -> Tensor:
    """x [..., K] by w [N, K], [..., N] in the dtype of x, whatever that of w."""
    if not reads_masters(x, w_NK):
        return F.linear(x, w_NK.to(x.dtype))
    return _Linear.apply(x.reshape(-1, x.shape[-1]), w_NK).view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """Keeps x and the weight itself."""

    @staticmethod
    def forward(ctx, x_TK, w_NK):
        ctx.save_for_backward(x_TK, w_NK)
        return matmul.times_turned(x_TK, w_NK)

    @staticmethod
    def backward(ctx, dy_TN):
        x_TK, w_NK = ctx.saved_tensors
        dx_TK = times(dy_TN, w_NK) if ctx.needs_input_grad[0] else None
        dw_NK = matmul.outer(dy_TN, x_TK).to(w_NK.dtype) if ctx.needs_input_grad[1] else None
        return dx_TK, dw_NK
