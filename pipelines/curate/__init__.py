from pipelines.curate.recipe import CurateRecipe
from pipelines.curate.run import curate

__all__ = ["CurateRecipe", "curate"]
