"""Linear head + cross-entropy in one, a chunk of tokens at a time: float32 logits of a whole batch are never in memory.

The loss is a weighted mean whose weights are known beforehand, so its gradients follow from the logits while these are at hand: forward computes
them chunk by chunk and backward only multiplies by what came from above. No logit is computed twice. The head's weight gradient is summed over
chunks in float32 (Ultra diverged with that accumulation in bfloat16), whatever the dtype of the products.

Shapes: K tokens (flattened), N of them in a block, C in a chunk, D hidden size, V vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.cross_entropy import cross_entropy_
from kernels.linear import outer, times, times_turned

CHUNK_LOGITS = 1 << 22  # logits a chunk: 8 MB in bfloat16, so that the pass over them finds them in a cache; smaller products are slower
BLOCK_LOGITS = 1 << 24  # logit gradients multiplied at once: 32 MB in bfloat16; a product a chunk would read and write all of dW each time


def linear_cross_entropy(h_KD: Tensor, weight_VD: Tensor, labels_K: Tensor, weights_K: Tensor | None = None) -> Tensor:
    """sum(w * CE(h Wᵀ, label)) / sum(w), a float32 scalar in nats; differentiable in h and W.

    weights_K  float32 >= 0 (a loss mask, or any weight a token); None: all 1. With a sum of 0 the loss is 0.
    Products run in the dtype of h; logits are taken to float32 before the softmax.
    """
    weights_K = torch.ones(h_KD.shape[0]) if weights_K is None else weights_K.float()
    return _LinearCrossEntropy.apply(h_KD, weight_VD, labels_K, weights_K)


@torch.no_grad()
def token_losses(h_KD: Tensor, weight_VD: Tensor, labels_K: Tensor) -> Tensor:
    """Cross-entropy of each token, float32 [K] in nats, for evaluation: no gradient."""
    w_VD = weight_VD.to(h_KD.dtype)
    share_K = torch.ones(h_KD.shape[0])
    losses = [cross_entropy_(times_turned(h_KD[part], w_VD), labels_K[part], share_K[part]) for part in _parts(h_KD.shape[0], CHUNK_LOGITS // w_VD.shape[0])]
    return torch.cat(losses) if losses else torch.zeros(0)


def _parts(tokens: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h_KD: Tensor, weight_VD: Tensor, labels_K: Tensor, weights_K: Tensor) -> Tensor:
        w_VD = weight_VD.to(h_KD.dtype)
        share_K = weights_K / weights_K.sum().clamp(min=torch.finfo(torch.float32).tiny)
        wants_h, wants_w = ctx.needs_input_grad[:2]
        dh_KD = torch.empty_like(h_KD) if wants_h else None
        dw_VD = None
        total = torch.zeros((), dtype=torch.float32)
        for block in _parts(h_KD.shape[0], BLOCK_LOGITS // w_VD.shape[0]):
            h_ND, labels_N, share_N = h_KD[block], labels_K[block], share_K[block]
            dlogits_NV = torch.empty(h_ND.shape[0], w_VD.shape[0], dtype=h_KD.dtype)
            for part in _parts(h_ND.shape[0], CHUNK_LOGITS // w_VD.shape[0]):
                times_turned(h_ND[part], w_VD, dlogits_NV[part])
                total += (cross_entropy_(dlogits_NV[part], labels_N[part], share_N[part]) * share_N[part]).sum()
            if wants_h:
                times(dlogits_NV, w_VD, dh_KD[block])
            if wants_w:
                dw_VD = outer(dlogits_NV, h_ND, dw_VD)
        if wants_w and dw_VD is None:  # no tokens
            dw_VD = torch.zeros(weight_VD.shape)
        ctx.save_for_backward(dh_KD, dw_VD)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx, upstream: Tensor):
        dh_KD, dw_VD = ctx.saved_tensors
        dh_KD = None if dh_KD is None else dh_KD * upstream.to(dh_KD.dtype) if upstream.item() != 1 else dh_KD
        dw_VD = None if dw_VD is None else (dw_VD if upstream.item() == 1 else dw_VD * upstream).to(ctx.weight_dtype)
        return dh_KD, dw_VD, None, None
