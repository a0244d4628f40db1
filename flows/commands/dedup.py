"""Verbs beside `dedup`, which compares whole documents by their text: repeated text inside documents, and documents that mean the same."""

from typing import Annotated

import typer

from flows.commands.dataset_verb import Job, dataset_verb


@dataset_verb("repeats cut", "pipelines.dedup.spans:SpanRecipe")
def dedup_spans(
    job: Job,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", "-t", help="For unit=token: a tokenizer.json, or a folder with one.", metavar="FILE")] = None,
):
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
    from pipelines.dedup.spans import dedup_spans as run

    return run(job.inputs, job.recipe, job.out, tokenizer=tokenizer, **job.means)


@dataset_verb("semantically deduplicated", "pipelines.dedup.semantic:SemanticRecipe", named="dedup-semantic")
def dedup_semantic(job: Job):
    """Keep one of documents that mean the same: sentence embeddings, clustered, compared within clusters (SemDeDup).

    Those that leave name the one that stays (`duplicate_of`) and their `cosine` to it; the vectors stay in OUT/work/embeddings.

    Examples:

        gristmill dedup-semantic deduped --out distinct

        gristmill dedup-semantic deduped --out distinct epsilon=0.05 windows=4

        gristmill dedup-semantic deduped --out distinct embedder=hashing      (no model to install)
    """
    from pipelines.dedup.semantic import dedup_semantic as run

    return run(job.inputs, job.recipe, job.out, **job.means)


def add_to(app: typer.Typer) -> None:
    app.command("dedup-spans", rich_help_panel="Documents")(dedup_spans)
    app.command("dedup-semantic", rich_help_panel="Documents")(dedup_semantic)
