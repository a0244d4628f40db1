"""Removal of repeated text inside documents, as a chain of stages.

    survey                    where the parts' chunks begin, and how much text there is
    seeds, repeated-seeds     which stretches can stand twice at all                 (exact substrings only)
    units                     pieces of text: lines, paragraphs, sentence runs, or windows of bytes or tokens
    repeats                   equal pieces meet, bucket by bucket; the recipe says which of them stay
    <out>                     each input part again: texts without what left, or rejected with a reason

Every stage is parts with receipts under `<out>/work`; nothing depends on the number of workers. A worker holds one chunk of text, one
bucket, or one outbox, however large the parts: 0.5 GB above its imports for 100,000 documents of 10 KB (benchmarks/dedup_spans.py). Files under
`<out>/work` take about five times the text for substrings, less for lines.
"""

from collections.abc import Callable, Sequence
from typing import Any

from kernels.minimizers import seed_length
from pipelines.cluster import Cluster
from pipelines.dataset import Dataset
from pipelines.dedup.chunks import chunk_counts, parts_of, survey
from pipelines.dedup.spans.edit import edit
from pipelines.dedup.spans.recipe import SpanRecipe
from pipelines.dedup.spans.repeats import find_repeats
from pipelines.dedup.spans.seeds import find_repeated_seeds, write_seeds
from pipelines.dedup.spans.units import write_units
from pipelines.progress import Progress, silent
from pipelines.stage import PartOutput, Stage, run_stage
from pipelines.tokenizer import load_tokenizer

VERSION = 1
UNITS_PER_BUCKET = 4_000_000  # 24 bytes each, and as much again twice over while they are sorted


def dedup_spans(
    inputs: Sequence[str | Dataset],
    recipe: SpanRecipe,
    out: str,
    *,
    tokenizer: str | None = None,
    cluster: Cluster | None = None,
    progress: Progress = silent,
    name: str | None = None,
) -> Dataset:
    """Cut text that stands more than once out of datasets (or single Parquet files) and write what is left to the dataset `out`.

    Rows keep their columns; those edited gain `removed_spans` and `original_text_digest` (see `pipelines.dedup.spans.edit`). Rows left
    with too little are rejected, as they entered, with `reason` ("repeated_lines.too_short", "repeated_substrings.mostly_repeated", ...).

    Args:
        tokenizer: a tokenizer.json, or a folder with one, for `unit: token`.

    Raises:
        UserError: an input is no finished dataset, all are empty, a column that the recipe names is missing, a tokenizer is missing, or
            `out` holds another run.
    """
    recipe.check_tokenizer(tokenizer)
    if tokenizer is not None:
        load_tokenizer(tokenizer)
        tokenizer = tokenizer if tokenizer.endswith(".json") else f"{tokenizer.rstrip('/')}/tokenizer.json"
    uris = [entry.uri if isinstance(entry, Dataset) else str(entry) for entry in inputs]
    sources = [*uris, tokenizer] if tokenizer else uris
    parts = parts_of(uris)
    if Dataset.exists(out):  # complete, or another run's: the runner says which, and the work folder may be gone
        return run_stage(_stage("dedup-spans", edit, []), sources, recipe, out, name=name)

    def step(label: str, run: Callable[[dict, Any, PartOutput], None], payloads: list[dict], *more: Dataset) -> Dataset:
        inputs = [*sources, *(dataset.uri for dataset in more)]
        return run_stage(_stage(f"dedup-spans.{label}", run, payloads), inputs, recipe, f"{out}/work/{label}", cluster=cluster, progress=progress)

    surveyed = step("survey", survey, [{"index": index, "part": part} for index, part in enumerate(parts)])
    size = int(surveyed.counters["bytes"])
    counts = chunk_counts(surveyed.uri)

    def by_part(**more: Any) -> list[dict]:
        return [{"index": index, "part": part, "first_chunk": sum(counts[:index]), "tokenizer": tokenizer, **more} for index, part in enumerate(parts)]

    def by_bucket(buckets: int, **more: Any) -> list[dict]:
        return [{"bucket": bucket, "chunks": sum(counts), "survey": surveyed.uri, **more} for bucket in range(buckets)]

    if recipe.exact:
        density = 2 / (recipe.width - seed_length(recipe.width) + 2)
        buckets = _buckets(size * density)
        seeds = step("seeds", write_seeds, by_part(buckets=buckets), surveyed)
        repeated = step("repeated-seeds", find_repeated_seeds, by_bucket(buckets, seeds=seeds.uri), seeds)
        buckets = _buckets(repeated.counters["windows"])
        units = step("units", write_units, by_part(buckets=buckets, repeated=repeated.uri), repeated)
    else:
        smallest = 2 * (recipe.min_words if recipe.width == 1 else 1)  # bytes: a word is one, and one parts it from the next
        buckets = _buckets(size / smallest)
        units = step("units", write_units, by_part(buckets=buckets), surveyed)
    repeats = step("repeats", find_repeats, by_bucket(buckets, units=units.uri), surveyed, units)
    payloads = by_part(repeats=repeats.uri)
    return run_stage(_stage("dedup-spans", edit, payloads), sources, recipe, out, cluster=cluster, progress=progress, name=name)


def _buckets(units: float) -> int:
    return max(1, -(-int(units) // UNITS_PER_BUCKET))


def _stage(name: str, run: Callable[[dict, Any, PartOutput], None], payloads: list[dict]) -> Stage:
    return Stage(name=name, version=VERSION, plan=lambda inputs, config: payloads, run=run)
