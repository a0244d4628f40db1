"""From components to verdicts: who is in a cluster, which of them stays, and what each of the others is to it."""

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.dedup.exchange import bucket_of, column, files_of, part_of, read, receive, row_of, send
from pipelines.dedup.index import read_rows
from pipelines.dedup.rank import best_first, read_columns, read_rank
from pipelines.dedup.recipe import DedupRecipe
from pipelines.dedup.signatures import ids_of
from pipelines.stage import PartOutput

VERDICT = pa.schema(
    [
        ("document", pa.uint64()),
        ("best", pa.string()),  # id of the row that stays
        ("stays", pa.bool_()),
        ("cluster_id", pa.string()),  # smallest id of the cluster, whichever copy stays; that of the earlier crawl if it kept one
        ("cluster_size", pa.int64()),
        ("same_text", pa.bool_()),  # as the row that stays
    ]
)


def send_members(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Send the part's clustered rows, with what the choice needs to know of them, to their cluster's bucket."""
    index, buckets = payload["index"], payload["buckets"]
    labels = receive(files_of(payload["labels"]), index)
    document, first = np.unique(column(labels, "document"), return_index=True)  # a centre is named by every bucket that has a leaf of it
    label = column(labels, "label")[first]
    members = {"label": label, "document": document}
    if document.size:
        members |= _of_earlier_crawl(payload, document) if payload["part"] is None else _of_this_crawl(payload, recipe, row_of(document))
    send(output, f"members-{index:05d}.arrow", pa.table(members), bucket_of(label, buckets), buckets)


def _of_this_crawl(payload: dict, recipe: DedupRecipe, rows: np.ndarray) -> dict[str, pa.Array]:
    known = read(files_of(payload["rows"])[payload["index"] - payload["base"]])
    ids = ids_of(read_columns(payload["part"], ["id"]), payload["index"])
    ranks = read_rank(payload["part"], recipe.survivor, known.num_rows, known["text_bytes"].combine_chunks())
    return {"id": ids.take(rows), "high": known["high"].take(rows), "low": known["low"].take(rows), "known": np.zeros(rows.size, bool)} | {
        name: values.take(rows) for name, values in ranks.items()
    }


def _of_earlier_crawl(payload: dict, document: np.ndarray) -> dict[str, pa.Array]:
    rows = read_rows(payload["rows"], document)
    return {name: rows[name] for name in ("id", "high", "low", "cluster_id")} | {"known": np.ones(document.size, bool)}


def choose_survivors(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Of each cluster keep the first by the recipe's sort key, none if an earlier crawl kept one; send every new member its verdict."""
    frame = pl.from_arrow(receive(files_of(payload["members"]), payload["bucket"]))
    verdicts = VERDICT.empty_table()
    clusters = 0
    if frame.height:
        frame = frame if "cluster_id" in frame.columns else frame.with_columns(cluster_id=pl.lit(None, pl.String))
        frame = best_first(frame, ["label"], recipe.survivor).with_columns(
            best=pl.col("id").first().over("label"),
            stays=pl.int_range(pl.len()).over("label") == 0,
            cluster_id=pl.coalesce(pl.col("cluster_id").first().over("label"), pl.col("id").min().over("label")),
            cluster_size=pl.len().over("label").cast(pl.Int64),
            same_text=((pl.col("high") == pl.col("high").first()) & (pl.col("low") == pl.col("low").first())).over("label"),
        )
        clusters = frame["label"].n_unique()
        verdicts = frame.filter(~pl.col("known")).sort("document").select(VERDICT.names).to_arrow().cast(VERDICT)
    send(output, f"verdicts-{payload['bucket']:05d}.arrow", verdicts, part_of(column(verdicts, "document").astype(np.uint64)), payload["parts"])
    output.count(clusters=clusters, members=frame.height)
