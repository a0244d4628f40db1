"""Compiles for one GPU architecture every Triton kernel that one training step and one decoding step of the released models' shapes would launch.

`python tests/kernels/compile_triton.py 90` prints a JSON object: kernel name -> {"cubin": bytes of machine code, "shared": bytes of shared memory}.
It calls the public functions on unfilled CPU tensors with a driver that stands for a GPU of that architecture: each launch compiles through
Triton's own specialisation, and stops there.
"""

import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernels import norms
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
    FOUND[self.fn.__name__] = {"cubin": len(kernel.asm["cubin"]), "elf": kernel.asm["cubin"][:4] == b"\x7fELF", "shared": kernel.metadata.shared}


RUN = JITFunction.run


def launch_all() -> None:
    def tensor(*shape, dtype=torch.bfloat16):
        return torch.zeros(*shape, dtype=dtype).requires_grad_(dtype.is_floating_point)

    norms.rms_norm(tensor(2, 64, 2688), tensor(2688), 1e-5).sum().backward()
    norms.gated_rms_norm(tensor(2, 64, 4096), tensor(2, 64, 10304)[..., :4096], tensor(4096), 1e-5, 8).sum().backward()


if __name__ == "__main__":
    triton.runtime.driver.set_active(Driver(int(sys.argv[1])))
    JITFunction.run = compile_only
    dispatch.on_gpu = lambda t: True
    launch_all()
    print(json.dumps(FOUND))
