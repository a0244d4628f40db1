"""The stage that writes datasets of problems: questions with worked solutions, each accepted by its own task's checker.

A candidate is (task, index). Small families ask the same question twice, and a held-out set may hold it too; both are rejected
rows, never silent losses. So that parts can run anywhere and in any order, a question belongs to the part its id's residue names:
a part draws all candidates of its task and looks only at its own. Drawing costs some 30 microseconds, so a task is worth
splitting only when it has very many candidates.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, field_serializer, model_validator

from generators.documents import LICENSE, REJECTED_SCHEMA, SYNTHETIC_SCHEMA, table, task_named, text_digest
from generators.tasks import Problem, Task
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.recipe import Recipe, digest_of
from pipelines.stage import PartOutput, Stage

BATCH_ROWS = 4096


class TaskShare(Recipe):
    """One task in a dataset of problems."""

    name: str
    count: Annotated[int, Field(gt=0)] | None = None
    """Candidates drawn; by default the recipe's `count` divided by weights."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    params: dict[str, Any] = {}
    """Difficulty: the task's own fields by name."""


class ProblemsRecipe(Recipe):
    """Which problems to draw. Duplicates and leaks are rejected, so at most `count` candidates are kept."""

    tasks: Annotated[tuple[TaskShare, ...], Field(min_length=1)]
    count: Annotated[int, Field(gt=0)] | None = None
    seed: int = 0
    parts_per_task: Annotated[int, Field(gt=0)] = 1
    exclude_ids_from: str | None = None
    """URI of a held-out dataset of problems: none of its questions may appear. Give it to the stage as an input too, or instead, and
    its digest becomes part of the dataset's identity."""

    @field_serializer("exclude_ids_from")
    def _without_path(self, uri: str | None) -> str | None:
        """Where the held-out set lies is no part of a dataset's identity."""
        return uri and uri.rstrip("/").rpartition("/")[2]

    @model_validator(mode="after")
    def _counts_known(self) -> ProblemsRecipe:
        names = [share.name for share in self.tasks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"task {name} is listed twice")
        if self.count is None and any(share.count is None for share in self.tasks):
            raise ValueError("give `count`, or a count for every task")
        return self


def plan(inputs: Sequence[str], config: ProblemsRecipe) -> list[dict[str, Any]]:
    """A part for each task and residue. Inputs, like `exclude_ids_from`, are held-out datasets whose questions may not appear."""
    held_out = sorted({*inputs, *([config.exclude_ids_from] if config.exclude_ids_from else [])})
    for uri in held_out:
        Dataset.open(uri)
    unset = [share for share in config.tasks if share.count is None]
    left = (config.count or 0) - sum(share.count or 0 for share in config.tasks)
    if unset and left < len(unset):
        raise UserError(f"count {config.count} leaves nothing for the task {unset[0].name}")
    weights = sum(share.weight for share in unset)
    payloads = []
    for share in config.tasks:
        task_named(share.name, share.params).problem(config.seed, 0)  # bad difficulties fail here, before anything runs
        count = share.count or max(1, round(left * share.weight / weights))
        payloads += [{"task": share.name, "params": share.params, "count": count, "residue": r, "of": config.parts_per_task, "held_out": held_out}
                     for r in range(config.parts_per_task)]
    return payloads


def run(part: dict[str, Any], config: ProblemsRecipe, output: PartOutput) -> None:
    task = task_named(part["task"], part["params"])
    held_out = {id for uri in part["held_out"] for id in _ids(uri, part["task"])}
    seen: dict[str, int] = {}
    kept: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for index in range(part["count"]):
        problem = task.problem(config.seed, index)
        if int(problem.id[-8:], 16) % part["of"] != part["residue"]:
            continue
        output.read(1)
        row = problem_row(task, problem, config.seed, index)
        reason, detail = "", ""
        if problem.id in held_out:
            reason, detail = "heldout.leak", "the question is in the held-out set"
        elif problem.id in seen:
            reason, detail = "duplicate.question", f"also candidate {seen[problem.id]}"
        else:
            seen[problem.id] = index
            verdict = task.check(problem, problem.response())
            if not verdict.ok:
                reason, detail = verdict.reason, "the worked solution does not pass its own check"
        if reason:
            # a question can come twice: the rejected copy needs an id of its own
            rejected.append({**row, "id": f"{problem.id}-{index}", "verified": False, "reason": reason, "detail": detail})
        else:
            kept.append(row)
        if len(kept) + len(rejected) >= BATCH_ROWS:
            output.write(table(kept, SYNTHETIC_SCHEMA), table(rejected, REJECTED_SCHEMA))
            kept, rejected = [], []
    output.write(table(kept, SYNTHETIC_SCHEMA), table(rejected, REJECTED_SCHEMA))


def problem_row(task: Task, problem: Problem, seed: int, index: int) -> dict[str, Any]:
    """A problem as a synthetic document."""
    text = problem.text()
    return {
        "id": problem.id, "text": text, "title": problem.question, "language": "en", "language_score": 1.0, "license": LICENSE,
        "source": "generators.tasks", "digest": text_digest(text), "messages": problem.messages(), "task": problem.task,
        "question": problem.question, "reasoning": problem.reasoning, "answer": problem.answer,
        "generator": f"generators.tasks.{problem.task}@{task.version}", "prompt_digest": digest_of(problem.prompt_messages()),
        "parents": [], "verified": True, "sampling": {"seed": seed, "sample": index},
    }


def _ids(uri: str, task: str) -> list[str]:
    frame = Dataset.open(uri).scan(["id", "task"]).collect()
    return [id for id, name in frame.iter_rows() if name == task]


PROBLEMS = Stage(name="problems", version=1, plan=plan, run=run)
