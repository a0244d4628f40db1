"""Which rows of its dataset a source takes, as one condition over columns."""

from typing import Any

import polars as pl

from filters.licence import licence_class

COLUMNS = {"language": "language", "quality": "quality_bucket", "licence": "license"}  # a source's key -> the column it looks at


def condition(source: Any) -> pl.Expr | None:
    """`where`, `language`, `quality` and `licence` of a source together; None if it takes every row.

    Args:
        source: a `Source`, or anything with its keys.

    Raises:
        polars.exceptions.PolarsError: `where` is no SQL expression.
    """
    parts = []
    if source.where:
        parts.append(pl.sql_expr(source.where))
    if source.language:
        parts.append(pl.col("language").is_in(list(source.language)))
    if source.quality:
        parts.append(pl.col("quality_bucket").is_between(*source.quality))
    if source.licence:
        classes = pl.col("license").cast(pl.String).fill_null("").map_batches(_classes, return_dtype=pl.String, is_elementwise=True)
        parts.append(classes.is_in(list(source.licence)))
    return pl.all_horizontal(parts) if len(parts) > 1 else parts[0] if parts else None


def described(source: Any) -> str:
    """The condition in words, for the rows that it leaves out."""
    chosen = [f"{key} {_shown(getattr(source, key))}" for key in COLUMNS if getattr(source, key)]
    return "; ".join([*([source.where] if source.where else []), *chosen])


def _shown(values: tuple) -> str:
    return f"{values[0]} to {values[1]}" if isinstance(values[0], int) else " or ".join(values)


def _classes(identifiers: pl.Series) -> pl.Series:
    return identifiers.replace_strict({name: licence_class(name) for name in identifiers.unique().to_list()}, return_dtype=pl.String)
