"""Documents that mean the same, by the nearness of their embeddings."""

from pipelines.dedup.semantic.recipe import SemanticRecipe
from pipelines.dedup.semantic.run import dedup_semantic

__all__ = ["SemanticRecipe", "dedup_semantic"]
