"""Where equal pieces meet: one bucket of hashes at a time, from the whole corpus. Here it is decided which of them leave."""

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.dedup.chunks import chunk_firsts, chunk_of, messages
from pipelines.dedup.exchange import column, send
from pipelines.dedup.rank import PREFIX
from pipelines.dedup.spans.recipe import SpanRecipe
from pipelines.stage import PartOutput


def find_repeats(payload: dict, recipe: SpanRecipe, output: PartOutput) -> None:
    """Tell each chunk of its repeated pieces: (document, start, end, copies, stays).

    `copies` is the count that the recipe asks for. A piece that stays is told only where pieces overlap, to protect its text.
    """
    table = _in_order(messages(payload["units"], payload["bucket"]), recipe)
    key, document = column(table, "key"), column(table, "document")
    fresh = np.ones(key.size, bool)  # first of its key
    fresh[1:] = key[1:] != key[:-1]
    group = np.cumsum(fresh) - 1
    times = np.bincount(group)
    if recipe.count == "documents":
        first_in_document = fresh.copy()
        first_in_document[1:] |= document[1:] != document[:-1]
        copies = np.bincount(group[first_in_document])
    elif recipe.count == "hosts":
        pairs = np.unique(np.column_stack((group.astype(np.uint64), column(table, "host"))), axis=0)
        copies = np.bincount(pairs[:, 0].astype(np.int64))
    else:
        copies = times
    repeated = copies[group] >= recipe.min_count
    stays = fresh & (recipe.keep == "first")
    overlap = recipe.width > 1
    told = repeated if overlap else repeated & ~stays
    message = pa.table(
        {
            "document": document[told],
            "start": column(table, "start")[told],
            "end": column(table, "end")[told],
            "copies": copies[group][told].astype(np.uint32),
            "stays": stays[told],
        }
    )
    chunk = chunk_of(document[told], chunk_firsts(payload["survey"]))
    send(output, f"repeats-{payload['bucket']:05d}.arrow", message, chunk, payload["chunks"])
    output.count(distinct=int(times.size), repeated=int((copies >= recipe.min_count).sum()), leaving=int((repeated & ~stays).sum()))


def _in_order(table: pa.Table, recipe: SpanRecipe) -> pa.Table:
    """Sorted by key; equal keys by the recipe's sort key, then as in the input."""
    if not recipe.survivor:
        return table.take(np.argsort(column(table, "key"), kind="stable"))  # rows arrive in the input's order
    by = ["key", *(f"{PREFIX}{index}" for index in range(len(recipe.keys))), "document", "start"]
    descending = [False, *(key.descending for key in recipe.keys), False, False]
    return pl.from_arrow(table).sort(by, descending=descending, nulls_last=True, maintain_order=True).to_arrow()
