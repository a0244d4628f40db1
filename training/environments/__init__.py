"""Environments: reset, step, verdict. What RL asks for a prompt and for a reward."""

from training.environments.environment import Environment, Outcome
from training.environments.verifiable import VerifiableTask

__all__ = ["Environment", "Outcome", "VerifiableTask"]
