"""Verbs over documents: curate, dedup, decontaminate, bucket, train-classifier."""

from typing import Annotated

import typer

from flows.commands.options import Inputs, Json, Out, Quiet, RecipeName, Scheduler, Workers, recipe_help, some, split_overrides


def _curate_recipe():
    from pipelines.curate import CurateRecipe

    return CurateRecipe


def _dedup_recipe():
    from pipelines.dedup import DedupRecipe

    return DedupRecipe


def curate(
    inputs: Inputs,
    out: Out,
    recipe: RecipeName = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    json: Json = False,
    recipe_help: recipe_help(_curate_recipe) = False,
) -> None:
    """Web captures to documents: read, extract, identify the language, measure, decide.

    Inputs: WARC, WET, ARC, HTML, JSONL or Parquet files, folders, globs, any fsspec URI, or
    `commoncrawl:CC-MAIN-2024-22?files=1&megabytes=50`. Every record ends in `parts/` or, with its reason, in `rejected/`.

    Examples:

        gristmill curate crawl/*.warc.gz --out curated

        gristmill curate s3://bucket/crawl/ --out s3://bucket/curated --scheduler tcp://10.0.0.1:8786

        gristmill curate 'commoncrawl:CC-MAIN-2024-22?files=1&megabytes=50' --out curated --workers 4
    """
    from flows.console import progress_on_screen
    from pipelines.cluster import open_cluster
    from pipelines.crawl.sources import resolve
    from pipelines.curate import CurateRecipe, curate as run
    from pipelines.recipe import load_recipe

    sources, overrides = split_overrides(inputs)
    chosen = load_recipe(CurateRecipe, recipe, overrides)
    with progress_on_screen(quiet) as progress:
        files = [file for source in some(sources, "input") for file in resolve(source, f"{out.rstrip('/')}-crawl", progress)]
        with open_cluster(workers, scheduler) as cluster:
            dataset = run(files, chosen, out, cluster=cluster, progress=progress)
    dataset_summary("curated", dataset, quiet, json)


def dedup(
    inputs: Inputs,
    out: Out,
    recipe: RecipeName = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    json: Json = False,
    recipe_help: recipe_help(_dedup_recipe) = False,
) -> None:
    """Keep one of each: exact URLs and texts, then near-duplicates by MinHash-LSH.

    Survivors carry `cluster_id` and `cluster_size`; the others leave with `duplicate_of`.

    Examples:

        gristmill dedup curated --out deduped

        gristmill dedup crawl-1 crawl-2 --out deduped threshold=0.8
    """
    from flows.console import progress_on_screen
    from pipelines.cluster import open_cluster
    from pipelines.dedup import DedupRecipe, dedup as run
    from pipelines.recipe import load_recipe

    datasets, overrides = split_overrides(inputs)
    chosen = load_recipe(DedupRecipe, recipe, overrides)
    with progress_on_screen(quiet) as progress, open_cluster(workers, scheduler) as cluster:
        dataset = run(some(datasets, "dataset"), chosen, out, cluster=cluster, progress=progress)
    dataset_summary("deduplicated", dataset, quiet, json)


def dataset_summary(verb: str, dataset, quiet: bool, json: bool) -> None:
    """The last screen of every verb that writes a dataset."""
    from flows.console import summary, table_of

    facts = {"dataset": dataset.uri, "rows in": dataset.rows_in, "kept": dataset.rows, "rejected": dataset.rejected_rows, "digest": dataset.digest}
    result = {
        "dataset": dataset.uri,
        "name": dataset.name,
        "rows_in": dataset.rows_in,
        "rows": dataset.rows,
        "rejected_rows": dataset.rejected_rows,
        "reasons": dataset.reasons,
        "counters": dataset.counters,
        "digest": dataset.digest,
    }
    reasons = [(reason, count, f"{count / max(1, dataset.rows_in):.1%}") for reason, count in list(dataset.reasons.items())[:12]]
    tables = [table_of("why rows left", ["reason", "rows", "of all"], reasons)] if reasons else []
    summary(verb, facts, tables, quiet=quiet, as_json=json, result=result)


def add_to(app: typer.Typer) -> None:
    app.command("curate", rich_help_panel="Documents")(curate)
    app.command("dedup", rich_help_panel="Documents")(dedup)
