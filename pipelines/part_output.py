"""What a part writes: rows kept, rows rejected with their reasons, files beside them; all under names of the attempt's own, hashed on the way."""

import hashlib
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.storage import make_folder

ROW_GROUP_ROWS = 4096  # small enough to stream, large enough for zstd and statistics to pay


class PartOutput:
    """Where a part's rows go. Only the runner makes one."""

    def __init__(self, fs: fsspec.AbstractFileSystem, root: str, index: int):
        self._fs, self._root, self._part = fs, root, f"part-{index:05d}"
        self._writers: dict[str, _ParquetFile] = {}
        self._files: list[dict[str, Any]] = []
        self._pending: list[tuple[str, str]] = []
        self._rows_in = 0
        self._rows: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._counters: dict[str, float] = {}

    def read(self, rows: int) -> None:
        """Say that `rows` entered the part. Checked in the end: every one of them was kept or rejected."""
        self._rows_in += rows

    def write(self, kept: pa.Table | None, rejected: pa.Table | None = None) -> None:
        """Append rows. Rejected rows need string columns `reason` ("family.rule") and `detail`.

        A part's tables of one kind must share one schema.
        """
        if kept is not None and kept.num_rows:
            self._append("parts", kept)
        if rejected is not None and rejected.num_rows:
            missing = {"reason", "detail"} - set(rejected.column_names)
            assert not missing, f"rejected rows lack {missing}"
            counts = pc.value_counts(rejected["reason"].combine_chunks())
            for entry in counts:
                assert entry["values"].as_py(), "a rejected row has no reason"
                self._reasons[entry["values"].as_py()] += entry["counts"].as_py()
            self._append("rejected", rejected)

    def count(self, **counters: float) -> None:
        """Add to the stage's own counters; they are summed over parts into `dataset.json`."""
        for name, value in counters.items():
            self._counters[name] = self._counters.get(name, 0) + value

    @contextmanager
    def file(self, name: str) -> Iterator[BinaryIO]:
        """Write an extra file `files/<name>`; it appears under that name only when the part is done."""
        final = f"files/{name}"
        with _hashed(self._fs, self._root, final) as target:
            yield target
        self._settle(target, final)

    def seal(self) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Close the files. Returns the receipt's content and the files' (temporary, final) paths."""
        kept, rejected = self._rows["parts"], self._rows["rejected"]
        assert self._rows_in == kept + rejected, f"{self._part}: {self._rows_in} rows entered, {kept} kept + {rejected} rejected"
        while self._writers:
            folder, writer = self._writers.popitem()
            self._settle(writer.close(), f"{folder}/{self._part}.parquet")
        receipt = {
            "rows_in": self._rows_in,
            "rows": kept,
            "rejected_rows": rejected,
            "reasons": dict(sorted(self._reasons.items())),
            "counters": self._counters,
            "files": sorted(self._files, key=lambda entry: entry["path"]),
        }
        return receipt, self._pending

    def abandon(self) -> None:
        """Drop what was written and has no final name: the part failed, or another attempt at it was faster."""
        written = [writer.close().path for writer in self._writers.values()] + [temporary for temporary, _ in self._pending]
        for temporary in written:
            if self._fs.exists(temporary):
                self._fs.rm(temporary)

    def _append(self, folder: str, table: pa.Table) -> None:
        if folder not in self._writers:
            self._writers[folder] = _ParquetFile(self._fs, self._root, f"{folder}/{self._part}.parquet", table.schema)
        self._writers[folder].write(table)
        self._rows[folder] += table.num_rows

    def _settle(self, target: "_Hashed", final: str) -> None:
        self._pending.append((target.path, f"{self._root}/{final}"))
        self._files.append({"path": final, "bytes": target.bytes, "sha256": target.sha256.hexdigest()})


class _Hashed:
    """A file under a temporary name in its final folder that keeps the SHA-256 of what is written to it."""

    def __init__(self, path: str, file: BinaryIO):
        self.path, self.file, self.bytes, self.sha256, self.closed = path, file, 0, hashlib.sha256(), False

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += memoryview(data).nbytes
        self.file.write(data)
        return memoryview(data).nbytes

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.closed = True
        self.file.close()

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


@contextmanager
def _hashed(fs: Any, root: str, final: str) -> Iterator[_Hashed]:
    target = _open_hashed(fs, root, final)
    try:
        yield target
    except BaseException:
        target.close()
        fs.rm(target.path)
        raise
    target.close()


def _open_hashed(fs: Any, root: str, final: str) -> _Hashed:
    folder, _, leaf = f"{root}/{final}".rpartition("/")
    make_folder(fs, folder)
    path = f"{folder}/.tmp-{uuid.uuid4().hex}-{leaf}"
    return _Hashed(path, fs.open(path, "wb"))


class _ParquetFile:
    def __init__(self, fs: Any, root: str, final: str, schema: pa.Schema):
        self._target = _open_hashed(fs, root, final)
        self._writer = pq.ParquetWriter(pa.PythonFile(self._target, mode="w"), schema, compression="zstd")

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)

    def close(self) -> _Hashed:
        self._writer.close()
        if not self._target.closed:
            self._target.close()
        return self._target
