"""Verbs beside `dedup`, which compares whole documents by their text: repeated text inside documents, and documents that mean the same."""

from typing import Annotated

import typer

from flows.commands.data import dataset_summary
from flows.commands.options import Inputs, Json, Out, Quiet, RecipeName, Scheduler, Workers, recipe_help, some, split_overrides


def _span_recipe():
    from pipelines.dedup.spans import SpanRecipe

    return SpanRecipe


def _semantic_recipe():
    from pipelines.dedup.semantic import SemanticRecipe

    return SemanticRecipe


def dedup_spans(
    inputs: Inputs,
    out: Out,
    recipe: RecipeName = None,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", "-t", help="For unit=token: a tokenizer.json, or a folder with one.", metavar="FILE")] = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    json: Json = False,
    recipe_help: recipe_help(_span_recipe) = False,
) -> None:
    """Cut text that several documents share: lines, paragraphs, runs of sentences, exact substrings.

    Edited rows carry `removed_spans` (start, end, copies) and the digest of the text they are spans of; documents left with too little
    leave. Without a recipe: lines that two documents share (as `dedup-lines`); `preset=` ccnet, c4, llama3, lee2022 or substrings.

    Examples:

        gristmill dedup-spans deduped --out lines

        gristmill dedup-spans deduped --out no-boilerplate count=hosts min_count=5 keep=none

        gristmill dedup-spans deduped --out lines preset=llama3

        gristmill dedup-spans deduped --out substrings --recipe dedup-substrings

        gristmill dedup-spans deduped --out substrings --recipe dedup-substrings unit=token length=50 --tokenizer tokenizer.json
    """
    from flows.console import progress_on_screen
    from pipelines.cluster import open_cluster
    from pipelines.dedup.spans import SpanRecipe
    from pipelines.dedup.spans import dedup_spans as run
    from pipelines.recipe import load_recipe

    datasets, overrides = split_overrides(inputs)
    chosen = load_recipe(SpanRecipe, recipe, overrides)
    with progress_on_screen(quiet) as progress, open_cluster(workers, scheduler) as cluster:
        dataset = run(some(datasets, "dataset"), chosen, out, tokenizer=tokenizer, cluster=cluster, progress=progress)
    dataset_summary("repeats cut", dataset, quiet, json)


def dedup_semantic(
    inputs: Inputs,
    out: Out,
    recipe: RecipeName = "dedup-semantic",
    workers: Workers = None,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    json: Json = False,
    recipe_help: recipe_help(_semantic_recipe) = False,
) -> None:
    """Keep one of documents that mean the same: sentence embeddings, clustered, compared within clusters (SemDeDup).

    Those that leave name the one that stays (`duplicate_of`) and their `cosine` to it; the vectors stay in OUT/work/embeddings.

    Examples:

        gristmill dedup-semantic deduped --out distinct

        gristmill dedup-semantic deduped --out distinct epsilon=0.05 windows=4

        gristmill dedup-semantic deduped --out distinct embedder=hashing      (no model to install)
    """
    from flows.console import progress_on_screen
    from pipelines.cluster import open_cluster
    from pipelines.dedup.semantic import SemanticRecipe
    from pipelines.dedup.semantic import dedup_semantic as run
    from pipelines.recipe import load_recipe

    datasets, overrides = split_overrides(inputs)
    chosen = load_recipe(SemanticRecipe, recipe, overrides)
    with progress_on_screen(quiet) as progress, open_cluster(workers, scheduler) as cluster:
        dataset = run(some(datasets, "dataset"), chosen, out, cluster=cluster, progress=progress)
    dataset_summary("semantically deduplicated", dataset, quiet, json)


def add_to(app: typer.Typer) -> None:
    app.command("dedup-spans", rich_help_panel="Documents")(dedup_spans)
    app.command("dedup-semantic", rich_help_panel="Documents")(dedup_semantic)
