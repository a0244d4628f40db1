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
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipelines.atomic import write_file
from pipelines.cluster import Cluster
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.part_output import PartOutput
from pipelines.progress import Progress, ProgressEvent, silent
from pipelines.receipts import Receipts, load_json
from pipelines.recipe import Recipe, digest_of
from pipelines.storage import file_system, is_folder, many, open_input, told

END_BYTES = 1 << 20  # read of an input file to tell it from another: a whole read of a remote crawl would cost a download


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A named, versioned kind of work. Raise `version` when the same configuration would produce other rows."""

    name: str
    version: int
    plan: Callable[[Sequence[str], Any], list[dict[str, Any]]]
    run: Callable[[dict[str, Any], Any, PartOutput], None]
    close: Callable[[list[dict[str, Any]], Any], dict[str, Any]] | None = None


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
    fs, root = file_system(out)
    inputs = [str(uri) for uri in inputs]
    identity = {
        "stage": stage.name,
        "stage_version": stage.version,
        "config": config.model_dump(mode="json"),
        "inputs": many(_describe, inputs),
    }
    fingerprint = digest_of({**identity, "inputs": [_nameless(entry) for entry in identity["inputs"]]})
    with told(out):
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
    fs, root = file_system(job.out)
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


def digest_of_inputs(inputs: Sequence[str]) -> str:
    """What a run's inputs are, wherever they lie.

    Raises:
        UserError: one does not exist.
    """
    return digest_of([_nameless(entry) for entry in many(_describe, [str(uri) for uri in inputs])])


def _nameless(described: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in described.items() if key != "uri"}


def _describe(uri: str) -> dict[str, Any]:
    """What identifies an input: a dataset's digest; a file's name, size and the SHA-256 of its two ends; never its path."""
    if Dataset.exists(uri):
        dataset = Dataset.open(uri)
        return {"uri": uri, "name": dataset.name, "digest": dataset.digest}
    name = uri.rstrip("/").rpartition("/")[2]
    if is_folder(uri):
        return {"uri": uri, "name": name}
    with open_input(uri) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        ends = file.read(END_BYTES)
        file.seek(max(0, size - END_BYTES))
        ends += file.read()
    return {"uri": uri, "name": name, "bytes": size, "ends_sha256": hashlib.sha256(ends).hexdigest()}


def _difference(plan: dict[str, Any], identity: dict[str, Any]) -> str:
    if plan["stage"] != identity["stage"] or plan["stage_version"] != identity["stage_version"]:
        return f"stage: {plan['stage']} v{plan['stage_version']} there, {identity['stage']} v{identity['stage_version']} here"
    there, here = plan["config"], identity["config"]
    keys = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    return f"config key {', '.join(keys)}" if keys else "inputs"


def _write_json(uri: str, value: Any) -> None:
    write_file(uri, json.dumps(value, indent=1, ensure_ascii=False))
