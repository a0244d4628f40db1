"""Verbs over models: pretrain, sft, rl, eval, serve."""

from typing import Annotated, Any

import typer

from flows.commands.options import Json, Out, Overrides, Quiet, RecipeName, only_overrides, recipe_help

PANEL = "Models"


def _pretrain_recipe() -> Any:
    from training.pretrain import PretrainRecipe

    return PretrainRecipe


def _sft_recipe() -> Any:
    from training.sft import SftRecipe

    return SftRecipe


def _rl_recipe() -> Any:
    from training.rl import RlRecipe

    return RlRecipe


def _train(model: Any, run: Any, title: str, recipe: str | None, overrides: list[str] | None, out: str, quiet: bool, json: bool) -> None:
    from dataclasses import asdict

    from flows.console import progress_on_screen, summary
    from pipelines.recipe import load_recipe

    chosen = load_recipe(model, recipe, only_overrides(overrides))
    with progress_on_screen(quiet) as progress:
        result = run(chosen, out, progress)
    facts = {"model": result.model_path, "steps": result.steps, "trained tokens": result.tokens, **{k: v for k, v in result.metrics.items() if isinstance(v, int | float | str)}}
    summary(title, facts, quiet=quiet, as_json=json, result=asdict(result))


def pretrain(
    out: Out,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    json: Json = False,
    recipe_help: recipe_help(_pretrain_recipe) = False,
) -> None:
    """Pretrain (or continue from `init_from`) a hybrid Mamba-MoE model on token shards, by default under NVFP4.

    Examples:

        gristmill pretrain --out runs/p shards=shards model.size=tiny

        gristmill pretrain --out runs/c shards=shards-2 init_from=runs/p/model precision=bf16
    """
    from training.pretrain import PretrainRecipe, pretrain as run

    _train(PretrainRecipe, run, "pretrained", recipe, overrides, out, quiet, json)


def sft(
    out: Out,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    json: Json = False,
    recipe_help: recipe_help(_sft_recipe) = False,
) -> None:
    """Fine-tune on conversations; the loss is on the assistant's tokens only.

    Example:

        gristmill sft --out runs/s init_from=runs/p/model 'datasets=[problems]' epochs=2
    """
    from training.sft import SftRecipe, sft as run

    _train(SftRecipe, run, "fine-tuned", recipe, overrides, out, quiet, json)


def rl(
    out: Out,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    json: Json = False,
    recipe_help: recipe_help(_rl_recipe) = False,
) -> None:
    """Reinforcement learning on verifiable tasks (GRPO).

    Example:

        gristmill rl --out runs/r init_from=runs/s/model steps=40
    """
    from training.rl import RlRecipe, rl as run

    _train(RlRecipe, run, "after RL", recipe, overrides, out, quiet, json)


def add_to(app: typer.Typer) -> None:
    for verb in (pretrain, sft, rl):
        app.command(verb.__name__, rich_help_panel=PANEL)(verb)
