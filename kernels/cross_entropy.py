"""Cross-entropy of rows of logits, and its gradient written over them: one read for the maximum, one for the exponentials, one write.

Plain tensor operations pass eight times over a chunk of logits (cast, maximum, subtract, exp, sum, divide, scale, cast back). Statistics are float32
whatever the logits are.

Shapes: C tokens, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.lanes import JIT, exp, flat, load, over_tiles, runs_here, store
from kernels.simd import WIDTH as LANES
from kernels.simd import largest, scratch, splat, vadd, vexp_negative, vload, vmul, vstore, vsum


def cross_entropy_reference(logits_CV: Tensor, labels_C: Tensor, share_C: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each token in nats (float32), and the gradient of sum(share * loss) in the dtype of the logits."""
    wide_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    log_p_CV = torch.log_softmax(wide_CV, 1)
    losses_C = -log_p_CV.gather(1, labels_C[:, None])[:, 0]
    gradient_CV = log_p_CV.exp_()
    gradient_CV[torch.arange(labels_C.shape[0], device=labels_C.device), labels_C] -= 1
    return losses_C, gradient_CV.mul_(share_C[:, None]).to(logits_CV.dtype)


def cross_entropy_(logits_CV: Tensor, labels_C: Tensor, share_C: Tensor) -> Tensor:
    """Losses [C]; the contiguous `logits` become the gradient of sum(share * loss)."""
    if not runs_here(logits_CV) or not logits_CV.is_contiguous():
        losses_C, gradient_CV = cross_entropy_reference(logits_CV, labels_C, share_C)
        logits_CV.copy_(gradient_CV)
        return losses_C
    losses_C = torch.empty(logits_CV.shape[0])
    args = flat(logits_CV), labels_C.numpy(), share_C.float().contiguous().numpy(), losses_C.numpy(), logits_CV.shape[1]
    over_tiles(lambda a, b: _rows(a, b, *args), logits_CV.shape[0], logits_CV.numel())
    return losses_C


@njit(**JIT)
def _rows(first, last, logits, labels, share, losses, width):
    powers, whole = scratch(width), width // LANES * LANES
    for row in range(first, last):
        at, label = row * width, labels[row]
        values = logits[at:at + width]
        peak, picked, sums = largest(logits, at, at + width), load(values, label), splat(np.float32(0.0))
        for i in range(0, whole, LANES):
            power = vexp_negative(vadd(vload(logits, at + i), splat(-peak)))
            vstore(powers, i, power)
            sums = vadd(sums, power)
        total = vsum(sums)
        for i in range(whole, width):
            powers[i] = exp(load(values, i) - peak)
            total += powers[i]
        losses[row] = np.log(total) + peak - picked
        scale = share[row] / total
        for i in range(0, whole, LANES):
            vstore(logits, at + i, vmul(vload(powers, i), splat(scale)))
        for i in range(whole, width):
            store(values, i, powers[i] * scale)
        store(values, label, (powers[label] / total - np.float32(1.0)) * share[row])
