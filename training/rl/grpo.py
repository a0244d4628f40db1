"""Group-relative policy optimisation: advantages and loss, as small pure functions.

Sources: GRPO (Shao et al. 2024, arXiv 2402.03300); leave-one-out baseline (Ahmadian et al. 2024, arXiv 2402.14740); token-level
loss and the asymmetric clip 0.2 / 0.28 (DAPO, Yu et al. 2025, arXiv 2503.14476); truncated importance sampling between the
sampler's and the trainer's probabilities (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
training"). Defaults follow NVIDIA's published Nemotron-3 Nano/Super RL configs: leave-one-out, normalised, KL 0, cap 5.

Legend: P prompts, G responses a prompt, N sequences, T positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GroupAdvantages", "PolicyLoss", "group_advantages", "policy_loss", "token_mismatch"]


@dataclass(frozen=True)
class GroupAdvantages:
    advantages_PG: Tensor  # float32; 0 in skipped groups
    kept_P: Tensor  # bool; False where all rewards of the group agree (no gradient to learn from)


def group_advantages(rewards_PG: Tensor, *, baseline: str = "leave_one_out", normalize: bool = True, limit: float = 50.0) -> GroupAdvantages:
    """Reward minus the group's baseline, divided by the group's standard deviation (unbiased, + 1e-6) when `normalize`.

    baseline  "leave_one_out": the mean of the other G-1 rewards; "mean": the mean of all G.
    limit     advantages are clipped to ±limit (a lone success among many failures must not own the batch).
    """
    P, G = rewards_PG.shape
    if G < 2:
        raise ValueError("a group needs at least two responses to have a baseline")
    rewards_PG = rewards_PG.double()
    total_P1 = rewards_PG.sum(1, keepdim=True)
    if baseline == "leave_one_out":
        centre_PG = (total_P1 - rewards_PG) / (G - 1)
    elif baseline == "mean":
        centre_PG = (total_P1 / G).expand(P, G)
    else:
        raise ValueError(f"baseline must be leave_one_out or mean, got {baseline!r}")
    spread_P1 = rewards_PG.std(1, keepdim=True)
    kept_P = spread_P1[:, 0] > 1e-8
    advantages_PG = rewards_PG - centre_PG
    if normalize:
        advantages_PG = advantages_PG / (spread_P1 + 1e-6)
    advantages_PG = advantages_PG.clamp(-limit, limit) * kept_P[:, None]
    return GroupAdvantages(advantages_PG.float(), kept_P)


@dataclass(frozen=True)
class PolicyLoss:
    total: Tensor  # sum over tokens of the clipped surrogate (to be divided by the batch's token count), differentiable
    clipped: Tensor  # number of tokens whose ratio was clipped
    ratio_sum: Tensor  # sum of ratios, for the mean


def policy_loss(
    logprobs_NT: Tensor,
    old_logprobs_NT: Tensor,
    engine_logprobs_NT: Tensor,
    advantages_N: Tensor,
    mask_NT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    importance_cap: float = 5.0,
) -> PolicyLoss:
    """Sum over response tokens of -w * min(r A, clip(r, 1-low, 1+high) A).

    r = exp(logprobs - old_logprobs)            the trainer's policy now, against itself when the step began
    w = min(exp(old_logprobs - engine_logprobs), cap), detached: the engine sampled the tokens, the trainer grades them
    """
    mask_NT = mask_NT.float()
    advantage_N1 = advantages_N.float()[:, None]
    ratio_NT = torch.exp(((logprobs_NT - old_logprobs_NT.detach()).float()) * mask_NT)
    weight_NT = torch.exp((old_logprobs_NT - engine_logprobs_NT).detach().float() * mask_NT).clamp(max=importance_cap)
    clipped_NT = ratio_NT.clamp(1.0 - clip_low, 1.0 + clip_high)
    surrogate_NT = torch.minimum(ratio_NT * advantage_N1, clipped_NT * advantage_N1)
    binding_NT = (clipped_NT * advantage_N1 < ratio_NT * advantage_N1) & mask_NT.bool()
    return PolicyLoss(
        total=-(weight_NT * surrogate_NT * mask_NT).sum(),
        clipped=binding_NT.sum(),
        ratio_sum=(ratio_NT.detach() * mask_NT).sum(),
    )


def token_mismatch(trainer_logprobs_NT: Tensor, engine_logprobs_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Token multiplicative probability error per sequence [N]: mean over its tokens of exp|difference|; 1.0 is a perfect match.

    The figure NeMo-RL watches: a sampler and a trainer that disagree train the wrong policy, silently.
    """
    mask_NT = mask_NT.float()
    error_NT = torch.exp((trainer_logprobs_NT - engine_logprobs_NT).abs().float() * mask_NT) * mask_NT
    return error_NT.sum(1) / mask_NT.sum(1).clamp(min=1.0)
