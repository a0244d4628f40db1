"""Triton kernels are run by its interpreter here, on CPU tensors (the switch is read when Triton is first imported).

Triton 3.9's interpreter holds bfloat16 as bit patterns, cuts float32 to them instead of rounding, and multiplies the patterns themselves in `tl.dot`
(triton issue 11584). The compiled kernels round to nearest even and multiply values (PTX cvt.rn, mma), so the interpreter is made to as well.
"""

import os

import numpy as np
import pytest

from kernels.triton import dispatch

os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def gpu(monkeypatch):
    """The public functions of `kernels` choose their Triton twins, as for tensors on a GPU."""
    pytest.importorskip("triton")
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def rounding_cast(self, source, target):
        if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, target)
        bits = np.ascontiguousarray(source.data).view(np.uint32)
        return TensorHandle(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16), tl.bfloat16)

    def dot_of_values(self, a, b, *rest):
        a, b = (cast(self, t, tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b))
        return dot(self, a, b, *rest)

    monkeypatch.setattr(dispatch, "on_gpu", lambda t: True)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounding_cast)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot_of_values)
