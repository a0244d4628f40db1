"""Parts in bounded pieces: chunks of rows of a few megabytes of text, numbered through the whole corpus.

A part may be a gigabyte of text, and every byte of it may be repeated. What is known of its repeats is therefore sent to chunks, not
to parts: whatever the size of parts, no step holds more than one chunk's or one bucket's share, or what `Outbox` gathers.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.arrow_files import read_arrow, write_arrow
from pipelines.dataset import Dataset, open_part
from pipelines.dedup.exchange import column, documents, receive, send
from pipelines.errors import UserError
from pipelines.stage import PartOutput

CHUNK_BYTES = 4 << 20  # of text; a longer document is a chunk of its own
BATCH_ROWS = 256
OUTBOX_BYTES = 32 << 20  # of messages gathered before they are sent; thrice that while they are sorted


def parts_of(inputs: Sequence[str]) -> list[str]:
    """All Parquet files of datasets (or single Parquet files), in order.

    Raises:
        UserError: there are none.
    """
    parts = [part for uri in inputs for part in ([uri] if uri.endswith(".parquet") else Dataset.open(uri).parts)]
    if not parts:
        raise UserError("nothing to do, the input is empty")
    return parts


def chunks(part: str, text: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a part, chunk by chunk; at least one, be it empty. Where chunks end depends on the text alone.

    Raises:
        UserError: the part has no column `text`, or it holds no text.
    """
    with open_part(part) as parquet:
        schema = parquet.schema_arrow
        if text not in schema.names:
            raise UserError(f"{part}: no column {text!r} (columns: {', '.join(schema.names)})")
        if not (pa.types.is_string(schema.field(text).type) or pa.types.is_large_string(schema.field(text).type)):
            raise UserError(f"{part}: column {text!r} holds {schema.field(text).type}, not text")
        waiting: list[pa.Table] = []  # rows of the open chunk
        room = CHUNK_BYTES
        whole = False
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=list(columns) if columns is not None else None):
            rows = pa.Table.from_batches([batch])
            while rows.num_rows:
                sizes = np.cumsum(pc.fill_null(pc.binary_length(rows[text]), 0).to_numpy().astype(np.int64))
                fits = min(int(np.searchsorted(sizes, room)) + 1, rows.num_rows)  # the row that fills the chunk is its last
                waiting.append(rows.slice(0, fits))
                room -= int(sizes[fits - 1])
                rows = rows.slice(fits)
                if room <= 0:
                    yield pa.concat_tables(waiting)
                    waiting, room, whole = [], CHUNK_BYTES, True
        if waiting:
            yield pa.concat_tables(waiting)
        elif not whole:
            yield (schema.empty_table() if columns is None else schema.empty_table().select(list(columns)))


def survey(payload: dict, recipe: Any, output: PartOutput) -> None:
    """Write `chunks-<part>.arrow`: each chunk's first document and its bytes of text."""
    firsts, sizes, begin = [], [], 0
    for rows in chunks(payload["part"], recipe.text, [recipe.text]):
        firsts.append(documents(payload["index"], np.array([begin]))[0])
        sizes.append(pc.sum(pc.fill_null(pc.binary_length(rows[recipe.text]), 0)).as_py() or 0)
        begin += rows.num_rows
    columns = {"first": pa.array(firsts, pa.uint64()), "bytes": pa.array(sizes, pa.int64())}
    write_arrow(output, f"chunks-{payload['index']:05d}.arrow", columns)
    output.count(documents=begin, bytes=sum(sizes))


def chunk_counts(survey: str) -> list[int]:
    """Chunks of each part, from the survey's dataset."""
    return [table.num_rows for table in _surveyed(survey)]


def chunk_firsts(survey: str) -> np.ndarray:
    """The first document of every chunk of the corpus: uint64 [C], rising."""
    return column(pa.concat_tables(_surveyed(survey)), "first")


def _surveyed(survey: str) -> list[pa.Table]:
    return [read_arrow(uri) for uri in Dataset.open(survey).files]


def chunk_of(document: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """The chunk int64 of documents, given `chunk_firsts`."""
    return np.searchsorted(firsts, document, side="right") - 1


def messages(step: str, bucket: int) -> pa.Table:
    """What all parts of a step (the URI of its dataset) sent to a bucket or chunk, in the order of the parts."""
    return receive(Dataset.open(step).files, bucket)


class Outbox:
    """Messages of a part on their way to buckets, sent whenever enough have gathered: files `<name>-<part>-<piece>.arrow`."""

    def __init__(self, output: PartOutput, name: str, index: int, buckets: int):
        self._output, self._name, self._buckets = output, f"{name}-{index:05d}", buckets
        self._tables: list[pa.Table] = []
        self._bucket: list[np.ndarray] = []
        self._bytes, self._pieces = 0, 0

    def add(self, table: pa.Table, bucket: np.ndarray) -> None:
        """Row i is for bucket[i]; tables of an outbox share a schema."""
        step = max(1, table.num_rows * OUTBOX_BYTES // max(1, table.nbytes))
        for begin in range(0, max(1, table.num_rows), step):
            some = table.slice(begin, step)
            self._tables.append(some)
            self._bucket.append(bucket[begin : begin + step])
            self._bytes += some.nbytes
            if self._bytes >= OUTBOX_BYTES:
                self._send()

    def close(self) -> None:
        """Send the rest; an outbox that was given nothing but empty tables sends one of them, so that readers find its schema."""
        if self._bytes or not self._pieces:
            self._send()

    def _send(self) -> None:
        table = pa.concat_tables(self._tables, promote_options="permissive")
        send(self._output, f"{self._name}-{self._pieces:05d}.arrow", table, np.concatenate(self._bucket), self._buckets)
        self._tables, self._bucket, self._bytes = [], [], 0
        self._pieces += 1
