"""A job as a Prefect flow: a subflow for each group of steps, a task for each step.

Tasks are coarse (a stage of work each) and their results are never cached by Prefect: the run folder's files say what is
done, so a flow that is run again, by hand or by a schedule, skips what they show. Inside a task the parts spread over
Dask. Parameters are plain values, so the same flows serve deployments (`prefect.yaml`).
"""

from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from flows.orchestration import prepare_environment

prepare_environment()  # before prefect reads it

from prefect import Flow, flow, task  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402

from flows.artifacts import progress_artifact, table_artifacts  # noqa: E402
from flows.steps import Group, Job, Run, Step, claim_folder, run_step  # noqa: E402
from pipelines.progress import Progress, silent  # noqa: E402
from pipelines.recipe import load_recipe  # noqa: E402

screen: ContextVar[Progress] = ContextVar("screen", default=silent)  # a flow's parameters must be plain values; a bar is none


def _task(step: Step, run: Run) -> None:
    task(name=step.name, task_run_name=step.name, cache_policy=NO_CACHE, persist_result=False)(lambda: run_step(step, run))()


def _subflow(group: Group, run: Run) -> None:
    def steps() -> None:
        for step in group.steps:
            _task(step, run)

    flow(name=group.name, flow_run_name=group.name, persist_result=False)(steps)()


def flow_of(job: Job) -> Flow:
    """The Prefect flow of a job. Its parameters are those of the command."""

    def run_job(
        out: str, recipe: str | dict[str, Any] | None = None, overrides: Sequence[str] = (), workers: int | None = None, scheduler: str | None = None
    ) -> str:
        chosen = load_recipe(job.recipe, job.default if recipe is None else recipe, list(overrides))
        folder = Path(out).absolute()
        claim_folder(folder, job.identity(chosen))
        groups = job.groups(chosen)
        names = [step.name for group in groups for step in group.steps]
        with progress_artifact(names, f"{job.name}-progress", screen.get()) as progress:
            run = Run(folder, chosen, workers, scheduler, tell=progress)
            try:
                for group in groups:
                    _subflow(group, run)
            finally:
                run.close_cluster()
        table_artifacts(job.tables(folder), job.name)
        return out

    return flow(name=f"gristmill-{job.name}", persist_result=False, validate_parameters=True)(run_job)
