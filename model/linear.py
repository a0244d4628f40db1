"""The one projection of the model: a weight and a replaceable matrix product.

Precision is a policy handed to plain modules: whoever wants NVFP4 sets `gemm`, a function (x [..., K], w [N, K]) -> y [..., N], on the
projections it chooses, and this file knows nothing of formats. Weights are float32 masters; the product runs in the dtype of x.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.linear import linear, reads_masters

Gemm = Callable[[Tensor, Tensor], Tensor]


class Linear(nn.Module):
    """y = x Wᵀ without bias. `weight` is [out_features, in_features]."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.gemm: Gemm = F.linear

    def forward(self, x: Tensor) -> Tensor:
        if self.gemm is F.linear and reads_masters(x, self.weight):
            return linear(x, self.weight)
        return self.gemm(x, weight_in(self, "weight", x.dtype))

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}"


def weight_in(module: nn.Module, name: str, dtype: torch.dtype) -> Tensor:
    """Parameter `name` of `module` in `dtype`: cast under autograd while training, cast once and kept while generating.

    A decoding step reads every weight for a handful of tokens, so casting there would cost as much as the products themselves.
    The copy is dropped by `module.train()` and replaced when the parameter's version or storage changes.
    """
    weight = module._parameters[name]
    if weight.dtype == dtype:
        return weight
    if module.training or torch.is_grad_enabled():
        return weight.to(dtype)
    kept = module.__dict__.setdefault("_cast", {})
    now = (stamp(weight), dtype)
    if kept.get(name, (None,))[0] != now:
        kept[name] = (now, weight.detach().to(dtype))
    return kept[name][1]


def stamp(weight: Tensor) -> tuple[int, int]:
    """Differs once the weight was written or moved (weights made under inference mode do not tell, and are not meant to be written)."""
    return 0 if weight.is_inference() else weight._version, weight.data_ptr()
