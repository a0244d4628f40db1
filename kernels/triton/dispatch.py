"""Which twin runs: the Triton kernels for tensors on a GPU, the CPU forms for all others. Triton is imported on the first GPU call, never on a CPU."""

from __future__ import annotations

import functools
import importlib
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)


def on_gpu(t: Tensor) -> bool:
    """Whether a tensor is where Triton kernels run."""
    return t.is_cuda


def twin(family: str, *tensors: Tensor | None) -> ModuleType | None:
    """`kernels.triton.<family>` if these float32 or bfloat16 tensors (None is skipped) are on a GPU and Triton is installed, else None."""
    if not all(t is None or (on_gpu(t) and t.dtype in DTYPES) for t in tensors):
        return None
    return _load(family)


@functools.cache
def _load(family: str) -> ModuleType | None:
    return importlib.import_module(f"kernels.triton.{family}") if find_spec("triton") else None
