"""What the index keeps of a crawl: the keys of the documents that stayed, part by part, on their way into `pipelines.dedup.index`."""

import numpy as np
import pyarrow as pa

from pipelines.dedup.exchange import bucket_of, column, documents, files_of, part_of, read, receive, row_of, send
from pipelines.dedup.index import KINDS, number_in_index
from pipelines.dedup.rank import read_columns
from pipelines.dedup.recipe import DedupRecipe
from pipelines.dedup.signatures import ids_of
from pipelines.dedup.verify import sets_of
from pipelines.stage import PartOutput


def send_survivors(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Send the part's surviving keys to their buckets, and its surviving rows (and sets) to their part of the index."""
    index, buckets = payload["index"], payload["buckets"]
    known = read(files_of(payload["rows"])[index - payload["base"]])
    ids = ids_of(read_columns(payload["part"], ["id"]), index)
    cluster_ids = ids.to_numpy(zero_copy_only=False).astype(object)
    alive = np.ones(known.num_rows, bool)
    if payload["captures"]:
        alive[row_of(column(receive(files_of(payload["captures"]), index), "document"))] = False
    if payload["verdicts"]:
        verdicts = receive(files_of(payload["verdicts"]), index)
        rows = row_of(column(verdicts, "document"))
        alive[rows] &= column(verdicts, "stays")
        cluster_ids[rows] = verdicts["cluster_id"].to_pylist()

    for kind, key in KINDS.items():
        if payload[kind]:
            table = read(files_of(payload[kind])[index - payload["base"]])
            table = table.filter(pa.array(alive[row_of(column(table, "document"))])).select(_columns(kind, table))
            document = number_in_index(column(table, "document"), payload["base"], payload["first_rows"])
            table = table.set_column(table.column_names.index("document"), "document", pa.array(document))
            send(output, f"{kind}-{index:05d}.arrow", table, bucket_of(column(table, key), buckets), buckets)

    kept = np.flatnonzero(alive)
    place = number_in_index(documents(index, kept), payload["base"], payload["first_rows"])
    part, row = part_of(place), pa.array(row_of(place))
    rows = {name: known[name].combine_chunks().take(kept) for name in ("high", "low")}
    table = pa.table({"row": row, "id": ids.take(kept), **rows, "cluster_id": pa.array(cluster_ids[kept], pa.string())})
    send(output, f"rows-{index:05d}.arrow", table, part, payload["index_parts"])
    if recipe.minhash is not None and recipe.minhash.verify is not None:
        table = pa.table({"row": row, "shingles": sets_of(payload["part"], recipe.text, kept, recipe.minhash)})
        send(output, f"sets-{index:05d}.arrow", table, part, payload["index_parts"])


def _columns(kind: str, table: pa.Table) -> list[str]:
    """The columns that a later crawl reads: not the sort key of URLs, whose choice is made."""
    return ["high", "low", "document", "id"] if kind == "urls" else table.column_names
