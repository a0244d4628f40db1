"""Where equal keys meet: one bucket of the key space at a time, from all parts and from the index of earlier crawls.

A group of documents with one key becomes a star of edges to its first document, never all pairs: a page that a crawl holds
a hundred thousand times costs a hundred thousand edges. Stars of a bucket are contracted by union-find before they are passed on, so
the same pair found in ten bands is one edge.

With verification a band key makes no edge but candidates: the group's documents against its first few (`heads`), one of each text.
"""

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.dedup.components import contract, send_edges
from pipelines.dedup.exchange import bucket_of, column, documents, files_of, part_of, receive, send
from pipelines.dedup.index import read_index
from pipelines.dedup.rank import best_first
from pipelines.dedup.recipe import DedupRecipe
from pipelines.stage import PartOutput


def choose_captures(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Of each URL's captures keep the best, or the one an earlier crawl kept; send the others, with its id, to their input part."""
    bucket, parts = payload["bucket"], payload["parts"]
    table = receive(files_of(payload["urls"]), bucket)
    earlier = read_index(payload["earlier"].get("urls", []))
    known = np.repeat([True, False], [earlier.num_rows, table.num_rows])
    frame = pl.from_arrow(pa.concat_tables([earlier, table], promote_options="permissive").append_column("known", pa.array(known)))
    if frame.height:
        frame = best_first(frame, ["high", "low"], recipe.url_survivor)
        frame = frame.with_columns(best=pl.col("id").first().over("high", "low"), place=pl.int_range(pl.len()).over("high", "low"))
        frame = frame.filter((pl.col("place") > 0) & ~pl.col("known")).sort("document")
    lost = frame["document"].to_numpy().astype(np.uint64)
    best = frame["best"].to_arrow().cast(pa.string()) if frame.height else pa.array([], pa.string())
    send(output, f"captures-{bucket:05d}.arrow", pa.table({"document": lost, "best": best}), part_of(lost), parts)
    output.count(lost=int(lost.size))


def find_edges(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Edges of the bucket's equal text digests and band keys, contracted."""
    stars = [_stars(_met(payload, kind)) for kind in ("texts", "bands") if payload[kind]]
    _send_new(payload, output, *(np.concatenate(sides) for sides in zip(*stars, strict=True)))


def find_candidates(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Edges of equal texts, which need no verification, and the pairs that the bucket's band keys make candidates.

    Writes `pairs-<bucket>.arrow`: (left, right), left < right, each pair of the bucket once, by the bucket of `left`.
    """
    minhash = recipe.minhash
    stars = [_stars(_met(payload, "texts"))] if payload["texts"] else []
    bands = _met(payload, "bands")
    key, text, document = (column(bands, name) for name in ("key", "text", "document"))
    order = np.lexsort((document, text, key))
    key, text, document = key[order], text[order], document[order]
    first = np.ones(key.size, bool)  # of its key and text
    first[1:] = (key[1:] != key[:-1]) | (text[1:] != text[:-1])
    heads = document[first][np.cumsum(first) - 1]
    stars.append((heads[~first], document[~first]))

    key, document = key[first], document[first]
    order = np.lexsort((document, key))
    key, document = key[order], document[order]
    fresh = np.ones(key.size, bool)
    fresh[1:] = key[1:] != key[:-1]
    starts = np.flatnonzero(fresh)
    start = np.repeat(starts, np.diff(np.append(starts, key.size)))
    place = np.arange(key.size) - start
    left, right = [], []
    for head in range(minhash.heads):
        later = place > head
        left.append(document[start[later] + head])
        right.append(document[later])
    pairs = np.column_stack((np.concatenate(left), np.concatenate(right)))
    pairs = np.unique(pairs[pairs[:, 1] >= _first_new(payload)], axis=0)  # two documents of earlier crawls were compared then
    table = pa.table({"left": np.ascontiguousarray(pairs[:, 0]), "right": np.ascontiguousarray(pairs[:, 1])})
    send(output, f"pairs-{payload['bucket']:05d}.arrow", table, bucket_of(column(table, "left"), payload["buckets"]), payload["buckets"])
    output.count(pairs=len(pairs))
    _send_new(payload, output, *(np.concatenate(sides) for sides in zip(*stars, strict=True)))


def _met(payload: dict, kind: str) -> pa.Table:
    """All rows of the bucket's keys of one kind in document order: earlier crawls' first."""
    return pa.concat_tables([read_index(payload["earlier"].get(kind, [])), receive(files_of(payload[kind]), payload["bucket"])], promote_options="permissive")


def _first_new(payload: dict) -> np.uint64:
    """The smallest document number of this crawl; smaller ones are of earlier crawls."""
    return documents(payload["base"], 1)[0]


def _send_new(payload: dict, output: PartOutput, left: np.ndarray, right: np.ndarray) -> None:
    """Contract the edges and send them. Edges between two documents of earlier crawls say nothing new."""
    new = right >= _first_new(payload)
    nodes, roots = contract(left[new], right[new])
    send_edges(output, f"edges-{payload['bucket']:05d}.arrow", nodes, roots, payload["buckets"])
    output.count(edges=int(nodes.size))


def _stars(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(first, other) documents of each group of equal keys. Rows arrive in document order, and the sort is stable."""
    key, document = column(table, "key"), column(table, "document")
    if "high" in table.column_names:
        high = column(table, "high")
        order = np.lexsort((key, high))
        same = (key[order][1:] == key[order][:-1]) & (high[order][1:] == high[order][:-1])
    else:
        order = np.argsort(key, kind="stable")
        same = key[order][1:] == key[order][:-1]
    document = document[order]
    starts = np.flatnonzero(np.concatenate(([True], ~same))) if document.size else np.empty(0, np.int64)
    first = np.repeat(document[starts], np.diff(np.append(starts, document.size)))
    keep = first != document  # the head itself, and a document that meets itself
    return first[keep], document[keep]
