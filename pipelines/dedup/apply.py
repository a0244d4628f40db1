"""The last step: each input part again, row by row kept with its cluster's size or rejected with what it duplicates."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset import open_part
from pipelines.dedup.clusters import VERDICT
from pipelines.dedup.exchange import column, files_of, receive, row_of
from pipelines.dedup.recipe import DedupRecipe
from pipelines.dedup.signatures import ids_of
from pipelines.stage import PartOutput

BATCH_ROWS = 4096
NO_CAPTURES = pa.schema([("document", pa.uint64()), ("best", pa.string())]).empty_table()


def apply(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Split the part into survivors and losers.

    Adds `cluster_id` (smallest id of the cluster) and `cluster_size` (documents in it; exact URL duplicates are not counted: they
    are the same page captured again). Rejected rows get `reason`, `detail` and `duplicate_of`: the id of the row that stayed in the
    comparison it lost (which may itself have lost a later one: a URL duplicate of a near duplicate).
    """
    verdicts = receive(files_of(payload["verdicts"]), payload["index"]) if payload["verdicts"] else VERDICT.empty_table()
    captures = receive(files_of(payload["captures"]), payload["index"]) if payload["captures"] else NO_CAPTURES
    with open_part(payload["part"]) as parquet:
        rows = parquet.metadata.num_rows
        verdict_of, capture_of = _positions(verdicts, rows), _positions(captures, rows)
        begin = 0
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
            here = slice(begin, begin + batch.num_rows)
            table = pa.Table.from_batches([batch])
            ids = ids_of(table, payload["index"], begin)
            verdict, capture = _at(verdicts, verdict_of[here]), _at(captures, capture_of[here])
            output.write(*_split(table, ids, verdict, capture, exact_text=recipe.exact.text))
            begin += batch.num_rows
    output.read(rows)


def _positions(verdicts: pa.Table, rows: int) -> np.ndarray:
    """For each row of the part the position of its verdict, or -1."""
    positions = np.full(rows, -1)
    positions[row_of(column(verdicts, "document"))] = np.arange(verdicts.num_rows)
    return positions


def _at(verdicts: pa.Table, positions: np.ndarray) -> pa.Table:
    """The verdicts at `positions`, null rows where there is none."""
    return verdicts.take(pa.array(positions, mask=positions < 0))


def _split(table: pa.Table, ids: pa.Array, verdict: pa.Table, capture: pa.Table, exact_text: bool) -> tuple[pa.Table, pa.Table]:
    """(kept, rejected) of a batch; verdict and capture are row by row beside it, null where there is none."""
    size = pc.fill_null(verdict["cluster_size"], 1)
    table = _with(table, cluster_id=pc.coalesce(verdict["cluster_id"], ids), cluster_size=size)
    captured = pc.is_valid(capture["document"])
    beaten = pc.fill_null(pc.invert(verdict["stays"]), False)
    same = pc.and_(pc.fill_null(verdict["same_text"], False), exact_text)
    alike = pc.binary_join_element_wise("one of ", size.cast(pa.string()), " alike", "")
    lost = pc.or_(captured, beaten)
    rejected = _with(
        table,
        reason=pc.if_else(captured, "exact.url", pc.if_else(same, "exact.text", "minhash.near_duplicate")),
        detail=pc.if_else(captured, "another capture of the same URL stays", alike),
        duplicate_of=pc.if_else(captured, capture["best"], verdict["best"]),
    )
    return table.filter(pc.invert(lost)), rejected.filter(lost)


def _with(table: pa.Table, **columns: pa.ChunkedArray) -> pa.Table:
    """The table with the columns added, or put in the place of older ones of their names (an input deduplicated before)."""
    table = table.drop_columns([name for name in columns if name in table.column_names])
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table
