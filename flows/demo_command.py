"""`gristmill demo`, past its options: recipe, run, and the screen at the end."""

import json
from collections.abc import Sequence

from flows.console import summary, table_of
from flows.demo import DEMO
from flows.demo_recipe import DemoRecipe
from flows.run_job import run_job
from pipelines.recipe import load_recipe


def run_demo(
    out: str,
    recipe: str | None,
    overrides: Sequence[str],
    *,
    crawl: str | None,
    seed: int | None,
    workers: int | None,
    scheduler: str | None,
    prefect: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run the main job and end with its summary.

    Raises:
        UserError: whatever the user got wrong, in one line.
    """
    chosen = load_recipe(DemoRecipe, recipe, [*overrides, *([f"seed={seed}"] if seed is not None else [])])
    if crawl is not None:
        chosen = chosen.model_copy(update={"crawl": crawl})
    folder = run_job(DEMO, out, chosen, workers=workers, scheduler=scheduler, prefect=prefect, quiet=quiet)
    figures = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    tables = [table_of(title, list(rows[0]), [list(row.values()) for row in rows]) for title, rows in DEMO.tables(folder).items() if rows]
    facts = {item["label"]: item["figure"] for item in figures["headline"]}
    facts |= {"report": str(folder / "report.html")}
    summary("gristmill demo", facts, tables, quiet=quiet, as_json=as_json, result={"run": str(folder), **figures, "report": str(folder / "report.html")})
