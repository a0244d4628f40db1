"""Mixtures: which sources, in which proportion of tokens, for how long; planned to the sequence before anything runs."""

from pipelines.mixture.files import load_mixture, save_mixture
from pipelines.mixture.plan import Available, Lane, MixturePlan, PlannedPhase, Share
from pipelines.mixture.planner import plan
from pipelines.mixture.recipe import After, FillInMiddle, Mixture, Phase, Source, Validation
from pipelines.mixture.supply import Estimate, Supply

__all__ = [
    "After", "Available", "Estimate", "FillInMiddle", "Lane", "Mixture", "MixturePlan", "Phase", "PlannedPhase", "Share", "Source", "Supply", "Validation",
    "load_mixture", "plan", "save_mixture",
]
