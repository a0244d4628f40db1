"""AdamW over float32 masters, with weight decay only where it belongs.

torch's fused CPU kernel is used as it is: one pass over parameter, gradient and both moments, 1.8 ms for 2.2M parameters in 76 tensors on
2 cores against 15 ms for the foreach version, and the same bits on every run. The moments are float32, as the masters are.
"""

import torch
from torch import nn

# Nemotron 3: betas 0.9 / 0.95, weight decay 0.1. eps is Megatron-LM's default.
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
EPS = 1e-8


def build(
    lm: nn.Module, lr: float, betas: tuple[float, float] = BETAS, weight_decay: float = WEIGHT_DECAY, *, eps: float = EPS
) -> torch.optim.AdamW:
    """AdamW with two groups, decayed and not, each in the model's own order of names. ValueError unless parameters are float32."""
    groups = {True: [], False: []}
    for name, parameter in lm.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dtype != torch.float32:
            raise ValueError(f"{name} is {parameter.dtype}: the optimizer wants float32 master weights")
        groups[decays(name, parameter)].append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}],
        lr=lr, betas=tuple(betas), eps=eps, fused=True,
    )


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Weight decay is for matrices: not for norms, biases, A_log, D and dt_bias (the published Mamba flags no-weight-decay on A_log and D).

    The depthwise convolution's [channels, 1, width] filter is a matrix of taps and decays, as in Megatron-LM. Router biases are buffers and never get here.
    """
    return parameter.dim() >= 2 and not name.endswith("bias")
