"""Reinforcement learning from verifiable rewards: GRPO on environments, rollouts by the in-process engine."""

from training.rl.train import EnvironmentSpec, RlRecipe, rl

__all__ = ["EnvironmentSpec", "RlRecipe", "rl"]
