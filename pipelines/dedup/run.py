"""Deduplication of whole datasets, as a chain of stages.

    url-keys, url-groups       captures of one page meet; all but the best leave            (only if exact.url)
    signatures                 text digests and MinHash band keys of the rest
    edges                      equal keys meet, bucket by bucket
    stars-NN, edges-NN         components, until they are stars (none beyond the first when there is one bucket)
    labels, members, clusters  each cluster meets in one bucket, which chooses the survivor
    <out>                      each input part again: kept with cluster_id and cluster_size, or rejected with its reason

Every stage is parts with receipts under `<out>/work`, so an interrupted run goes on at the step and the bucket where it stood, and
none holds more than one part's or one bucket's keys. Nothing depends on the number of workers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import fsspec
import pyarrow.parquet as pq

from pipelines.cluster import Cluster
from pipelines.dataset import Dataset
from pipelines.dedup.apply import apply
from pipelines.dedup.bands import choose_captures, find_edges
from pipelines.dedup.clusters import choose_survivors, send_members
from pipelines.dedup.components import large_star, send_labels, small_star
from pipelines.dedup.recipe import DedupRecipe
from pipelines.dedup.signatures import write_signatures, write_url_keys
from pipelines.errors import UserError
from pipelines.progress import Progress, silent
from pipelines.stage import PartOutput, Stage, run_stage

VERSION = 1
KEYS_PER_BUCKET = 4_000_000  # 16 bytes each and as much again to sort them: about 200 MB a worker


def dedup(
    inputs: Sequence[str | Dataset],
    recipe: DedupRecipe,
    out: str,
    cluster: Cluster | None = None,
    progress: Progress = silent,
    name: str | None = None,
) -> Dataset:
    """Deduplicate datasets (or single Parquet files) against each other and themselves into the dataset `out`.

    Kept rows keep all their columns and gain `cluster_id` and `cluster_size`; losers are rejected rows with `reason` ("exact.url",
    "exact.text", "minhash.near_duplicate"), `detail` and `duplicate_of`. The order of the inputs matters only for ties.

    Raises:
        UserError: an input is no finished dataset, all inputs are empty, a column that the recipe names is missing, or `out` holds
            another run.
    """
    uris = [entry.uri if isinstance(entry, Dataset) else str(entry) for entry in inputs]
    parts, rows = _parts(uris)
    if not parts:
        raise UserError("dedup: nothing to do, the input is empty")
    keys = rows * (1 + (recipe.minhash.bands if recipe.minhash else 0))
    buckets = recipe.buckets or -(-max(keys, 1) // KEYS_PER_BUCKET)
    if Dataset.exists(out):  # complete, or another run's: the runner says which, and the work folder may be gone
        return run_stage(_stage("dedup", apply, []), uris, recipe, out, name=name)

    def step(label: str, run: Callable[[dict, Any, PartOutput], None], payloads: list[dict], sources: Sequence[str]) -> Dataset:
        return run_stage(_stage(f"dedup.{label}", run, payloads), sources, recipe, f"{out}/work/{label}", cluster=cluster, progress=progress)

    def by_part(**more: Any) -> list[dict]:
        return [{"index": index, "part": part, "buckets": buckets, **more} for index, part in enumerate(parts)]

    def by_bucket(**more: Any) -> list[dict]:
        return [{"bucket": bucket, "buckets": buckets, "parts": len(parts), **more} for bucket in range(buckets)]

    captures: list[str] = []
    sources = uris
    if recipe.exact.url:
        urls = step("url-keys", write_url_keys, by_part(), uris)
        groups = step("url-groups", choose_captures, by_bucket(files=urls.files), [urls.uri])
        captures, sources = groups.files, [*uris, groups.uri]
    signed = step("signatures", write_signatures, by_part(lost=captures), sources)
    texts, bands, rows_of = (_named(signed, kind) for kind in ("texts-", "bands-", "rows-"))
    if not (texts or bands):  # nothing but URLs was asked for
        payloads = by_part(captures=captures, verdicts=[])
        return run_stage(_stage("dedup", apply, payloads), uris, recipe, out, cluster=cluster, progress=progress, name=name)
    stars = _components(step, by_bucket, step("edges", find_edges, by_bucket(texts=texts, bands=bands), [signed.uri]))
    labels = step("labels", send_labels, by_bucket(files=stars.files), [stars.uri])
    payloads = [{**payload, "rows": rows_of[payload["index"]]} for payload in by_part(labels=labels.files)]
    members = step("members", send_members, payloads, [*uris, labels.uri])
    clusters = step("clusters", choose_survivors, by_bucket(files=members.files), [members.uri])
    payloads = by_part(verdicts=clusters.files, captures=captures)
    return run_stage(_stage("dedup", apply, payloads), uris, recipe, out, cluster=cluster, progress=progress, name=name)


def _components(step: Callable, by_bucket: Callable, edges: Dataset) -> Dataset:
    """Alternate large-star and small-star until every component is a star."""
    number = 1
    while True:
        stars = step(f"stars-{number:02d}", large_star, by_bucket(files=edges.files), [edges.uri])
        if not stars.counters["unsettled"]:
            return stars
        edges = step(f"edges-{number:02d}", small_star, by_bucket(files=stars.files), [stars.uri])
        number += 1


def _stage(name: str, run: Callable[[dict, Any, PartOutput], None], payloads: list[dict]) -> Stage:
    return Stage(name=name, version=VERSION, plan=lambda inputs, config: payloads, run=run)


def _named(dataset: Dataset, prefix: str) -> list[str]:
    return [uri for uri in dataset.files if uri.rpartition("/")[2].startswith(prefix)]


def _parts(uris: Sequence[str]) -> tuple[list[str], int]:
    """All Parquet files of the inputs, in order, and their rows."""
    parts: list[str] = []
    rows = 0
    for uri in uris:
        if uri.endswith(".parquet"):
            with fsspec.open(uri, "rb") as file:
                rows += pq.ParquetFile(file).metadata.num_rows
            parts.append(uri)
        else:
            dataset = Dataset.open(uri)
            rows += dataset.rows
            parts += dataset.parts
    return parts, rows
