"""Duplicates: exact URL, exact text, near copies by MinHash; each cluster keeps its best document and its size."""

from pipelines.dedup.recipe import PRESETS, DedupRecipe, MinHashRecipe
from pipelines.dedup.rehydrate import rehydration_weight
from pipelines.dedup.run import dedup

__all__ = ["PRESETS", "DedupRecipe", "MinHashRecipe", "dedup", "rehydration_weight"]
