"""Benchmark questions as rows of text, from whatever file they come in.

Decontamination compares documents with these. An item is one text of one row: its id says where it stands
("gsm8k/test#12:question"), so that a flagged document can be judged by a person.

Which fields are items is told by the fields themselves, not by where a file lies: a `BenchmarkFormat` fits a file whose first row has all
its fields, bare or under `doc` (the request files of evaluation harnesses). Only files without a header need their name matched.
"""

import csv
import fnmatch
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import fsspec
import pyarrow.parquet as pq
from pydantic import Field

from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.recipe import Recipe

# The first of these that a file's first row has, itself or under `doc`, is its item when no format fits.
USUAL_FIELDS = ("question", "problem", "prompt", "query", "instruction", "input", "text")
ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bz2"}
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


class BenchmarkFormat(Recipe):
    """Which fields of a benchmark file are its items."""

    fields: tuple[str, ...] = Field(description='dotted fields, each an item; "a+b" joins two in one; numbers from 0 in a CSV file without a header')
    match: str = Field("*", description="glob over the file's whole path; without one the fields alone decide")
    header: bool = Field(True, description="whether the first row of a CSV file names its fields")


class Item(NamedTuple):
    id: str
    text: str


def benchmark_files(uri: str) -> list[str]:
    """A folder or a glob as the benchmark files in it, in order; anything else (a file, an archive, a dataset) as it is.

    Raises:
        UserError: the folder or glob holds none.
    """
    fs, path = fsspec.url_to_fs(uri)
    if Dataset.exists(uri) or not (set(path) & set("*?[") or fs.isdir(path)):
        return [uri]
    listed = fs.find(path) if fs.isdir(path) else fs.glob(path)
    found = sorted(entry for entry in listed if _bare(entry).endswith(ROW_SUFFIXES) or entry.lower().endswith(TAR_SUFFIXES))
    if not found:
        raise UserError(f"{uri}: no benchmark files there ({', '.join(ROW_SUFFIXES)}, compressed or in a tar archive)")
    return [fs.unstrip_protocol(entry) if "://" in uri else entry for entry in found]


def read_items(uri: str, formats: tuple[BenchmarkFormat, ...]) -> Iterator[Item]:
    """Items of one file (JSON Lines, CSV, Parquet; compressed or not; a tar archive of such) or of one of our datasets, in order.

    Raises:
        UserError: no such file, an unknown format, a row that is no JSON object, or none of the expected fields.
    """
    if Dataset.exists(uri):
        yield from _items(uri, (row for batch in Dataset.open(uri).batches() for row in batch.to_pylist()), formats)
    elif uri.lower().endswith(TAR_SUFFIXES):
        with _opened(uri) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                if member.isfile() and _bare(member.name).endswith(ROW_SUFFIXES):
                    with _decompressed(io.BytesIO(archive.extractfile(member).read()), member.name) as stream:
                        yield from _items(member.name, _rows(member.name, stream, formats), formats)
    else:
        with _opened(uri) as file, _decompressed(file, uri) as stream:
            yield from _items(uri, _rows(uri, stream, formats), formats)


def as_text(value: Any) -> str:
    """A field's text: strings as they are, lists (choices, chat messages) line by line."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return as_text(value["content"]) if "content" in value else as_text(list(value.values()))
    if isinstance(value, list | tuple):
        return "\n".join(as_text(entry) for entry in value)
    return "" if value is None else str(value)


# ----------------------------------------------------------------------------------------------------------------- files


@contextmanager
def _opened(uri: str) -> Iterator[BinaryIO]:
    try:
        file = fsspec.open(uri, "rb").open()
    except FileNotFoundError:
        raise UserError(f"{uri}: no such file or dataset") from None
    with file:
        yield file


def _decompressed(file: BinaryIO, name: str) -> BinaryIO:
    kind = next((kind for suffix, kind in COMPRESSIONS.items() if name.lower().endswith(suffix)), None)
    return fsspec.compression.compr[kind](file, mode="rb") if kind else file


def _bare(name: str) -> str:
    """A name without its compression's suffix, lower-case."""
    name = name.lower()
    return next((name.removesuffix(suffix) for suffix in COMPRESSIONS if name.endswith(suffix)), name)


def _rows(name: str, file: BinaryIO, formats: tuple[BenchmarkFormat, ...]) -> Iterator[dict[str, Any]]:
    bare = _bare(name)
    if bare.endswith(".parquet"):
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    elif bare.endswith((".jsonl", ".ndjson", ".json")):
        for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8", errors="replace"), 1):
            if line.strip():
                yield _object(f"{name}:{number}", line)
    elif bare.endswith((".csv", ".tsv")):
        lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline=""), delimiter="\t" if bare.endswith(".tsv") else ",")
        headless = any(not known.header and fnmatch.fnmatch(name, known.match) for known in formats)
        names = None if headless else next(lines, [])
        for values in lines:
            yield dict(zip(map(str, range(len(values))) if names is None else names, values, strict=False))
    else:
        raise UserError(f"{name}: a benchmark is JSON Lines, CSV, TSV, Parquet, a tar archive of such or a dataset folder")


def _object(place: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not a line of JSON: {error.msg}") from None
    if not isinstance(row, dict):
        raise UserError(f"{place}: expected an object, found a {type(row).__name__}")
    return row


# ---------------------------------------------------------------------------------------------------------------- fields


def _items(uri: str, rows: Iterator[dict[str, Any]], formats: tuple[BenchmarkFormat, ...]) -> Iterator[Item]:
    # The last two steps of the path without suffixes: enough for a person, and no path of a machine.
    *folder, leaf = uri.rstrip("/").split("/")[-2:]
    name = "/".join([*folder, leaf.split(".")[0]])
    fields: tuple[str, ...] = ()
    for number, row in enumerate(rows):
        fields = fields or _fields(uri, row, formats)
        for field in fields:
            if text := "\n".join(filter(None, (as_text(_get(uri, row, one)) for one in field.split("+")))):
                yield Item(f"{name}#{number}:{field}", text)


def _fields(uri: str, row: dict[str, Any], formats: tuple[BenchmarkFormat, ...]) -> tuple[str, ...]:
    """The fields of the first format that fits, else the first usual one."""
    for prefix in ("", "doc."):
        for known in formats:
            fields = tuple("+".join(prefix + one for one in field.split("+")) for field in known.fields)
            if fnmatch.fnmatch(uri, known.match) and all(_has(row, one) for field in fields for one in field.split("+")):
                return fields
    named = [known for known in formats if known.match != "*" and fnmatch.fnmatch(uri, known.match)]
    for prefix in ("", "doc."):
        for field in USUAL_FIELDS:
            if not named and _has(row, prefix + field):
                return (prefix + field,)
    wanted = ", ".join(named[0].fields if named else USUAL_FIELDS)
    raise UserError(f"{uri}: none of the fields {wanted} (it has {', '.join(map(str, row))}); name them in `formats`")


def _get(uri: str, row: Any, field: str) -> Any:
    value = row
    for step in field.split("."):
        if not isinstance(value, dict) or step not in value:
            raise UserError(f"{uri}: no field {field!r} (the row has {', '.join(map(str, row))})")
        value = value[step]
    return value


def _has(row: Any, field: str) -> bool:
    for step in field.split("."):
        if not isinstance(row, dict) or step not in row:
            return False
        row = row[step]
    return True
