"""From components to verdicts: who is in a cluster, which of them stays, and what each of the others is to it."""

import fsspec
import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.dedup.exchange import bucket_of, column, part_of, receive, row_of, send
from pipelines.dedup.rank import best_first, read_columns, read_rank
from pipelines.dedup.recipe import DedupRecipe
from pipelines.dedup.signatures import ids_of
from pipelines.stage import PartOutput

VERDICT = pa.schema(
    [
        ("document", pa.uint64()),
        ("best", pa.string()),  # id of the row that stays
        ("stays", pa.bool_()),
        ("cluster_id", pa.string()),  # smallest id of the cluster: the same whichever copy stays
        ("cluster_size", pa.int64()),
        ("same_text", pa.bool_()),  # as the row that stays
    ]
)


def send_members(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Send the part's clustered rows, with what the choice needs to know of them, to their cluster's bucket."""
    index, buckets = payload["index"], payload["buckets"]
    labels = receive(payload["labels"], index)
    document, first = np.unique(column(labels, "document"), return_index=True)  # a centre is named by every bucket that has a leaf of it
    label = column(labels, "label")[first]
    members = {"label": label, "document": document}
    rows = row_of(document)
    with fsspec.open(payload["rows"], "rb") as file:
        known = pa.ipc.open_file(pa.PythonFile(file, mode="r")).read_all()
    if rows.size:
        table = read_columns(payload["part"], ["id"])
        ranks = read_rank(payload["part"], recipe.survivor, known.num_rows, known["text_bytes"].combine_chunks())
        members |= {"id": ids_of(table, index).take(rows), "high": known["high"].take(rows), "low": known["low"].take(rows)}
        members |= {name: values.take(rows) for name, values in ranks.items()}
    send(output, f"members-{index:05d}.arrow", pa.table(members), bucket_of(label, buckets), buckets)


def choose_survivors(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Of each cluster keep the first by the recipe's sort key; send every member its verdict, by input part."""
    frame = pl.from_arrow(receive(payload["files"], payload["bucket"]))
    verdicts = VERDICT.empty_table()
    clusters = 0
    if frame.height:
        frame = best_first(frame, ["label"], recipe.survivor).with_columns(
            best=pl.col("id").first().over("label"),
            stays=pl.int_range(pl.len()).over("label") == 0,
            cluster_id=pl.col("id").min().over("label"),
            cluster_size=pl.len().over("label").cast(pl.Int64),
            same_text=((pl.col("high") == pl.col("high").first()) & (pl.col("low") == pl.col("low").first())).over("label"),
        )
        clusters = frame["label"].n_unique()
        verdicts = frame.sort("document").select(VERDICT.names).to_arrow().cast(VERDICT)
    send(output, f"verdicts-{payload['bucket']:05d}.arrow", verdicts, part_of(column(verdicts, "document").astype(np.uint64)), payload["parts"])
    output.count(clusters=clusters, members=frame.height)
