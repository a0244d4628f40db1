"""The one runner of every stage: plan, parts, receipts, resume, close.

A stage is three functions that know nothing of processes, progress or resume:

    plan(inputs, config)          -> one JSON-able payload a part (must not depend on how many workers there are)
    run(payload, config, output)  -> writes the part's kept and rejected rows to `output`
    close(receipts, config)       -> extra facts for dataset.json (optional)

The runner gives each part to the cluster, writes its files under temporary names, renames them, and writes the receipt
last (`pipelines.receipts`: also when a part runs twice at once); a part with a receipt is never run again. When all parts are
done it checks that every row that entered either stayed or left with a reason, and that the files are what the receipts say,
and writes `dataset.json`, again by rename. So a `kill -9` at any instant costs at most the parts in flight, and the same
command finishes the dataset with the same bytes.
"""

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.atomic import write_file
from pipelines.cluster import Cluster
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.progress import Progress, ProgressEvent, silent
from pipelines.receipts import Receipts, load_json
from pipelines.recipe import Recipe, digest_of

END_BYTES = 1 << 20  # read of an input file to tell it from another: a whole read of a remote crawl would cost a download
ROW_GROUP_ROWS = 4096  # small enough to stream, large enough for zstd and statistics to pay


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A named, versioned kind of work. Raise `version` when the same configuration would produce other rows."""

    name: str
    version: int
    plan: Callable[[Sequence[str], Any], list[dict[str, Any]]]
    run: Callable[[dict[str, Any], Any, "PartOutput"], None]
    close: Callable[[list[dict[str, Any]], Any], dict[str, Any]] | None = None


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


def run_stage(
    stage: Stage,
    inputs: Sequence[str],
    config: Recipe,
    out: str,
    *,
    cluster: Cluster | None = None,
    progress: Progress = silent,
    name: str | None = None,
) -> Dataset:
    """Run a stage to its closed dataset, or finish one that was interrupted, or return one that is complete.

    Args:
        inputs: URIs of the datasets or files that `stage.plan` reads.
        out: URI of the dataset's folder.
        name: the dataset's `name@version`, chosen by a person; by default the stage's name.

    Raises:
        UserError: `out` holds a dataset of another configuration or of other inputs, or there is nothing to do.
    """
    out = str(out).rstrip("/")
    fs, root = fsspec.url_to_fs(out)
    inputs = [str(uri) for uri in inputs]
    identity = {
        "stage": stage.name,
        "stage_version": stage.version,
        "config": config.model_dump(mode="json"),
        "inputs": [_describe(uri) for uri in inputs],
    }
    fingerprint = digest_of({**identity, "inputs": [_nameless(entry) for entry in identity["inputs"]]})
    plan = load_json(fs, f"{root}/plan.json")
    if plan is not None and plan["fingerprint"] != fingerprint:
        raise UserError(f"{out}: output folder of another run (differs in {_difference(plan, identity)}); choose another --out or remove it")
    if Dataset.exists(out):
        return Dataset.open(out)
    if plan is None:
        payloads = stage.plan(inputs, config)
        if not payloads:
            raise UserError(f"{stage.name}: nothing to do, the input is empty")
        plan = {**identity, "fingerprint": fingerprint, "parts": payloads}
        _write_json(f"{out}/plan.json", plan)

    kept = Receipts(fs, root, out, fingerprint)
    kept.forget_claims()
    receipts = {index: kept.read(index) for index in range(len(plan["parts"]))}
    todo = [index for index, receipt in receipts.items() if receipt is None]
    total, done = len(receipts), len(receipts) - len(todo)
    progress(ProgressEvent(stage.name, done, total))
    jobs = [_Job(stage.run, config, plan["parts"][index], out, index, fingerprint) for index in todo]
    for position, receipt in (cluster or Cluster()).map(_run_part, jobs):
        receipts[todo[position]] = receipt
        done += 1
        progress(ProgressEvent(stage.name, done, total, note=f"{receipt['rows']:,} rows kept"))
    return _close(stage, fs, root, out, plan, [receipts[index] for index in range(total)], config, name or stage.name)


@dataclass(frozen=True)
class _Job:
    run: Callable[[dict[str, Any], Any, PartOutput], None]
    config: Any
    payload: dict[str, Any]
    out: str
    index: int
    fingerprint: str


def _run_part(job: _Job) -> dict[str, Any]:
    fs, root = fsspec.url_to_fs(job.out)
    receipts = Receipts(fs, root, job.out, job.fingerprint)
    done = receipts.read(job.index)
    if done is not None:  # by an attempt whose end the scheduler did not hear of
        return done
    output = PartOutput(fs, root, job.index)
    try:
        job.run(job.payload, job.config, output)
        return receipts.publish(job.index, *output.seal())
    finally:
        output.abandon()


def _close(stage: Stage, fs: Any, root: str, out: str, plan: dict, receipts: list[dict], config: Any, name: str) -> Dataset:
    files = [entry for receipt in receipts for entry in receipt["files"]]
    paths = [entry["path"] for entry in files]
    reasons: Counter[str] = Counter()
    counters: dict[str, float] = {}
    for receipt in receipts:
        reasons.update(receipt["reasons"])
        for counter, value in receipt["counters"].items():
            counters[counter] = counters.get(counter, 0) + value
    rows_in, rows, rejected = (sum(receipt[key] for receipt in receipts) for key in ("rows_in", "rows", "rejected_rows"))
    assert rows_in == rows + rejected, f"{out}: {rows_in} rows entered, {rows} kept + {rejected} rejected"
    meta = {
        "name": name,
        **{key: plan[key] for key in ("stage", "stage_version", "config", "inputs", "fingerprint")},
        "code_version": code_version(),
        "rows_in": rows_in,
        "rows": rows,
        "rejected_rows": rejected,
        "reasons": dict(reasons.most_common()),
        "counters": counters,
        "parts": [path for path in paths if path.startswith("parts/")],
        "rejected_parts": [path for path in paths if path.startswith("rejected/")],
        "files": [path for path in paths if path.startswith("files/")],
        "sha256": {entry["path"]: entry["sha256"] for entry in files},
        "bytes": sum(entry["bytes"] for entry in files),
        "digest": digest_of([[entry["path"], entry["sha256"]] for entry in files]),
        "extra": stage.close(receipts, config) if stage.close else {},
    }
    for entry in files:
        if not fs.exists(f"{root}/{entry['path']}") or fs.size(f"{root}/{entry['path']}") != entry["bytes"]:
            raise UserError(f"{out}/{entry['path']} is not what its part wrote; remove {out}/receipts and run the command again")
    for stray in fs.glob(f"{root}/**/.tmp-*"):  # what killed workers left behind
        fs.rm(stray)
    _write_json(f"{out}/dataset.json", meta)
    return Dataset(out, meta)


def code_version() -> str:
    """The installed version of Gristmill, recorded with every dataset."""
    try:
        return version("gristmill")
    except PackageNotFoundError:
        return "unknown"


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
    fs.makedirs(folder, exist_ok=True)
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


def digest_of_inputs(inputs: Sequence[str]) -> str:
    """What a run's inputs are, wherever they lie.

    Raises:
        UserError: one does not exist.
    """
    return digest_of([_nameless(_describe(str(uri))) for uri in inputs])


def _nameless(described: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in described.items() if key != "uri"}


def _describe(uri: str) -> dict[str, Any]:
    """What identifies an input: a dataset's digest; a file's name, size and the SHA-256 of its two ends; never its path."""
    if Dataset.exists(uri):
        dataset = Dataset.open(uri)
        return {"uri": uri, "name": dataset.name, "digest": dataset.digest}
    fs, path = fsspec.url_to_fs(uri)
    if not fs.exists(path):
        raise UserError(f"{uri}: no such file or dataset")
    name = path.rstrip("/").rpartition("/")[2]
    if not fs.isfile(path):
        return {"uri": uri, "name": name}
    size = fs.size(path)
    ends = fs.cat_file(path, start=0, end=min(size, END_BYTES)) + fs.cat_file(path, start=max(0, size - END_BYTES), end=size)
    return {"uri": uri, "name": name, "bytes": size, "ends_sha256": hashlib.sha256(ends).hexdigest()}


def _difference(plan: dict[str, Any], identity: dict[str, Any]) -> str:
    if plan["stage"] != identity["stage"] or plan["stage_version"] != identity["stage_version"]:
        return f"stage: {plan['stage']} v{plan['stage_version']} there, {identity['stage']} v{identity['stage_version']} here"
    there, here = plan["config"], identity["config"]
    keys = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    return f"config key {', '.join(keys)}" if keys else "inputs"


def _write_json(uri: str, value: Any) -> None:
    write_file(uri, json.dumps(value, indent=1, ensure_ascii=False))
