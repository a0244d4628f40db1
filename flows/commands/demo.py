"""`gristmill demo`: the main job."""

from typing import Annotated

import typer

from flows.commands.options import Json, Out, Overrides, Quiet, RecipeName, Scheduler, Workers, only_overrides, recipe_help


def demo(
    out: Out,
    crawl: Annotated[
        str | None, typer.Option("--crawl", help="Files, folder, glob, URI or commoncrawl:...; the sample crawl without.", metavar="SOURCE")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of everything random in the run.")] = None,
    recipe: RecipeName = "demo",
    overrides: Overrides = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    prefect: Annotated[bool, typer.Option("--prefect/--no-prefect", help="Run as a Prefect flow (embedded server, or PREFECT_API_URL), or plainly.")] = True,
    quiet: Quiet = False,
    json: Json = False,
    recipe_help: recipe_help("flows.demo_recipe:DemoRecipe") = False,
) -> None:
    """The main job: real web pages to a trained, post-trained model that writes its own verified data, and a report.

    Interrupt it as you like: the same line goes on where it stood.

    Examples:

        gristmill demo --out runs/first

        gristmill demo --out runs/mine --crawl 'crawls/*.warc.gz' --seed 7

        gristmill demo --out runs/cc --crawl 'commoncrawl:CC-MAIN-2024-22?files=1&megabytes=50'
    """
    from flows.demo_command import run_demo

    run_demo(out, recipe, only_overrides(overrides), crawl=crawl, seed=seed, workers=workers, scheduler=scheduler, prefect=prefect, quiet=quiet, as_json=json)


def add_to(app: typer.Typer) -> None:
    app.command("demo", rich_help_panel="Start here")(demo)
