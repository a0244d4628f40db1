"""Initial parameters, as Megatron-LM draws them for hybrid models.

Linears and embeddings ~ N(0, std); linears that write to the residual ~ N(0, std / sqrt(layers)) (`scaled_init_method_normal(multiplier=1)`);
norms 1; A ~ U(1, 16) stored as its log; D = 1; dt log-uniform in [time_step_min, time_step_max], stored through the inverse of softplus;
conv kaiming-uniform(a=√5).
Every tensor has its own generator, seeded by (seed, name): adding a layer does not change the draw of another.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

RESIDUAL_WRITERS = ("out_proj", "o_proj", "down_proj", "fc2_latent_proj")


def initialize(lm: nn.Module, seed: int) -> None:
    """Fill every parameter of `lm` and zero the routers' biases."""
    config = lm.config
    std = config.initializer_range
    scaled = std / math.sqrt(len(config.pattern))
    with torch.no_grad():
        for name, tensor in lm.named_parameters():
            generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little") >> 1)
            leaf = name.split(".")[-2:]
            if leaf[-1] == "A_log":
                tensor.uniform_(1.0, 16.0, generator=generator).log_()
            elif leaf[-1] == "D":
                tensor.fill_(1.0)
            elif leaf[-1] == "dt_bias":
                low, high = math.log(config.time_step_min), math.log(config.time_step_max)
                dt = tensor.uniform_(low, high, generator=generator).exp_().clamp_(min=config.time_step_floor)
                tensor.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus⁻¹
            elif leaf[0] == "conv1d":
                bound = 1.0 / math.sqrt(config.conv_kernel)  # kaiming_uniform(a=√5) with fan_in = taps; torch bounds the bias alike
                tensor.uniform_(-bound, bound, generator=generator)
            elif tensor.ndim == 1:
                tensor.fill_(1.0)
            else:
                writes = any(part in RESIDUAL_WRITERS for part in leaf)
                tensor.normal_(0.0, scaled if writes else std, generator=generator)
        for buffer in lm.buffers():
            buffer.zero_()
