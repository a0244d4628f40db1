"""A shuffle through files: rows leave the process that has them and meet where their key belongs.

One Arrow IPC file a writer, exactly one record batch a bucket, so a reader takes batch q of every writer's file: no scan, no
file a (writer, bucket) pair, nothing held but one bucket. Batches are concatenated in the order of the writers, which makes what
a bucket reads independent of who wrote first. What all writers of a step sent under one name is a channel: a few words in a
plan, however many files (`channel`).

Documents are named by a 64-bit number while this lasts: input part in the upper half, row in the lower (`documents`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.arrow_files import read_arrow
from pipelines.dataset import Dataset
from pipelines.stage import PartOutput
from pipelines.storage import open_input

ROW_BITS = 32  # a part holds fewer than 2^32 rows


def documents(part: int, rows: np.ndarray | int) -> np.ndarray:
    """Numbers uint64 of rows of an input part."""
    local = np.arange(rows) if isinstance(rows, int) else rows
    return np.uint64(part << ROW_BITS) | local.astype(np.uint64)


def part_of(document: np.ndarray) -> np.ndarray:
    return (document >> np.uint64(ROW_BITS)).astype(np.int64)


def row_of(document: np.ndarray) -> np.ndarray:
    return (document & np.uint64((1 << ROW_BITS) - 1)).astype(np.int64)


def place_of(key: np.ndarray) -> np.ndarray:
    """Where 64-bit keys lie in the key space: uint64 < 2^32. Multiplied first, because document numbers are not random."""
    return (key ^ (key >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)


def bucket_of(key: np.ndarray, buckets: int) -> np.ndarray:
    """The bucket int64 of 64-bit keys: equal ranges of the key space, so that another number of buckets cuts the same order elsewhere."""
    return (place_of(key) * np.uint64(buckets) >> np.uint64(32)).astype(np.int64)


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


def channel(step: Dataset, kind: str, writers: int, first: int = 0) -> dict[str, Any]:
    """What writers first..first + writers - 1 of a step sent as `<kind>-<writer>.arrow`, as a payload names it."""
    return {"dataset": step.uri, "kind": kind, "first": first, "writers": writers}


def files_of(channel: dict[str, Any]) -> list[str]:
    """The URIs of a channel's files, in the order of the writers."""
    writers = range(channel["first"], channel["first"] + channel["writers"])
    return [f"{channel['dataset']}/files/{channel['kind']}-{writer:05d}.arrow" for writer in writers]


def receive(files: Sequence[str], bucket: int) -> pa.Table:
    """The rows of one bucket from all writers, in the order of `files`."""
    return pa.concat_tables([read(uri, bucket) for uri in files], promote_options="permissive")


def read(uri: str, bucket: int | None = None) -> pa.Table:
    """One bucket of a file, or (None) all of it."""
    if bucket is None:
        return read_arrow(uri)
    with open_input(uri) as file:
        return pa.Table.from_batches([pa.ipc.open_file(pa.PythonFile(file, mode="r")).get_batch(bucket)])


def column(table: pa.Table, name: str) -> np.ndarray:
    """A numeric column without nulls as a numpy array."""
    return table[name].combine_chunks().to_numpy(zero_copy_only=False)
