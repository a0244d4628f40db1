"""The main job: real pages all the way to a trained, post-trained model whose verified data went back into the mixture.

data           crawl  curate  dedup  holdout  problems  tokenizer  mixture 1
training       untrained  pretrain                                             each followed by its evaluation
post-training  sft  generate  mixture 2  continued  rl                         each model followed by its evaluation
report         leak check  report
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows import training_steps as steps
from flows.data_steps import CRAWL, CURATE, DEDUP, HELD_OUT, file_step
from flows.demo_recipe import DemoRecipe
from flows.leak_check import check_leaks
from flows.steps import Group, Job, Run, finished, timings, write_json
from pipelines.recipe import digest_of
from pipelines.stage import code_version

FIRST_MIXTURE = {"text": "text", "problems": "text"}  # pretraining reads problems as plain text,
SECOND_MIXTURE = {"text": "text", "problems": "chat", "generated": "chat"}  # continued training as conversations


def identity(recipe: DemoRecipe) -> dict[str, Any]:
    """What makes two demo runs the same: not where they lie, nor how many workers they have."""
    return {
        "job": "demo",
        "crawl": recipe.crawl,
        "seed": recipe.seed,
        "recipe": digest_of(recipe.model_dump(mode="json", exclude={"crawl"})),
        "version": code_version(),
    }


def groups(recipe: DemoRecipe) -> list[Group]:
    """The steps, in order."""
    return [
        Group(name="data", steps=(CRAWL, CURATE, DEDUP, HELD_OUT, steps.PROBLEM_SETS, steps.TOKENIZER, steps.mixture_step(1, FIRST_MIXTURE))),
        Group(name="training", steps=(steps.UNTRAINED, steps.evaluation("untrained", problems=False), steps.PRETRAIN, steps.evaluation("pretrain"))),
        Group(
            name="post-training",
            steps=(
                steps.SFT,
                steps.evaluation("sft"),
                steps.GENERATED,
                steps.mixture_step(2, SECOND_MIXTURE),
                steps.CONTINUED,
                steps.evaluation("continued"),
                steps.RL,
                steps.evaluation("rl"),
            ),
        ),
        Group(name="report", steps=(file_step("leak check", check_leaks, "heldout", "leaks.json"), file_step("report", report, "summary.json"))),
    ]


def report(run: Run) -> dict[str, Any]:
    """report.html, and summary.json with the figures a machine wants."""
    from flows.report.facts import collect
    from flows.report.lineage import digests
    from flows.report.render import write_report

    facts = collect(run.folder)
    path = write_report(facts, run.path("report.html"))
    summary = {
        "report": path.name,
        "headline": facts["headline"],
        "funnel": [{key: stage[key] for key in ("stage", "rows_in", "kept")} for stage in facts["funnel"]],
        "accuracy": {row["task"]: dict(zip(facts["accuracy"]["stages"], row["values"], strict=True)) for row in facts["accuracy"]["rows"]},
        "held_out_text": {row["task"]: dict(zip(facts["accuracy"]["stages"], row["values"], strict=True)) for row in facts["accuracy"]["text"]},
        "generation": {key: facts["generation"][key] for key in ("written", "verified", "accepted", "share", "reasons")},
        "leaks_remaining": json.loads(run.path("heldout", "leaks.json").read_text(encoding="utf-8"))["remaining"],
        "seconds": {name: round(entry["seconds"], 1) for name, entry in timings(run.folder).items()},
        "peak_bytes": max(entry["peak_bytes"] for entry in timings(run.folder).values()),
        "digests": digests(run.folder),
    }
    write_json(run.path("summary.json"), summary)
    return {"bytes": path.stat().st_size}


def tables(folder: Path) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The finished run's tables, for Prefect and for the last screen."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    done = finished(folder)
    return {
        "funnel": [{"stage": stage["stage"], "rows in": stage["rows_in"], "kept": stage["kept"]} for stage in summary["funnel"]],
        "accuracy": [{"task": task, **values} for task, values in summary["accuracy"].items()],
        "held-out text": [{"measure": name, **values} for name, values in summary["held_out_text"].items()],
        "generation": [{key: summary["generation"][key] for key in ("written", "verified", "accepted", "share")}],
        "steps": [
            {"step": name, "seconds": round(entry["seconds"], 1), "peak MB": round(entry["peak_bytes"] / 1e6), "sittings": entry["sittings"]}
            for name, entry in done.items()
        ],
    }


DEMO = Job(
    name="demo",
    about="the main job: real pages to a trained and post-trained model, and a report",
    default="demo",
    recipe=DemoRecipe,
    identity=identity,
    groups=groups,
    tables=tables,
)
