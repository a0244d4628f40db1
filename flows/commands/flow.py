"""`gristmill flow run|deploy|list`: the jobs by name, as Prefect flows."""

from typing import Annotated

import typer

from flows.commands.options import Json, Out, Overrides, Quiet, RecipeName, Scheduler, Workers, only_overrides

flow_app = typer.Typer(no_args_is_help=True, help="Jobs as Prefect flows: list, run, deploy.")

Name = Annotated[str, typer.Argument(help="demo, curation or post-training.", metavar="NAME")]


def _job(name: str):
    import difflib

    from flows.jobs import JOBS
    from pipelines.errors import UserError

    if name not in JOBS:
        near = difflib.get_close_matches(name, JOBS, n=1)
        raise UserError(f"no flow {name!r}" + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(JOBS)}"))
    return JOBS[name]


def listing(json: Json = False) -> None:
    """List the flows and their steps."""
    from flows.console import out, summary, table_of
    from flows.jobs import JOBS

    rows = [(name, job.about) for name, job in JOBS.items()]
    if json:
        summary("", {}, as_json=True, result=[{"name": name, "about": about} for name, about in rows])
    else:
        out.print(table_of("flows", ["name", "what it does"], rows))


def run(
    name: Name,
    out: Out,
    overrides: Overrides = None,
    recipe: RecipeName = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a flow here and now: against PREFECT_API_URL if it is set, else against an embedded server.

    Examples:

        gristmill flow run curation --out runs/curation crawl=crawls/

        PREFECT_API_URL=http://127.0.0.1:4200/api gristmill flow run demo --out runs/first
    """
    from flows.console import summary, table_of
    from flows.run_job import run_job
    from pipelines.recipe import load_recipe

    job = _job(name)
    chosen = load_recipe(job.recipe, recipe or job.default, only_overrides(overrides))
    folder = run_job(job, out, chosen, workers=workers, scheduler=scheduler, quiet=quiet)
    tables = job.tables(folder)
    shown = [table_of(title, list(rows[0]), [list(row.values()) for row in rows]) for title, rows in tables.items() if rows]
    summary(f"flow {name}", {"run": str(folder)}, shown, quiet=quiet, as_json=json, result={"run": str(folder), "tables": tables})


def deploy(
    name: Name,
    pool: Annotated[str, typer.Option("--pool", help="A work pool of the server (`prefect work-pool create NAME --type process`).")] = "gristmill",
    cron: Annotated[str | None, typer.Option("--cron", help="A schedule, e.g. '0 3 * * *'; none without.")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Register a flow with the server at PREFECT_API_URL, to be run by a worker of a work pool.

    Example:

        PREFECT_API_URL=http://127.0.0.1:4200/api gristmill flow deploy curation --pool gristmill --cron '0 3 * * *'
    """
    import os

    from flows.console import summary
    from flows.orchestration import prefect_api
    from pipelines.errors import UserError

    _job(name)
    if not os.environ.get("PREFECT_API_URL"):
        raise UserError("deploying needs a Prefect server that stays: set PREFECT_API_URL (and `prefect server start`)")
    with prefect_api():
        from flows.deploying import deploy_flow

        identifier = deploy_flow(name, pool, cron)
    summary("deployed", {"flow": name, "work pool": pool, "schedule": cron or "none", "deployment": identifier}, quiet=quiet, as_json=json)


def add_to(app: typer.Typer) -> None:
    flow_app.command("list")(listing)
    flow_app.command("run")(run)
    flow_app.command("deploy")(deploy)
    app.add_typer(flow_app, name="flow", rich_help_panel="Operations")
