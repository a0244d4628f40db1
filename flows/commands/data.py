"""Verbs over documents: curate, select, dedup, decontaminate, bucket, train-classifier."""

from typing import Annotated

import typer

from flows.commands.dataset_verb import Job, dataset_verb
from flows.commands.options import Json, Quiet, Workers


@dataset_verb("curated", "pipelines.curate:CurateRecipe", of="input")
def curate(job: Job):
    """Web captures to documents: read, extract, identify the language, measure, decide.

    Inputs: WARC, WET, ARC, HTML, JSONL or Parquet files, folders, globs, any fsspec URI, or
    `commoncrawl:CC-MAIN-2024-22?files=1&megabytes=50`. Every record ends in `parts/` or, with its reason, in `rejected/`.

    Examples:

        gristmill curate crawl/*.warc.gz --out curated

        gristmill curate s3://bucket/crawl/ --out s3://bucket/curated --scheduler tcp://10.0.0.1:8786

        gristmill curate 'commoncrawl:CC-MAIN-2024-22?files=1&megabytes=50' --out curated --workers 4
    """
    from pipelines.crawl.sources import resolve
    from pipelines.curate import curate as run

    files = resolve(job.inputs, f"{job.out.rstrip('/')}-crawl", job.progress, any_kind=job.recipe.datatrove_reader is not None)
    return run(files, job.recipe, job.out, **job.means)


@dataset_verb("deduplicated", "pipelines.dedup:DedupRecipe")
def dedup(
    job: Job,
    index: Annotated[str | None, typer.Option("--index", help="Folder that remembers earlier crawls; made if need be.", metavar="URI")] = None,
):
    """Keep one of each: exact URLs and texts, then near-duplicates by MinHash-LSH.

    Survivors carry `cluster_id` and `cluster_size`; the others leave with `duplicate_of`.

    Examples:

        gristmill dedup curated --out deduped

        gristmill dedup crawl-1 crawl-2 --out deduped minhash.bands=20 minhash.rows=5

        gristmill dedup curated --out deduped minhash.preset=finepdfs minhash.verify=0.8

        gristmill dedup crawl-3 --out deduped-3 --index seen

    With --index, what is like a document that an earlier crawl kept leaves, and the index then remembers this crawl. The same command again
    changes nothing. With minhash.verify, near-copies must truly share that much (Jaccard) of their shingles.
    """
    from pipelines.dedup import dedup as run

    return run(job.inputs, job.recipe, job.out, index=index, **job.means)


@dataset_verb("selected", "pipelines.curate:CurateRecipe")
def select(job: Job):
    """Apply another recipe's thresholds to curated documents, from their signals, without reading a page again.

    Example:

        gristmill select curated --out curated-strict --recipe fineweb
    """
    from pipelines.curate.select import select as run

    return run(job.inputs, job.recipe, job.out, **job.means)


