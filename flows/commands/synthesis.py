"""Verbs that make data: problems, generate."""

import typer

from flows.commands.dataset_verb import Job, dataset_verb


@dataset_verb("problems", "generators.problems:ProblemsRecipe", of="")
def problems(job: Job):
    """Draw reasoning problems with worked, machine-checked solutions.

    Questions of the dataset `exclude_ids_from` (a held-out set) are refused.

    Examples:

        gristmill problems --out problems count=10000 'tasks=[{name: addition}, {name: counting}]'

        gristmill problems --out more seed=2 count=500 'tasks=[{name: addition}]' exclude_ids_from=heldout
    """
    from generators.problems import PROBLEMS
    from pipelines.stage import run_stage

    excluded = [job.recipe.exclude_ids_from] if job.recipe.exclude_ids_from else []
    return run_stage(PROBLEMS, excluded, job.recipe, job.out, **job.means)


@dataset_verb("generated", "generators.run:GenerateRecipe", of="dataset of problems", workers=0)
def generate(job: Job):
    """Have a model solve problems, check every solution, keep what is right with its full lineage.

    INPUT is a dataset of problems. The engine is a model folder, or any OpenAI-compatible server. A local model works in
    this process on all cores; `--workers N` gives N processes a model each.

    Examples:

        gristmill generate problems --out generated engine.model=runs/sft/model samples=4

        gristmill generate problems --out generated engine.kind=openai engine.url=http://localhost:8000/v1 engine.model=my-model
    """
    from generators.run import GENERATE
    from pipelines.stage import run_stage

    return run_stage(GENERATE, job.inputs, job.recipe, job.out, **job.means)


def add_to(app: typer.Typer) -> None:
    app.command("problems", rich_help_panel="Synthetic data")(problems)
    app.command("generate", rich_help_panel="Synthetic data")(generate)
