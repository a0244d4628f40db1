"""Experts on sorted tokens: y_t = sum_k weight_tk * down_e relu(up_e x_t)², e = index_tk.

`experts_reference` runs every expert on every token. `experts` sorts the (token, choice) pairs by expert, so that each expert multiplies one
contiguous slice, and undoes the sort by gathering: no scatter, no zero-filled buffers, and sums in a fixed order (deterministic).
Each product goes through `gemm(x [T,K], w [N,K]) -> [T,N]`, the hook of a precision policy.

Shapes: T tokens, K choices a token, E experts, L width experts read and write, M their inner width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.expert_products import Compiled, Library, reads_masters
from kernels.expert_rows import gather, gather_slope, place, relu_squared_, relu_squared_and_slope_, relu_squared_slope_
from kernels.lanes import runs_here
from kernels.triton.dispatch import twin

Gemm = Callable[[Tensor, Tensor], Tensor]
DENSE_EXPERTS, DENSE_PRODUCTS = 16, 1024  # up to that many experts, and (token, expert) pairs: one batched product over all beats a loop (decoding)


class _ReluSquared(torch.autograd.Function):
    """relu(x)²; keeps only x, and costs one pass each way."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return relu_squared_(x) if runs_here(x) and x.is_contiguous() else F.relu(x).square_()

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return relu_squared_slope_(x, dy.contiguous()) if runs_here(x, dy) and x.is_contiguous() else F.relu(x).mul_(dy).mul_(2)


def relu_squared(x: Tensor) -> Tensor:
    """relu(x)², the activation of every MLP and expert here."""
    return _ReluSquared.apply(x) if torch.is_grad_enabled() else F.relu(x).square_()


def experts_reference(x_TL: Tensor, up_EML: Tensor, down_ELM: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """Every expert on every token, then the chosen ones weighted: the definition, E/K times the work."""
    dense_TE = torch.zeros(x_TL.shape[0], up_EML.shape[0], dtype=weight_TK.dtype).scatter_add(1, index_TK, weight_TK)
    inner_ETM = torch.relu(torch.einsum("tl,eml->etm", x_TL, up_EML)).square()
    return torch.einsum("te,etm,elm->tl", dense_TE.to(x_TL.dtype), inner_ETM, down_ELM)


def experts(x_TL: Tensor, up_EML: Tensor, down_ELM: Tensor, index_TK: Tensor, weight_TK: Tensor, *, gemm: Gemm = F.linear,
            load_E: Tensor | None = None) -> Tensor:
    """Weighted sum of the chosen experts, [T,L] in the dtype of x, accumulated in float32 (the dtype of `weight`).

    `load_E`: tokens per expert if the caller has counted them already.
    """
    if gemm is F.linear and (gpu := twin("experts", x_TL, up_EML, down_ELM)):
        return gpu.experts(x_TL, up_EML, down_ELM, index_TK, weight_TK)
    tokens, choices = index_TK.shape
    count = up_EML.shape[0]
    plain, masters = gemm is F.linear, reads_masters(x_TL, up_EML)
    if plain and count <= DENSE_EXPERTS and tokens * count <= DENSE_PRODUCTS and not masters and not torch.is_grad_enabled():
        return _experts_dense(x_TL, up_EML, down_ELM, index_TK, weight_TK)
    flat = index_TK.reshape(-1)
    loads = (torch.bincount(flat, minlength=count) if load_E is None else load_E).tolist()
    if plain and runs_here(x_TL, up_EML, down_ELM, weight_TK) and (masters or x_TL.dtype == up_EML.dtype == down_ELM.dtype):
        return _Experts.apply(x_TL, up_EML, down_ELM, weight_TK.float(), index_TK, Compiled(loads) if masters else Library(loads))
    order = torch.argsort(flat, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    pieces = []
    for x, up, down in zip(_Gather.apply(x_TL, order, place, choices).split(loads), up_EML.unbind(0), down_ELM.unbind(0)):
        if x.shape[0]:
            pieces.append(gemm(relu_squared(gemm(x, up)), down))
    out_TKL = _Permute.apply(torch.cat(pieces), place, order).view(tokens, choices, -1)
    return torch.bmm(weight_TK.to(out_TKL.dtype)[:, None], out_TKL)[:, 0] if out_TKL.dtype == weight_TK.dtype else \
        (out_TKL * weight_TK[..., None]).sum(1).to(x_TL.dtype)


def _experts_dense(x_TL: Tensor, up_EML: Tensor, down_ELM: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """A handful of tokens: all experts in one batched product, and the chosen ones picked by their weights."""
    weight_ET = weight_TK.new_zeros(x_TL.shape[0], up_EML.shape[0]).scatter_(1, index_TK, weight_TK).t()
    inner_ETM = F.relu_(x_TL @ up_EML.transpose(1, 2)).square_()
    out_ETL = inner_ETM @ down_ELM.transpose(1, 2)
    return (out_ETL * weight_ET[..., None]).sum(0).to(x_TL.dtype)


class _Experts(torch.autograd.Function):
    """The same with plain products: one node of autograd instead of six an expert, products written where they are read, no list of pieces joined.

    With torch's products every expert has some rows to spare (`_room`), which begin as token 0's, are never gathered, and whose gradient is zero.
    """

    @staticmethod
    def forward(ctx, x_TL, up_EML, down_ELM, weight_TK, index_TK, products):
        place_TK, token_S = place(index_TK, products.rooms)
        rows_SL = x_TL.index_select(0, token_S)
        inner_SM = products.times_turned(rows_SL, up_EML)
        out_SL = products.times_turned(relu_squared_(inner_SM), down_ELM)
        ctx.save_for_backward(rows_SL, inner_SM, out_SL, up_EML, down_ELM, weight_TK, place_TK)
        ctx.products = products
        return gather(out_SL, place_TK, weight_TK)

    @staticmethod
    def backward(ctx, dy_TL):
        rows_SL, inner_SM, out_SL, up_EML, down_ELM, weight_TK, place_TK = ctx.saved_tensors
        products = ctx.products
        dout_SL, dweight_TK = gather_slope(out_SL, place_TK, weight_TK, dy_TL.contiguous())
        squared_SM, dinner_SM = relu_squared_and_slope_(inner_SM, products.times(dout_SL, down_ELM))
        ddown_ELM = products.outer(dout_SL, squared_SM).to(down_ELM.dtype)
        dup_EML = products.outer(dinner_SM, rows_SL).to(up_EML.dtype)
        dx_TL = gather(products.times(dinner_SM, up_EML), place_TK, torch.ones_like(weight_TK))
        return dx_TL, dup_EML, ddown_ELM, dweight_TK, None, None


class _Gather(torch.autograd.Function):
    """Rows of x for sorted (token, choice) pairs. The gradient gathers each token's K rows and sums them, instead of scattering into zeros."""

    @staticmethod
    def forward(ctx, x_TL, order, place, choices):
        ctx.save_for_backward(place)
        ctx.choices = choices
        return x_TL.index_select(0, order // choices)

    @staticmethod
    def backward(ctx, dy):
        (place,) = ctx.saved_tensors
        return dy.index_select(0, place).view(-1, ctx.choices, dy.shape[1]).sum(1), None, None, None


class _Permute(torch.autograd.Function):
    """A row permutation whose gradient is the inverse permutation."""

    @staticmethod
    def forward(ctx, x, permutation, inverse):
        ctx.save_for_backward(inverse)
        return x.index_select(0, permutation)

    @staticmethod
    def backward(ctx, dy):
        (inverse,) = ctx.saved_tensors
        return dy.index_select(0, inverse), None, None
