"""Random Hadamard transform (RHT) over rows of 16: spreads outliers so that a block of 16 FP4 values wastes less range.

Nemotron's NVFP4 recipe applies it to both operands of the weight-gradient GEMM along the contraction axis (tokens), where
it cancels: (g R)(x R)^T = g x^T for orthogonal R = diag(signs) H16 / 4. The signs are TransformerEngine's fixed vector.
"""

import torch

SIZE = 16
# TransformerEngine get_wgrad_sign_vector() (reference_nvfp4.py): one fixed draw, the same for every layer and step.
SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)


def _butterflies(v_X16: torch.Tensor) -> torch.Tensor:
    """v @ H16 in Sylvester order as four stages of sums and differences; this order of additions is part of the definition."""
    for half in (1, 2, 4, 8):
        pairs = v_X16.unflatten(-1, (SIZE // (2 * half), 2, half))
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        v_X16 = torch.stack((a + b, a - b), dim=-2).flatten(-3)
    return v_X16


def _blocks(x: torch.Tensor) -> torch.Tensor:
    if x.shape[-1] % SIZE:
        raise ValueError(f"the Hadamard transform works on groups of {SIZE}; the last dimension is {x.shape[-1]}")
    return x.float().unflatten(-1, (-1, SIZE))


def rht(x: torch.Tensor) -> torch.Tensor:
    """Rotates each group of 16 along the last axis: `x diag(signs) H16 / 4`, float32 arithmetic, result rounded to bfloat16."""
    signs = torch.tensor(SIGNS, dtype=torch.float32, device=x.device)
    return (_butterflies(_blocks(x) * signs) * 0.25).flatten(-2).bfloat16()


def inverse_rht(y: torch.Tensor) -> torch.Tensor:
    """Undoes `rht` in float32 (H16 is symmetric and H16 H16 = 16 I)."""
    signs = torch.tensor(SIGNS, dtype=torch.float32, device=y.device)
    return (_butterflies(_blocks(y)) * 0.25 * signs).flatten(-2)
