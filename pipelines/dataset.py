"""A dataset is a folder of Parquet parts, complete exactly when `dataset.json` exists.

    <dataset>/
      parts/part-00000.parquet      rows kept
      rejected/part-00000.parquet   rows that left, with `reason` and `detail`
      receipts/part-00000.json      the part is done: counts, bytes, SHA-256 (the unit of resume)
      files/                        what a stage writes beside tables (shards, tokenizers)
      dataset.json                  name, stage, configuration, inputs' digests, counts per reason; written last, by rename

Paths are fsspec URIs, so a dataset may lie on a disk, in s3://, gs:// or memory://. This room reads closed datasets;
`pipelines.stage` writes them.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from pipelines.errors import UserError
from pipelines.storage import file_system, open_input, told

if TYPE_CHECKING:
    import polars as pl

DOCUMENT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # hex xxh3-128 of the WARC record id, else of source and offset: stable across runs
        ("text", pa.string()),
        ("url", pa.string()),
        ("host", pa.string()),
        ("title", pa.string()),
        ("captured_at", pa.string()),  # ISO 8601, UTC
        ("language", pa.string()),
        ("language_score", pa.float32()),
        ("license", pa.string()),
        ("source", pa.string()),  # the file the record lies in, by name
        ("offset", pa.int64()),  # the record's first byte in the source
        ("length", pa.int64()),  # bytes of the record in the source
        ("digest", pa.string()),  # of the payload as captured
    ]
)


class Dataset:
    """A closed dataset; open it with `Dataset.open(uri)`."""

    def __init__(self, uri: str, meta: dict[str, Any]):
        self.uri = uri.rstrip("/")
        self.meta = meta

    @staticmethod
    def exists(uri: str) -> bool:
        """Whether a closed dataset lies at the URI."""
        fs, root = file_system(str(uri))
        with told(uri), suppress(PermissionError):  # what S3 says of files that are not there to those who may not list
            return fs.exists(f"{root.rstrip('/')}/dataset.json")
        return False

    @classmethod
    def open(cls, uri: str) -> "Dataset":
        """Open a closed dataset.

        Raises:
            UserError: there is none at the URI, or it is not finished.
        """
        uri = str(uri).rstrip("/")
        if not cls.exists(uri):
            fs, root = file_system(uri)
            started = fs.exists(f"{root}/plan.json")
            raise UserError(f"{uri}: " + ("the dataset is not finished; run its command again" if started else "no dataset here (no dataset.json)"))
        try:
            with open_input(f"{uri}/dataset.json") as file:
                meta = json.load(file)
        except json.JSONDecodeError:
            raise UserError(f"{uri}/dataset.json is not valid JSON") from None
        return cls(uri, meta)

    @property
    def name(self) -> str:
        return self.meta["name"]

    @property
    def rows(self) -> int:
        """Rows kept."""
        return self.meta["rows"]

    @property
    def rows_in(self) -> int:
        """Rows that entered the stage: always `rows + rejected_rows`."""
        return self.meta["rows_in"]

    @property
    def rejected_rows(self) -> int:
        return self.meta["rejected_rows"]

    @property
    def reasons(self) -> dict[str, int]:
        """Rejected rows per reason, most frequent first."""
        return self.meta["reasons"]

    @property
    def counters(self) -> dict[str, float]:
        """What the stage counted beside rows, summed over parts."""
        return self.meta["counters"]

    @property
    def digest(self) -> str:
        """SHA-256 over the SHA-256 of every file of the dataset, in order: equal digests mean equal bytes."""
        return self.meta["digest"]

    @property
    def parts(self) -> list[str]:
        """URIs of the Parquet files of kept rows, in order."""
        return [f"{self.uri}/{path}" for path in self.meta["parts"]]

    @property
    def rejected_parts(self) -> list[str]:
        return [f"{self.uri}/{path}" for path in self.meta["rejected_parts"]]

    @property
    def files(self) -> list[str]:
        """URIs of what the stage wrote beside tables."""
        return [f"{self.uri}/{path}" for path in self.meta["files"]]

    def scan(self, columns: Sequence[str] | None = None) -> "pl.LazyFrame":
        """The kept rows, lazily, in the order of the parts."""
        return _scan(self.parts, columns)

    def scan_rejected(self, columns: Sequence[str] | None = None) -> "pl.LazyFrame":
        """The rejected rows with `reason` and `detail`, lazily."""
        return _scan(self.rejected_parts, columns)

    def batches(self, columns: Sequence[str] | None = None, batch_size: int = 1024) -> Iterator[pa.RecordBatch]:
        """Stream the kept rows in bounded memory."""
        for part in self.parts:
            yield from read_batches(part, columns, batch_size)


@contextmanager
def open_part(uri: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file, wherever it lies.

    Raises:
        UserError: there is no such file, or it cannot be reached.
    """
    with open_input(uri) as file, pq.ParquetFile(file) as table:
        yield table


def read_batches(part: str, columns: Sequence[str] | None = None, batch_size: int = 1024) -> Iterator[pa.RecordBatch]:
    """Stream one Parquet file in bounded memory; `part` is an fsspec URI."""
    with open_part(part) as table:
        yield from table.iter_batches(batch_size=batch_size, columns=list(columns) if columns is not None else None)


def _scan(parts: list[str], columns: Sequence[str] | None) -> "pl.LazyFrame":
    import polars as pl
    import pyarrow.dataset as pads

    if not parts:
        return pl.LazyFrame(schema={column: pl.Null for column in columns or ()})
    fs, _ = file_system(parts[0])
    if isinstance(fs, LocalFileSystem):
        frame = pl.scan_parquet(parts, missing_columns="insert", extra_columns="ignore", glob=False)
    else:  # polars' own readers know no memory://, and none of the options that fsspec was given
        frame = pl.scan_pyarrow_dataset(pads.dataset([file_system(part)[1] for part in parts], filesystem=fs, format="parquet"))
    return frame.select(columns) if columns is not None else frame
