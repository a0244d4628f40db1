"""Where equal keys meet: one bucket of the key space at a time, from all parts.

A group of documents with one key becomes a star of edges to its first document, never all pairs: a page that a crawl holds
a hundred thousand times costs a hundred thousand edges. Stars of a bucket are contracted by union-find before they are passed on, so
the same pair found in ten bands is one edge.
"""

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.dedup.components import contract, send_edges
from pipelines.dedup.exchange import column, part_of, receive, send
from pipelines.dedup.rank import best_first
from pipelines.dedup.recipe import DedupRecipe
from pipelines.stage import PartOutput


def choose_captures(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Of each URL's captures keep the best; send the others, with the id of the best, to their input part."""
    table = receive(payload["files"], payload["bucket"])
    parts = payload["parts"]
    frame = pl.from_arrow(table)
    if frame.height:
        frame = best_first(frame, ["high", "low"], recipe.url_survivor)
        frame = frame.with_columns(best=pl.col("id").first().over("high", "low"), place=pl.int_range(pl.len()).over("high", "low"))
        frame = frame.filter(pl.col("place") > 0).sort("document")
    lost = frame["document"].to_numpy()
    best = frame["best"].to_arrow().cast(pa.string()) if frame.height else pa.array([], pa.string())
    send(output, f"captures-{payload['bucket']:05d}.arrow", pa.table({"document": lost, "best": best}), part_of(lost), parts)
    output.count(lost=int(lost.size))


def find_edges(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Edges of the bucket's equal text digests and band keys, contracted."""
    left, right = [], []
    for files in (payload["texts"], payload["bands"]):
        if files:
            heads, others = _stars(receive(files, payload["bucket"]))
            left.append(heads)
            right.append(others)
    nodes, roots = contract(np.concatenate(left), np.concatenate(right))
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
