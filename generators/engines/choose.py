"""Which writer a recipe means: the only file that knows them all."""

from pathlib import Path

from generators.engines.interface import EngineRecipe, Writer


def open_writer(recipe: EngineRecipe) -> Writer:
    """The writer a recipe names. UserError when its model cannot be loaded."""
    if recipe.kind == "local":
        from generators.engines.local import LocalWriter  # torch is only loaded by who generates here

        return LocalWriter(recipe)
    from generators.engines.openai import OpenAIWriter

    return OpenAIWriter(recipe)


def weights_stamp(recipe: EngineRecipe) -> tuple:
    """Changes when a local model's weights are written anew; cheaper than their digest."""
    files = sorted(Path(recipe.model).glob("*.safetensors")) if recipe.kind == "local" else []
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
