"""The post-training job: a model folder to SFT, verified generations, and RL, each measured on held-out problems."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from flows.data_steps import file_step
from flows.demo_recipe import Generation, Problems
from flows.report.learning import evaluations
from flows.steps import Group, Job, Run, write_json
from flows.training_steps import GENERATED, PROBLEM_SETS, trained
from pipelines.recipe import Recipe, digest_of
from pipelines.stage import code_version
from training.rl.train import RlRecipe
from training.runs import model_digest
from training.sft import SftRecipe


class HeldOutProblems(Recipe):
    """Problems to measure with."""

    problems_per_task: int = Field(40, gt=0)
    max_tokens: int = Field(128, gt=0, description="of an answer")


class PostTrainingRecipe(Recipe):
    """Which model, which problems, and the rooms' own recipes."""

    model: str = Field(description="folder of the model to start from")
    seed: int = Field(0, ge=0)
    problems: Problems
    heldout: HeldOutProblems = HeldOutProblems()
    sft: SftRecipe = SftRecipe()
    generate: Generation = Generation()
    rl: RlRecipe = RlRecipe()


def identity(recipe: PostTrainingRecipe) -> dict[str, Any]:
    """What makes two post-training runs the same."""
    digest = digest_of(recipe.model_dump(mode="json", exclude={"model"}))
    return {"job": "post-training", "model": model_digest(recipe.model), "recipe": digest, "version": code_version()}


def _sft(run: Run) -> dict[str, Any]:
    from training.sft import sft

    chosen = run.recipe.sft.model_copy(update={"init_from": run.recipe.model, "datasets": [run.uri("problems")], "seed": run.recipe.seed})
    return trained(sft(chosen, run.uri("sft"), run.progress))


def _rl(run: Run) -> dict[str, Any]:
    from training.rl.train import rl

    return trained(
        rl(
            run.recipe.rl.model_copy(update={"init_from": run.uri("sft", "model"), "exclude_ids_from": run.uri("heldout/problems"), "seed": run.recipe.seed}),
            run.uri("rl"),
            run.progress,
        )
    )


def _measure(stage: str):
    def measure(run: Run) -> dict[str, Any]:
        from training.evaluate import ProblemSuite, evaluate

        suite = ProblemSuite(name="problems", problems=run.uri("heldout/problems"), max_tokens=run.recipe.heldout.max_tokens, samples=4)
        figures = evaluate(run.uri(stage, "model"), [suite], progress=run.progress)
        write_json(run.path("eval", f"{stage}.json"), figures)
        return {"accuracy": round(figures["problems"]["accuracy"], 4)}

    return file_step(f"evaluate {stage}", measure, "eval", f"{stage}.json")


def groups(recipe: PostTrainingRecipe) -> list[Group]:
    """The steps, in order."""
    training = (file_step("sft", _sft, "sft", "done.json"), _measure("sft"), GENERATED, file_step("rl", _rl, "rl", "done.json"), _measure("rl"))
    return [Group(name="data", steps=(PROBLEM_SETS,)), Group(name="post-training", steps=training)]


def tables(folder: Path) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The finished run's tables."""
    from flows.report.made import generation

    rows = [{"stage": stage, "accuracy": figures["problems"]["accuracy"]} for stage, figures in evaluations(folder)]
    made = generation(folder)
    return {"accuracy": rows, "generation": [{key: made[key] for key in ("written", "verified", "accepted", "share")}] if made else []}


POST_TRAINING = Job(
    name="post-training", about="a model folder to SFT, verified generations and RL", recipe=PostTrainingRecipe, identity=identity, groups=groups, tables=tables
)
