"""Verbs that make data: problems, generate."""

from typing import Any

import typer

from flows.commands.data import dataset_summary
from flows.commands.options import Inputs, Json, Out, Overrides, Quiet, RecipeName, Scheduler, Workers, only_overrides, recipe_help, some, split_overrides


def _problems_recipe() -> Any:
    from generators.problems import ProblemsRecipe

    return ProblemsRecipe


def _generate_recipe() -> Any:
    from generators.run import GenerateRecipe

    return GenerateRecipe


def problems(
    out: Out,
    overrides: Overrides = None,
    recipe: RecipeName = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    json: Json = False,
    recipe_help: recipe_help(_problems_recipe) = False,
) -> None:
    """Draw reasoning problems with worked, machine-checked solutions.

    Questions of the dataset `exclude_ids_from` (a held-out set) are refused.

    Examples:

        gristmill problems --out problems count=10000 'tasks=[{name: addition}, {name: counting}]'

        gristmill problems --out more seed=2 count=500 'tasks=[{name: addition}]' exclude_ids_from=heldout
    """
    from flows.console import progress_on_screen
    from generators.problems import PROBLEMS, ProblemsRecipe
    from pipelines.cluster import open_cluster
    from pipelines.recipe import load_recipe
    from pipelines.stage import run_stage

    chosen = load_recipe(ProblemsRecipe, recipe, only_overrides(overrides))
    inputs = [chosen.exclude_ids_from] if chosen.exclude_ids_from else []
    with progress_on_screen(quiet) as progress, open_cluster(workers, scheduler) as cluster:
        dataset = run_stage(PROBLEMS, inputs, chosen, out, cluster=cluster, progress=progress)
    dataset_summary("problems", dataset, quiet, json)


def generate(
    inputs: Inputs,
    out: Out,
    recipe: RecipeName = None,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    json: Json = False,
    recipe_help: recipe_help(_generate_recipe) = False,
) -> None:
    """Have a model solve problems, check every solution, keep what is right with its full lineage.

    INPUT is a dataset of problems. The engine is a model folder, or any OpenAI-compatible server. A local model works in
    this process on all cores; `--workers N` gives N processes a model each.

    Examples:

        gristmill generate problems --out generated engine.model=runs/sft/model samples=4

        gristmill generate problems --out generated engine.kind=openai engine.url=http://localhost:8000/v1 engine.model=my-model
    """
    from flows.console import progress_on_screen
    from generators.run import GENERATE, GenerateRecipe
    from pipelines.cluster import open_cluster
    from pipelines.recipe import load_recipe
    from pipelines.stage import run_stage

    datasets, overrides = split_overrides(inputs)
    chosen = load_recipe(GenerateRecipe, recipe, overrides)
    with progress_on_screen(quiet) as progress, open_cluster(workers, scheduler) as cluster:
        dataset = run_stage(GENERATE, some(datasets, "dataset of problems"), chosen, out, cluster=cluster, progress=progress)
    dataset_summary("generated", dataset, quiet, json)


def add_to(app: typer.Typer) -> None:
    app.command("problems", rich_help_panel="Synthetic data")(problems)
    app.command("generate", rich_help_panel="Synthetic data")(generate)
