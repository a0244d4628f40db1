"""A shuffle through files: rows leave the process that has them and meet where their key belongs.

One Arrow IPC file a writer, exactly one record batch a bucket, so a reader takes batch q of every writer's file: no scan, no
file a (writer, bucket) pair, nothing held but one bucket. Batches are concatenated in the order of the writers, which makes what
a bucket reads independent of who wrote first.

Documents are named by a 64-bit number while this lasts: input part in the upper half, row in the lower (`documents`).
"""

from collections.abc import Sequence

import fsspec
import numpy as np
import pyarrow as pa

from pipelines.stage import PartOutput

ROW_BITS = 32  # a part holds fewer than 2^32 rows


def documents(part: int, rows: np.ndarray | int) -> np.ndarray:
    """Numbers uint64 of rows of an input part."""
    local = np.arange(rows) if isinstance(rows, int) else rows
    return np.uint64(part << ROW_BITS) | local.astype(np.uint64)


def part_of(document: np.ndarray) -> np.ndarray:
    return (document >> np.uint64(ROW_BITS)).astype(np.int64)


def row_of(document: np.ndarray) -> np.ndarray:
    return (document & np.uint64((1 << ROW_BITS) - 1)).astype(np.int64)


def bucket_of(key: np.ndarray, buckets: int) -> np.ndarray:
    """The bucket int64 of 64-bit keys: by their upper half, multiplied first, because document numbers are not random."""
    mixed = (key ^ (key >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(32)) % np.uint64(buckets)).astype(np.int64)


def send(output: PartOutput, name: str, table: pa.Table, bucket: np.ndarray, buckets: int) -> None:
    """Write `table` as `files/<name>`, row i in batch bucket[i]; the order within a bucket is the table's."""
    order = np.argsort(bucket, kind="stable")
    bounds = np.searchsorted(bucket[order], np.arange(buckets + 1))
    table = table.take(order).combine_chunks()
    with output.file(name) as file, pa.ipc.new_file(pa.PythonFile(file, mode="w"), table.schema) as writer:
        for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
            batches = table.slice(begin, end - begin).combine_chunks().to_batches()
            assert len(batches) <= 1, "a bucket's rows must be one batch"
            writer.write_batch(batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema))


def receive(files: Sequence[str], bucket: int) -> pa.Table:
    """The rows of one bucket from all writers, in the order of `files`."""
    tables = []
    for uri in files:
        with fsspec.open(uri, "rb") as file:
            tables.append(pa.Table.from_batches([pa.ipc.open_file(pa.PythonFile(file, mode="r")).get_batch(bucket)]))
    return pa.concat_tables(tables, promote_options="permissive")


def column(table: pa.Table, name: str) -> np.ndarray:
    """A numeric column without nulls as a numpy array."""
    return table[name].combine_chunks().to_numpy(zero_copy_only=False)
