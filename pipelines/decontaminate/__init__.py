from pipelines.decontaminate.recipe import PRESETS, DecontaminateRecipe
from pipelines.decontaminate.run import decontaminate
from pipelines.decontaminate.verdict import REASON

__all__ = ["PRESETS", "REASON", "DecontaminateRecipe", "decontaminate"]
