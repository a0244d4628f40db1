"""Where documents went: the datasets they passed, the shards that hold them, the training runs that read them and at which steps.

The forward half of lineage. Nothing is stored for it either: a run's folder names what it read by digest, the order of training is a
stateless function that can be inverted, and what a document was made into names it as its parent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.forget import descendants
from pipelines.lineage import readings, upstream
from pipelines.tokenizer import load_tokenizer
from training.runs import RunRecord
from training.sft import SftRecipe, conversation_windows

WORK = "work"  # a stage's own intermediate datasets
KEYS = ("id", "url", "canonical_url")
SHOWN = ("reason", "detail", "duplicate_of", "cluster_id", "cluster_size", "split", "tokens", "copies")


@dataclass(frozen=True)
class Passage:
    """A document in one dataset: kept, or left with `reason` among the facts."""

    id: str
    dataset: str
    stage: str
    kept: bool
    facts: dict[str, Any]


@dataclass(frozen=True)
class Consumption:
    """A training run that read documents: (step, id) for every reading among the steps it has taken."""

    run: str
    kind: str
    data: str
    steps_done: int
    steps: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Journey:
    """The answer to `gristmill trace FOLDER --url`. `made` are documents that were made from the page's, in any generation."""

    ids: tuple[str, ...]
    made: tuple[str, ...]
    passages: tuple[Passage, ...]
    consumptions: tuple[Consumption, ...]


def journey(folder: str, needle: str) -> Journey:
    """Where the documents with this URL or id went, among everything below `folder`.

    Raises:
        UserError: no dataset there knows it.
    """
    datasets = datasets_in(folder)
    ids = _ids(datasets, needle)
    if not ids:
        raise UserError(f"{needle}: no document with this URL or id in the {len(datasets)} datasets of {folder}")
    made = descendants([dataset for dataset in datasets if _has(dataset, "parents")], ids)
    every = [*ids, *made]
    return Journey(tuple(ids), tuple(made), tuple(_passages(datasets, every)), tuple(consumptions(folder, every, datasets)))


def consumptions(folder: str, ids: Sequence[str], datasets: Sequence[Dataset]) -> Iterator[Consumption]:
    """Every training run below `folder` that read one of the documents out of `datasets` (shards are datasets too)."""
    held = {dataset.digest: dataset for dataset in datasets}
    for path in sorted(found.parent for found in Path(folder).rglob("run.json") if (found.parent / "metrics.jsonl").exists()):
        run = RunRecord.read(path)
        if run.kind == "pretrain" and (shards := held.get(run.inputs["shards"])):
            read = readings(shards.uri, ids, until=run.steps, plan=run.inputs["plan"])
            if steps := tuple(sorted((reading.step, reading.document_id) for reading in read)):
                yield Consumption(str(path), run.kind, shards.uri, run.steps, steps)
        elif run.kind == "sft" and all(digest in held for digest in run.inputs["datasets"]):
            data = [held[digest] for digest in run.inputs["datasets"]]
            if steps := _conversations_read(run, data, set(ids)):
                yield Consumption(str(path), run.kind, ", ".join(dataset.uri for dataset in data), run.steps, steps)


def datasets_in(folder: str) -> list[Dataset]:
    """Every closed dataset of documents below a folder of this machine, or at a URI, in the order in which documents pass them."""
    if "://" in folder or Dataset.exists(folder):
        return [Dataset.open(folder)]
    found = [str(path.parent) for path in sorted(Path(folder).rglob("dataset.json")) if WORK not in path.relative_to(folder).parts]
    datasets = [dataset for uri in found if _has(dataset := Dataset.open(uri), "id")]
    if not datasets:
        raise UserError(f"{folder}: neither a dataset nor a folder that holds datasets of documents")
    return sorted(datasets, key=lambda dataset: (len(upstream(dataset)), dataset.uri))


def _conversations_read(run: RunRecord, datasets: Sequence[Dataset], ids: set[str]) -> tuple[tuple[int, str], ...]:
    if not any(_rows(dataset.scan(), ("id",), list(ids)).height for dataset in datasets):
        return ()
    windows = conversation_windows(SftRecipe(**run.recipe), datasets, load_tokenizer(run.path / "model"))
    # A conversation of several turns is trained on turn by turn, as "id", "id#1", ...
    turns = ((step, turn) for step in range(run.steps) for window in windows.batch(step).document_ids for turn in window)
    return tuple((step, turn) for step, turn in turns if turn.partition("#")[0] in ids)


def _passages(datasets: Sequence[Dataset], ids: Sequence[str]) -> Iterator[Passage]:
    for dataset in datasets:
        for kept, rows in ((True, dataset.scan()), (False, dataset.scan_rejected())):
            for row in _rows(rows, ("id",), ids).iter_rows(named=True):
                facts = {name: row[name] for name in SHOWN if row.get(name) not in (None, "")}
                yield Passage(row["id"], dataset.uri, dataset.meta["stage"], kept, facts)


def _ids(datasets: Sequence[Dataset], needle: str) -> list[str]:
    frames = [frame for dataset in datasets for frame in (dataset.scan(), dataset.scan_rejected())]
    return list(dict.fromkeys(identity for frame in frames for identity in _rows(frame, KEYS, [needle])["id"].to_list()))


def _rows(rows: pl.LazyFrame, keys: Sequence[str], values: Sequence[str]) -> pl.DataFrame:
    """The rows of which one of the key columns holds one of the values."""
    columns = rows.collect_schema().names()
    keys = [key for key in keys if key in columns]
    if "id" not in columns:
        return pl.DataFrame(schema={"id": pl.String})
    wanted = [name for name in ("id", *SHOWN) if name in columns]
    return rows.filter(pl.any_horizontal(pl.col(key).is_in(list(values)) for key in keys)).select(wanted).collect()


def _has(dataset: Dataset, column: str) -> bool:
    return column in dataset.scan().collect_schema()
