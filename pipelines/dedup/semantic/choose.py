"""Within a cluster: which documents stay, which leave, and for which of those that stay.

Documents are taken best first; one stays unless its cosine to one that stays is at least 1 - epsilon. So whatever leaves is that
near to its `duplicate_of`, and no chain of small steps takes it further. Equal vectors are compared once; the rest costs a matrix product of the
cluster with what stays of it.
"""

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from pipelines.dedup.chunks import messages
from pipelines.dedup.exchange import column, part_of, send
from pipelines.dedup.rank import PREFIX, Key
from pipelines.dedup.semantic.clustering import vectors_of
from pipelines.dedup.semantic.embedders import one_thread
from pipelines.dedup.semantic.recipe import SemanticRecipe
from pipelines.stage import PartOutput

BLOCK = 1024


def choose_survivors(payload: dict, recipe: SemanticRecipe, output: PartOutput) -> None:
    """Send (document, best, cosine, group, size) of every document that is alike another to its part."""
    table = _best_first(messages(payload["vectors"], payload["cluster"]), recipe)
    vectors = vectors_of(table["embedding"], payload["dimensions"])
    different, first, inverse = np.unique(vectors, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # distinct vectors, each at the place of its best document
    place = np.empty_like(order)
    place[order] = np.arange(order.size)
    chosen, cosine = stay_or_leave(different[order], 1 - recipe.epsilon)
    vector = place[inverse.ravel()]
    best = first[order][chosen[vector]]  # rows of the table from here on
    frame = pl.DataFrame({"row": np.arange(vector.size), "best": best, "cosine": cosine[vector]})
    frame = frame.with_columns(id=pl.from_arrow(table["id"].combine_chunks()), document=pl.from_arrow(table["document"].combine_chunks()))
    frame = frame.with_columns(size=pl.len().over("best").cast(pl.Int64), group=pl.col("id").min().over("best"), best_id=pl.col("id").first().over("best"))
    frame = frame.filter(pl.col("size") > 1).sort("document").with_columns(stays=pl.col("row") == pl.col("best"))
    verdicts = frame.select("document", pl.col("best_id").cast(pl.String), pl.col("cosine").cast(pl.Float32), "stays", "group", "size").to_arrow()
    send(output, f"verdicts-{payload['cluster']:05d}.arrow", verdicts, part_of(column(verdicts, "document").astype(np.uint64)), payload["parts"])
    output.count(compared=int(vector.size), largest_squared=int(vector.size) ** 2)


def stay_or_leave(vectors: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Of unit rows float32 [N, D], best first: for each the row it yields to (itself if it stays) int64 [N], and their cosine float32 [N]."""
    count = vectors.shape[0]
    chosen, cosine = np.arange(count), np.ones(count, np.float32)
    staying = np.empty(0, np.int64)
    with one_thread():
        for begin in range(0, count, BLOCK):
            rows = np.arange(begin, min(begin + BLOCK, count))
            block = torch.from_numpy(vectors[rows])
            if staying.size:
                value, at = (block @ torch.from_numpy(vectors[staying]).T).max(1)
                leaves = value.numpy() >= least
                chosen[rows[leaves]], cosine[rows[leaves]] = staying[at.numpy()[leaves]], value.numpy()[leaves]
                rows, block = rows[~leaves], block[torch.from_numpy(~leaves)]
            near = (block @ block.T).numpy()
            stays = np.ones(rows.size, bool)
            for i in np.flatnonzero((np.tril(near, -1) >= least).any(1)):
                before = np.where(stays[:i], near[i, :i], -2)
                j = int(before.argmax())
                if before[j] >= least:
                    stays[i] = False
                    chosen[rows[i]], cosine[rows[i]] = rows[j], before[j]
            staying = np.concatenate((staying, rows[stays]))
    return chosen, cosine


def _best_first(table: pa.Table, recipe: SemanticRecipe) -> pa.Table:
    keys = [Key.parse(key) for key in recipe.survivor]
    names = [f"{PREFIX}{index}" for index in range(len(keys)) if f"{PREFIX}{index}" in table.column_names]
    frame = pl.from_arrow(table.select([*names, "id", "document"])).with_row_index("row")
    descending = [keys[int(name.removeprefix(PREFIX))].descending for name in names]
    return table.take(frame.sort([*names, "id", "document"], descending=[*descending, False, False], nulls_last=True)["row"].to_arrow())
