"""Forgetting documents: new datasets and new shards without them, without what was generated from them, and with a record.

Nothing is edited in place: a shard set that a run has read is evidence. `forget` writes a new version beside it, in which each
removed document has left a tombstone (its id and the reason, no text), and says which training steps have read it. The old
folders stay until their owner deletes them; `Forgotten.superseded` lists them, the datasets upstream included.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.atomic import write_file
from pipelines.cluster import Cluster
from pipelines.dataset import Dataset, read_batches
from pipelines.errors import UserError
from pipelines.lineage import Reading, readings, upstream
from pipelines.mixture import Mixture
from pipelines.progress import Progress, silent
from pipelines.recipe import Recipe
from pipelines.shards import tokenize
from pipelines.shardset import ShardSet
from pipelines.stage import PartOutput, Stage, run_stage


class ForgetConfig(Recipe):
    """Ids that were asked for, and ids that go because they were made from those."""

    requested: tuple[str, ...]
    descendants: tuple[str, ...]


@dataclass(frozen=True)
class Forgotten:
    """What `forget` did."""

    shards: ShardSet
    requested: tuple[str, ...]
    descendants: tuple[str, ...]
    readings: tuple[Reading, ...]
    """where the old plan reads the documents"""
    superseded: tuple[str, ...]
    """folders that still hold the documents"""


def forget(
    shards: str | ShardSet,
    ids: Iterable[str],
    out: str,
    cluster: Cluster | None = None,
    progress: Progress = silent,
    *,
    mixture: Mixture | None = None,
) -> Forgotten:
    """Write `<out>/<source>` for every source's dataset and `<out>/shards`, all without the documents.

    The new tokens and plan are those of the mixture over datasets that never held the documents; so are the files, byte for byte,
    where a source fits into one shard (with more, the cuts between shards may lie elsewhere).

    Args:
        ids: documents; see `pipelines.lineage.ids_of` for those of a URL or host.
        mixture: new weights or tokens, where the old plan would now fall short; its datasets are not looked at.

    Raises:
        UserError: a dataset of the shards is missing, none of the documents is in them, or the plan no longer adds up.
    """
    old = shards if isinstance(shards, ShardSet) else ShardSet.open(shards)
    datasets = {name: Dataset.open(old.dataset_uri(name)) for name in old.sources}
    lines = {name: [dataset, *upstream(dataset)] for name, dataset in datasets.items()}
    places = list({place.uri: place for line in lines.values() for place in line}.values())
    asked = sorted(set(ids))
    made = descendants(places, asked)
    config = ForgetConfig(requested=tuple(asked), descendants=tuple(made))
    gone = {*asked, *made}
    held = {place.uri: _holds(place, gone) for place in places}
    if not any(held.values()):
        raise UserError(f"{old.uri}: none of the {len(asked)} documents is in its datasets")
    sources = []
    for source in (mixture or old.mixture).sources:
        if source.name not in datasets:
            raise UserError(f"the new mixture has a source {source.name!r}, which {old.uri} does not have")
        dataset = datasets[source.name]
        new = run_stage(FORGET, [dataset.uri], config, f"{out}/{source.name}", cluster=cluster, progress=progress, name=dataset.name)
        sources.append(source.model_copy(update={"dataset": new.uri}))
    settings = Dataset.open(old.uri).meta["config"]
    renewed = tokenize(
        (mixture or old.mixture).model_copy(update={"sources": tuple(sources)}),
        f"{old.uri}/tokenizer.json",
        f"{out}/shards",
        cluster,
        progress,
        chat=settings["chat"],
        eos=settings["eos"],
        shard_bytes=settings["shard_bytes"],
    )
    read = tuple(readings(old, gone))
    superseded = (old.uri, *(uri for uri, holds in held.items() if holds))
    record = {"forgotten": config.model_dump(mode="json"), "readings": len(read), "manifest": old.manifest}
    write_file(f"{out}/shards/superseded.json", json.dumps(record, indent=1, ensure_ascii=False))
    return Forgotten(renewed, config.requested, config.descendants, read, superseded)


def descendants(datasets: Sequence[Dataset], ids: Iterable[str]) -> list[str]:
    """Ids of documents that were made from `ids`, in any number of generations."""
    tables = [dataset.scan() for dataset in datasets]
    tables = [table.select("id", "parents") for table in tables if {"id", "parents"} <= set(table.collect_schema().names())]
    first = set(ids)
    found, fresh = set(first), set(first)
    while fresh:
        made: set[str] = set()
        for table in tables:
            pairs = table.explode("parents").filter(pl.col("parents").is_in(list(fresh)))
            made |= set(pairs.select("id").collect()["id"].to_list())
        fresh = made - found
        found |= fresh
    return sorted(found - first)


def _holds(dataset: Dataset, ids: set[str]) -> bool:
    rows = dataset.scan()
    return "id" in rows.collect_schema() and rows.filter(pl.col("id").is_in(list(ids))).select(pl.len()).collect().item() > 0


def _plan(inputs: Sequence[str], config: ForgetConfig) -> list[dict[str, Any]]:
    return [{"part": part} for uri in inputs for part in Dataset.open(uri).parts]


def _run(payload: dict[str, Any], config: ForgetConfig, output: PartOutput) -> None:
    reasons = dict.fromkeys(config.descendants, "forget.descendant") | dict.fromkeys(config.requested, "forget.requested")
    gone = pa.array(list(reasons), pa.string())
    for batch in read_batches(payload["part"], batch_size=4096):
        table = pa.Table.from_batches([batch])
        output.read(table.num_rows)
        leaves = pc.is_in(table["id"], value_set=gone)
        left = table.filter(leaves)["id"].to_pylist()
        columns = {"id": left, "reason": [reasons[identity] for identity in left], "detail": [""] * len(left)}
        tombstones = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        output.write(table.filter(pc.invert(leaves)), tombstones)


FORGET = Stage(name="forget", version=1, plan=_plan, run=_run)
