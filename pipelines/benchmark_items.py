"""Benchmark questions as rows of text, from whatever file they come in.

Decontamination compares documents with these. An item is one text of one row: its id says where it stands
("gsm8k/test#12:question"), so that a flagged document can be judged by a person.
"""

import csv
import fnmatch
import io
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import fsspec

from pipelines.dataset import Dataset, read_batches
from pipelines.errors import UserError
from pipelines.recipe import Recipe

# The first of these that a file's first row has, itself or under `doc` (request files of evaluation harnesses), is its item.
USUAL_FIELDS = ("question", "problem", "prompt", "query", "instruction", "input", "text")


class BenchmarkFormat(Recipe):
    """Which fields of a benchmark file are its items. Fields are dotted; in a CSV file without a header they are numbers from 0."""

    match: str  # glob over the file's whole path
    fields: tuple[str, ...]
    header: bool = True


class Item(NamedTuple):
    id: str
    text: str


def read_items(uri: str, formats: tuple[BenchmarkFormat, ...]) -> Iterator[Item]:
    """Items of one file (JSON Lines, CSV, Parquet; compressed or not) or of one of our datasets, in order.

    Raises:
        UserError: no such file, an unknown format, a row that is no JSON object, or none of the expected fields.
    """
    known = next((entry for entry in formats if fnmatch.fnmatch(uri, entry.match)), None)
    name = _name(uri)
    fields: tuple[str, ...] = known.fields if known else ()
    for number, row in enumerate(_rows(uri, known.header if known else True)):
        if not fields:
            fields = tuple(field for prefix in ("", "doc.") for name in USUAL_FIELDS if _has(row, field := prefix + name))[:1]
            if not fields:
                raise UserError(f"{uri}: none of the fields {', '.join(USUAL_FIELDS)} (it has {', '.join(map(str, row))}); name them in `formats`")
        for field in fields:
            if not _has(row, field):
                raise UserError(f"{uri}: no field {field!r} (the row has {', '.join(map(str, row))})")
            if text := as_text(_get(row, field)):
                yield Item(f"{name}#{number}:{field}", text)


def as_text(value: Any) -> str:
    """A field's text: strings as they are, lists (choices, chat messages) line by line."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return as_text(value["content"]) if "content" in value else as_text(list(value.values()))
    if isinstance(value, list | tuple):
        return "\n".join(as_text(entry) for entry in value)
    return "" if value is None else str(value)


def _rows(uri: str, header: bool) -> Iterator[dict[str, Any]]:
    bare = uri.lower().removesuffix(".gz").removesuffix(".zst").removesuffix(".xz").removesuffix(".bz2")
    if Dataset.exists(uri):
        for batch in Dataset.open(uri).batches():
            yield from batch.to_pylist()
    elif bare.endswith(".parquet"):
        for batch in read_batches(uri):
            yield from batch.to_pylist()
    elif bare.endswith((".jsonl", ".ndjson", ".json")):
        with fsspec.open(uri, "rt", compression="infer", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except json.JSONDecodeError as error:
                        raise UserError(f"{uri}:{number}: not a line of JSON: {error.msg}") from None
                    if not isinstance(row, dict):
                        raise UserError(f"{uri}:{number}: expected an object, found a {type(row).__name__}")
                    yield row
    elif bare.endswith((".csv", ".tsv")):
        with fsspec.open(uri, "rb", compression="infer") as file:
            lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8", newline=""), delimiter="\t" if bare.endswith(".tsv") else ",")
            names = next(lines, []) if header else None
            for values in lines:
                yield dict(zip(names if names is not None else map(str, range(len(values))), values, strict=False))
    else:
        raise UserError(f"{uri}: a benchmark is JSON Lines, CSV, TSV, Parquet or a dataset folder")


def _get(row: Any, field: str) -> Any:
    for step in field.split("."):
        row = row[step]
    return row


def _has(row: Any, field: str) -> bool:
    for step in field.split("."):
        if not isinstance(row, dict) or step not in row:
            return False
        row = row[step]
    return True


def _name(uri: str) -> str:
    """The last two steps of the path without suffixes: enough for a person, and no path of a machine."""
    steps = uri.rstrip("/").split("/")[-2:]
    return "/".join([*steps[:-1], steps[-1].split(".")[0]])
