"""Run a job from the command line: claim the folder, draw progress, go through Prefect or plainly."""

from pathlib import Path
from typing import Any

from flows.console import err, progress_on_screen
from flows.orchestration import prefect_api
from flows.steps import Job, Run, claim_folder, run_plainly
from pipelines.errors import UserError
from pipelines.recipe import Recipe


def run_job(job: Job, out: str, recipe: Recipe, *, workers: int | None = None, scheduler: str | None = None, prefect: bool = True, quiet: bool = False) -> Path:
    """Do a job, or finish an interrupted one, in folder `out`.

    Raises:
        UserError: the folder belongs to another run, or something the recipe names is not there.
    """
    if "://" in out:
        raise UserError(f"{out}: a job's folder lies on this machine's disks; its inputs may be remote")
    folder = Path(out).absolute()
    claim_folder(folder, job.identity(recipe))
    with progress_on_screen(quiet) as progress:
        if not prefect:
            run_plainly(job, Run(folder, recipe, workers, scheduler, tell=progress))
            return folder
        with prefect_api(tell=lambda line: err.print(line, markup=False)) as there:
            if there:
                _through_prefect(job, folder, recipe, workers, scheduler, progress)
            else:
                run_plainly(job, Run(folder, recipe, workers, scheduler, tell=progress))
    return folder


def _through_prefect(job: Job, folder: Path, recipe: Recipe, workers: int | None, scheduler: str | None, progress: Any) -> None:
    from flows.prefect_job import flow_of, screen

    token = screen.set(progress)
    try:
        flow_of(job)(out=str(folder), recipe=recipe.model_dump(mode="json"), workers=workers, scheduler=scheduler)
    finally:
        screen.reset(token)