def compare_recipes(
    first: Annotated[str, typer.Argument(help="A recipe's name or YAML file.", metavar="A")],
    second: Annotated[str, typer.Argument(help="Another one.", metavar="B")],
    dataset: Annotated[str, typer.Argument(help="A curated dataset.", metavar="DS")],
    workers: Workers = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Who moves between two recipes on a curated dataset: counts per (reason by A, reason by B), text moved, examples.

    Reads signals only, writes nothing: try thresholds here, then apply them with `gristmill select`.

    Example:

        gristmill compare-recipes fineweb my-fineweb.yaml curated
    """
    from dataclasses import asdict

    from flows.console import out as screen
    from flows.console import progress_on_screen, summary, table_of
    from pipelines.cluster import open_cluster
    from pipelines.curate import CurateRecipe
    from pipelines.curate.compare import compare
    from pipelines.recipe import load_recipe

    recipes = [load_recipe(CurateRecipe, name) for name in (first, second)]
    with progress_on_screen(quiet or json) as progress, open_cluster(workers) as cluster:
        found = compare(*recipes, dataset, cluster=cluster, progress=progress)
    (rows_a, words_a), (rows_b, words_b) = found.kept("before"), found.kept("after")
    facts = {"rows": found.rows, "never measured": found.unmeasured, f"{first} keeps": rows_a, f"{second} keeps": rows_b}
    facts["words kept"] = f"{words_a:,} -> {words_b:,}"
    if json:
        summary("compared", facts, as_json=True, result=asdict(found))
        return
    moved = [move for move in found.moves if move.before != move.after]
    summary("compared", {**facts, "rows that move": sum(move.rows for move in moved)}, quiet=quiet)
    if quiet or not moved:
        return
    cells = [[move.before, move.after, f"{move.rows:,}", f"{move.words:,}", f"{move.characters:,}", _told(move.examples)] for move in moved]
    screen.print(table_of("moves", [first, second, "rows", "words", "characters", "for example"], cells))


def _told(examples: list[dict[str, str]]) -> str:
    return "\n".join(f"{example['url'] or example['id']}: {' -> '.join(filter(None, (example['before'], example['after'])))}" for example in examples[:1])


@dataset_verb("decontaminated", "pipelines.decontaminate:DecontaminateRecipe", named="decontaminate")
def decontaminate(
    job: Job,
    against: Annotated[
        list[str],
        typer.Option("--against", "-a", help="Benchmarks: a file (JSONL, CSV, Parquet, tar), folder, glob or dataset; may be repeated.", metavar="FILE"),
    ],
    show: Annotated[int, typer.Option("--show", min=0, help="Print so many of the documents that left, each with its item and the text that matched.")] = 5,
):
    """Remove documents that contain benchmark items; each names the item and the span that matched.

    Examples:

        gristmill decontaminate deduped --against benchmarks/ --out clean

        gristmill decontaminate deduped --against mmlu.tar --against 'gsm8k/*.jsonl' --out clean --show 20 preset=ngram8

        gristmill decontaminate generated --against heldout/problems --out clean --recipe decontaminate-generated
    """
    from pipelines.decontaminate import decontaminate as run

    dataset = run(job.inputs, against, job.recipe, job.out, **job.means)
    if show and dataset.rejected_rows:
        job.tables.append(leaks_table(dataset, show))
    return dataset


@dataset_verb("bucketed", "pipelines.buckets:BucketRecipe", named="bucket")
def bucket(job: Job):
    """Sort documents into 20 quality buckets by an ensemble of classifiers; none leaves.

    Example:

        gristmill bucket deduped --out bucketed --recipe bucket
    """
    from pipelines.buckets import bucket as run

    return run(job.inputs, job.recipe, job.out, **job.means)


@dataset_verb("classifiers", "pipelines.train_classifier:ClassifierRecipe", of="", parallel=False)
def train_classifier(
    job: Job,
    good: Annotated[list[str], typer.Option("--good", help="A dataset of documents one wants more of; may be repeated.", metavar="DS")],
    other: Annotated[list[str], typer.Option("--other", help="A dataset of ordinary documents; may be repeated.", metavar="DS")],
):
    """Train quality classifiers (fastText on words, a linear one on signals) and report their held-out AUC.

    OUT/calibration.html plots their scores against the share of good documents observed, on documents not trained on.

    Example:

        gristmill train-classifier --good textbooks --other curated --out classifier epochs=10
    """
    from flows.report.quality import calibration_page
    from pipelines.atomic import write_file
    from pipelines.train_classifier import train_classifier as run

    dataset = run(good, other, job.recipe, job.out, job.progress)
    write_file(f"{dataset.uri}/calibration.html", calibration_page(dataset.uri))
    return dataset


def leaks_table(dataset, count: int):
    """The first documents that left a decontamination: what matched, and the benchmark item it was held for."""
    from json import loads

    from flows.console import table_of

    rows = dataset.scan_rejected().head(count).collect().to_dicts()
    told = [(row.get("url") or row.get("id") or "", loads(row["detail"])) for row in rows]
    columns = ["document", "item", "share of it", "text that matched", "item's text"]
    return table_of("leaks", columns, [(name, leak["item"], leak["coverage"], leak["span"], leak["item_text"]) for name, leak in told])


def add_to(app: typer.Typer) -> None:
    for name, verb in {
        "curate": curate,
        "select": select,
        "compare-recipes": compare_recipes,
        "dedup": dedup,
        "decontaminate": decontaminate,
        "bucket": bucket,
        "train-classifier": train_classifier,
    }.items():
        app.command(name, rich_help_panel="Documents")(verb)
