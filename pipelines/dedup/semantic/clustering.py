"""Embeddings to clusters: the vectors of every part, k-means on a sample of them, and each vector to the cluster it is nearest to."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from kernels.minimizers import number_symbols
from pipelines.arrow_files import read_arrow, write_arrow
from pipelines.dataset import Dataset, read_batches
from pipelines.dedup.chunks import Outbox, chunks
from pipelines.dedup.exchange import documents
from pipelines.dedup.rank import Key, read_columns, read_rank
from pipelines.dedup.semantic.embedders import load_embedder, one_thread, unit_rows
from pipelines.dedup.semantic.recipe import SemanticRecipe
from pipelines.dedup.signatures import ids_of
from pipelines.stage import PartOutput

SAMPLE = 256  # documents a cluster that k-means sees: faiss's own bound
BATCH_ROWS = 4096


def write_embeddings(payload: dict, recipe: SemanticRecipe, output: PartOutput) -> None:
    """The part's rows as (id, embedding float16 [D], text_bytes); also `sample-<part>.arrow`, its share of what k-means sees."""
    embed, dimensions = load_embedder(recipe)
    begin, samples = 0, [np.empty((0, dimensions), np.float16)]
    for rows in chunks(payload["part"], recipe.text):
        texts = [text or "" for text in rows[recipe.text].to_pylist()]
        vectors = embed(texts).astype(np.float16)
        drawn = number_symbols(documents(payload["index"], begin + np.arange(len(texts))) ^ number_symbols(np.array([recipe.seed])))
        samples.append(vectors[(drawn >> np.uint64(11)) * 2.0**-53 < payload["share"]])
        size = pc.fill_null(pc.binary_length(rows[recipe.text]), 0).cast(pa.int64())
        output.read(rows.num_rows)
        output.write(pa.table({"id": ids_of(rows, payload["index"], begin), "embedding": vector_column(vectors), "text_bytes": size}))
        begin += rows.num_rows
    write_arrow(output, f"sample-{payload['index']:05d}.arrow", {"embedding": vector_column(np.concatenate(samples))})
    output.count(dimensions=dimensions if payload["index"] == 0 else 0)


def find_centroids(payload: dict, recipe: SemanticRecipe, output: PartOutput) -> None:
    """Spherical k-means (Lloyd's iterations, float32) on the sample; writes `centroids.arrow`."""
    samples = pa.concat_tables(map(read_arrow, Dataset.open(payload["embeddings"]).files))
    sample = vectors_of(samples["embedding"], payload["dimensions"])
    centroids = spherical_kmeans(sample[np.any(sample != 0, axis=1)], payload["clusters"], recipe.iterations, recipe.seed)
    column = pa.FixedSizeListArray.from_arrays(pa.array(centroids.ravel(), pa.float32()), payload["dimensions"])
    write_arrow(output, "centroids.arrow", {"centroid": column})


def spherical_kmeans(sample: np.ndarray, clusters: int, iterations: int, seed: int) -> np.ndarray:
    """Centroids float32 [K, D] of length one of unit rows float32 [N, D]; K is at most the number of different rows, but at least 1."""
    different = np.unique(sample, axis=0)
    if not different.size:
        return np.zeros((1, sample.shape[1]), np.float32)
    first = np.random.default_rng(seed).permutation(different.shape[0])[:clusters]
    centroids = different[first]
    for _ in range(iterations):
        cluster = nearest(sample, centroids)
        order = np.argsort(cluster, kind="stable")
        filled, starts = np.unique(cluster[order], return_index=True)
        moved = centroids.copy()  # an empty cluster stays where it is
        moved[filled] = unit_rows(np.add.reduceat(sample[order].astype(np.float64), starts, axis=0)).astype(np.float32)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The centroid int64 of largest cosine for each vector; the first of equals."""
    with one_thread():
        turned = torch.from_numpy(np.ascontiguousarray(centroids.T))
        blocks = [
            (torch.from_numpy(vectors[at : at + BATCH_ROWS]) @ turned).argmax(1).numpy() for at in range(0, vectors.shape[0], BATCH_ROWS)
        ]
    return np.concatenate([np.empty(0, np.int64), *blocks])


def send_to_clusters(payload: dict, recipe: SemanticRecipe, output: PartOutput) -> None:
    """Send (document, id, embedding, sort key) to the nearest cluster; texts without a word go nowhere."""
    (uri,) = Dataset.open(payload["centroids"]).files
    centroids = _floats(read_arrow(uri)["centroid"], payload["dimensions"]).copy()
    outbox = Outbox(output, "vectors", payload["index"], payload["clusters"])
    ranks = _ranks(payload, recipe)
    begin = 0
    for batch in _batches(payload):
        vectors = vectors_of(batch["embedding"], payload["dimensions"])
        rows = np.flatnonzero(np.any(vectors != 0, axis=1))
        table = pa.table({"document": documents(payload["index"], begin + rows)})
        for name in ("id", "embedding"):
            table = table.append_column(name, batch[name].combine_chunks().take(pa.array(rows)))
        for name, values in ranks.items():
            table = table.append_column(name, values.take(pa.array(begin + rows)))
        outbox.add(table, nearest(vectors[rows], centroids))
        begin += batch.num_rows
    outbox.close()


def _batches(payload: dict) -> Iterator[pa.Table]:
    """The part's embeddings, at least one batch, be it empty."""
    schema = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float16(), payload["dimensions"])), ("text_bytes", pa.int64())])
    yield schema.empty_table()
    if payload["embedded"] is not None:
        for batch in read_batches(payload["embedded"], batch_size=BATCH_ROWS):
            yield pa.Table.from_batches([batch])


def _ranks(payload: dict, recipe: SemanticRecipe) -> dict[str, pa.Array]:
    if payload["embedded"] is None:
        return {}
    sizes = read_columns(payload["embedded"], ["text_bytes"])["text_bytes"].combine_chunks()
    return read_rank(payload["part"], [key for key in recipe.survivor if Key.parse(key).column], len(sizes), sizes)


def vector_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """float16 [N, D] as an Arrow column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float16()), vectors.shape[1])


def vectors_of(column: pa.ChunkedArray, dimensions: int) -> np.ndarray:
    """A column of `vector_column` as float32 [N, D], rows of length one again (rounding to float16 took them off it)."""
    return unit_rows(_floats(column, dimensions).astype(np.float32))


def _floats(column: pa.ChunkedArray, dimensions: int) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions)
