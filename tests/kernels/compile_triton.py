"""Compiles for one GPU architecture every Triton kernel that one training step and one decoding step of the released models' shapes would launch.

`python tests/kernels/compile_triton.py 90 bfloat16` prints a JSON object: file.kernel -> [{"elf": whether it is machine code, "cubin": its bytes, "shared": bytes of shared memory}].
It calls the public functions on unfilled CPU tensors with a driver that stands for a GPU of that architecture: each launch compiles through
Triton's own specialisation, and stops there.
"""

import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernels import conv, experts, norms, ssd
from kernels.triton import dispatch

FOUND = {}


class Driver:
    """What a launch asks of a GPU before it compiles."""

    def __init__(self, arch: int):
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return self.target


def compile_only(self, *args, grid, warmup, **kwargs):
    kernel = RUN(self, *args, grid=grid, warmup=True, **kwargs)
    compiled = {"elf": kernel.asm["cubin"][:4] == b"\x7fELF", "cubin": len(kernel.asm["cubin"]), "shared": kernel.metadata.shared}
    FOUND.setdefault(f"{self.fn.__module__.split('.')[-1]}.{self.fn.__name__}", []).append(compiled)


RUN = JITFunction.run


def launch_all(dtype: torch.dtype) -> None:
    def tensor(*shape, dtype=dtype):
        return torch.zeros(*shape, dtype=dtype).requires_grad_(dtype.is_floating_point)

    norms.rms_norm(tensor(2, 64, 2688), tensor(2688), 1e-5).sum().backward()
    norms.gated_rms_norm(tensor(2, 64, 4096), tensor(2, 64, 10304)[..., :4096], tensor(4096), 1e-5, 8).sum().backward()
    ids, rows = torch.zeros(2, 64, dtype=torch.long), torch.arange(2)
    conv.causal_conv(tensor(2, 64, 10304)[..., 4096:10240], tensor(6144, 4), tensor(6144), seq_idx_BL=ids).sum().backward()
    conv.causal_conv_step(tensor(2, 6144), tensor(6144, 4), tensor(6144), tensor(2, 3, 6144), rows, rows > 0)
    index, weight = torch.arange(2 * 6).view(2, 6), tensor(2, 6, dtype=torch.float32)
    experts.experts(tensor(2, 2688), tensor(128, 64, 2688), tensor(128, 2688, 64), index, weight).sum().backward()
    wide = tensor(2, 64, 6144)
    x, B, C = (t.unflatten(-1, shape) for t, shape in zip(wide.split([4096, 1024, 1024], -1), ((64, 64), (8, 128), (8, 128))))
    dt, A, D, state = (tensor(*shape, dtype=torch.float32) for shape in ((2, 64, 64), (64,), (64,), (2, 64, 64, 128)))
    sum(t.sum() for t in ssd.ssd(x, dt, A, B, C, D, seq_idx_BL=ids, initial_state_BHPN=state)).backward()
    ssd.ssd_step(x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, state, rows)


if __name__ == "__main__":
    triton.runtime.driver.set_active(Driver(int(sys.argv[1])))
    JITFunction.run = compile_only
    dispatch.on_gpu = lambda t: True
    launch_all(getattr(torch, sys.argv[2]))
    print(json.dumps(FOUND))
