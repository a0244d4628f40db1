"""The micro world, for every test of training."""

from micro_world import micro  # noqa: F401
