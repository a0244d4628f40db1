"""Removal of documents that mean the same, as a chain of stages (SemDeDup, Abbas et al. 2023).

    survey        how many documents there are
    embeddings    each part's vectors, a dataset of its own: (id, embedding), and a sample of them
    centroids     k-means on the sample
    vectors       every vector to the cluster it is nearest to
    verdicts      cluster by cluster: which documents stay, and which leave for which of them
    <out>         each input part again: kept, or rejected with `duplicate_of` and the cosine

Every stage is parts with receipts under `<out>/work`; nothing depends on the number of workers: products are computed on one thread
and rounding happens in fixed places. A worker holds a chunk of text, a batch of vectors, or one cluster (2 D bytes a document).
"""

from collections.abc import Callable, Sequence
from typing import Any

from pipelines.cluster import Cluster
from pipelines.dataset import Dataset
from pipelines.dedup.chunks import parts_of, survey
from pipelines.dedup.semantic.apply import apply
from pipelines.dedup.semantic.choose import choose_survivors
from pipelines.dedup.semantic.clustering import SAMPLE, find_centroids, send_to_clusters, write_embeddings
from pipelines.dedup.semantic.embedders import load_embedder
from pipelines.dedup.semantic.recipe import SemanticRecipe
from pipelines.progress import Progress, silent
from pipelines.stage import PartOutput, Stage, run_stage

VERSION = 1
DOCUMENTS_PER_CLUSTER = 1000


def dedup_semantic(
    inputs: Sequence[str | Dataset],
    recipe: SemanticRecipe,
    out: str,
    *,
    cluster: Cluster | None = None,
    progress: Progress = silent,
    name: str | None = None,
) -> Dataset:
    """Of documents whose embeddings are alike keep the best, across datasets (or single Parquet files), into the dataset `out`.

    Kept rows gain `semantic_cluster_id` and `semantic_cluster_size`; the others are rejected with `reason` "semantic.near_duplicate",
    `duplicate_of` (the id of one that stays) and `cosine` (to it, at least 1 - epsilon).

    Raises:
        UserError: an input is no finished dataset, all are empty, a column that the recipe names is missing, the model is not installed, or
            `out` holds another run.
    """
    uris = [entry.uri if isinstance(entry, Dataset) else str(entry) for entry in inputs]
    parts = parts_of(uris)
    if Dataset.exists(out):  # complete, or another run's: the runner says which, and the work folder may be gone
        return run_stage(_stage("dedup-semantic", apply, []), uris, recipe, out, name=name)
    _, dimensions = load_embedder(recipe)  # a missing model is told before any work

    def step(label: str, run: Callable[[dict, Any, PartOutput], None], payloads: list[dict], *more: Dataset) -> Dataset:
        inputs = [*uris, *(dataset.uri for dataset in more)]
        return run_stage(_stage(f"dedup-semantic.{label}", run, payloads), inputs, recipe, f"{out}/work/{label}", cluster=cluster, progress=progress)

    def by_part(**more: Any) -> list[dict]:
        return [{"index": index, "part": part, "dimensions": dimensions, **more} for index, part in enumerate(parts)]

    rows = int(step("survey", survey, by_part()).counters["documents"])
    clusters = recipe.clusters or -(-max(rows, 1) // DOCUMENTS_PER_CLUSTER)
    embeddings = step("embeddings", write_embeddings, by_part(share=SAMPLE * clusters / max(rows, 1)))
    shared = {"clusters": clusters, "dimensions": dimensions, "embeddings": embeddings.uri}
    centroids = step("centroids", find_centroids, [shared], embeddings)
    embedded = {uri.rpartition("part-")[2]: uri for uri in embeddings.parts}  # a part without rows has no file
    payloads = [{**payload, **shared, "centroids": centroids.uri, "embedded": embedded.get(f"{payload['index']:05d}.parquet")} for payload in by_part()]
    vectors = step("vectors", send_to_clusters, payloads, embeddings, centroids)
    payloads = [{"cluster": number, "vectors": vectors.uri, "dimensions": dimensions, "parts": len(parts)} for number in range(clusters)]
    verdicts = step("verdicts", choose_survivors, payloads, vectors)
    payloads = by_part(verdicts=verdicts.uri)
    return run_stage(_stage("dedup-semantic", apply, payloads), uris, recipe, out, cluster=cluster, progress=progress, name=name)


def _stage(name: str, run: Callable[[dict, Any, PartOutput], None], payloads: list[dict]) -> Stage:
    return Stage(name=name, version=VERSION, plan=lambda inputs, config: payloads, run=run)
