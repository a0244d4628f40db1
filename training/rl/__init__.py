"""Reinforcement learning from verifiable rewards: GRPO on environments, rollouts by the in-process engine."""
