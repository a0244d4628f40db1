"""Which copy stays: the recipe's sort key, evaluated on rows that may come from datasets with different columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset import open_part
from pipelines.errors import UserError

PREFIX = "rank."  # of the sort key's columns while they travel


@dataclass(frozen=True)
class Key:
    """One column of a sort key, as written in a recipe: "-captured_at?"."""

    column: str
    descending: bool
    optional: bool

    @classmethod
    def parse(cls, text: str) -> "Key":
        return cls(text.removeprefix("-").removesuffix("?"), text.startswith("-"), text.endswith("?"))


def read_columns(part: str, columns: Sequence[str]) -> pa.Table:
    """Top-level or dotted columns of a Parquet file, each under its dotted name; missing ones are left out."""
    with open_part(part) as parquet:
        present = [name for name in columns if _find(parquet.schema_arrow, name)]
        table = parquet.read(columns=present)
        rows = parquet.metadata.num_rows
    if not present:
        return pa.table({"": pa.nulls(rows)}).select([])
    arrays = []
    for name in present:
        top, *path = name.split(".")
        values = table[top].combine_chunks()
        arrays.append(pc.struct_field(values, path) if path else values)
    return pa.table(arrays, names=present)


def read_rank(part: str, keys: Sequence[str], rows: int, text_bytes: pa.Array) -> dict[str, pa.Array]:
    """The sort key's columns of a part: `rank.0`, `rank.1`, ...: float64 or string, null where a column is absent.

    Raises:
        UserError: the part lacks a column that the recipe does not mark as optional.
    """
    parsed = [Key.parse(key) for key in keys]
    table = read_columns(part, [key.column for key in parsed if key.column != "text_bytes"])
    ranks = {}
    for index, key in enumerate(parsed):
        if key.column == "text_bytes":
            values = text_bytes
        elif key.column in table.column_names:
            values = table[key.column].combine_chunks()
        elif key.optional:
            values = pa.nulls(rows)
        else:
            raise UserError(f"survivor: the input has no column {key.column!r}; write {key.column + '?'!r} if it may be absent")
        numeric = pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)
        ranks[f"{PREFIX}{index}"] = values if pa.types.is_null(values.type) else values.cast(pa.float64() if numeric else pa.string())
    return ranks


def best_first(frame: pl.DataFrame, group: Sequence[str], keys: Sequence[str]) -> pl.DataFrame:
    """Sort so that the first row of each group is the one that stays: one that an earlier crawl kept (`known`), else by the sort key.

    Absent values lose, ties go to the smaller id, then row.
    """
    parsed = [Key.parse(key) for key in keys]
    by = [*group, "known", *(f"{PREFIX}{index}" for index in range(len(parsed))), "id", "document"]
    descending = [*(False for _ in group), True, *(key.descending for key in parsed), False, False]
    return frame.sort(by, descending=descending, nulls_last=True, maintain_order=True)


def _find(schema: pa.Schema, name: str) -> bool:
    top, *path = name.split(".")
    if top not in schema.names:
        return False
    kind = schema.field(top).type
    for step in path:
        if not pa.types.is_struct(kind) or kind.get_field_index(step) < 0:
            return False
        kind = kind.field(step).type
    return True
