"""The last step: each input part again, row by row kept or rejected with what it is too near to."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset import open_part
from pipelines.dedup.chunks import messages
from pipelines.dedup.exchange import column, row_of
from pipelines.dedup.semantic.recipe import SemanticRecipe
from pipelines.dedup.signatures import ids_of
from pipelines.stage import PartOutput

BATCH_ROWS = 4096


def apply(payload: dict, recipe: SemanticRecipe, output: PartOutput) -> None:
    """Split the part into those that stay and those that leave.

    Adds `semantic_cluster_id` (smallest id of those alike) and `semantic_cluster_size`; `cluster_id` and `cluster_size` of an earlier
    MinHash dedup, which rehydration reads, stay as they are. Rejected rows get `reason`, `detail`, `duplicate_of` and `cosine`.
    """
    verdicts = messages(payload["verdicts"], payload["index"])
    rows = row_of(column(verdicts, "document"))
    begin = 0
    with open_part(payload["part"]) as parquet:
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
            here = np.flatnonzero((rows >= begin) & (rows < begin + batch.num_rows))
            place = np.full(batch.num_rows, -1)
            place[rows[here] - begin] = here
            table = pa.Table.from_batches([batch])
            output.read(table.num_rows)
            output.write(*_split(table, ids_of(table, payload["index"], begin), verdicts.take(pa.array(place, mask=place < 0))))
            begin += table.num_rows


def _split(table: pa.Table, ids: pa.Array, verdict: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(kept, rejected) of a batch; `verdict` is row by row beside it, null where there is none."""
    size = pc.fill_null(verdict["size"], 1)
    table = _with(table, semantic_cluster_id=pc.coalesce(verdict["group"], ids), semantic_cluster_size=size)
    leaves = pc.fill_null(pc.invert(verdict["stays"]), False)
    details = [f"cosine {cosine or 0:.4f}, one of {count} alike" for cosine, count in zip(verdict["cosine"].to_pylist(), size.to_pylist())]
    rejected = _with(
        table,
        reason=pa.array(["semantic.near_duplicate"] * table.num_rows, pa.string()),
        detail=pa.array(details, pa.string()),
        duplicate_of=verdict["best_id"],
        cosine=verdict["cosine"],
    )
    return table.filter(pc.invert(leaves)), rejected.filter(leaves)


def _with(table: pa.Table, **columns: pa.ChunkedArray | pa.Array) -> pa.Table:
    """The table with the columns added, or put in the place of older ones of their names."""
    table = table.drop_columns([name for name in columns if name in table.column_names])
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table
